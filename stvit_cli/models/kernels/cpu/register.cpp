// Implements the operators of `operators.py` on a CPU in float32 and bfloat16. Compiled on the user's machine by `build.py`.

#include <torch/library.h>

#include "convolution.h"
#include "self_attention.h"
#include "super_tokens.h"
#include "weight_gradient.h"

TORCH_LIBRARY_IMPL(stvit, CPU, library) {
  library.impl("conv2d_weight_backward", &conv2d_weight_backward);
  library.impl("conv_pos_enc", &conv_pos_enc);
  library.impl("conv_pos_enc_backward", &conv_pos_enc_backward);
  library.impl("conv_pos_enc_layer_norm", &conv_pos_enc_layer_norm);
  library.impl("gelu_conv_pos_enc", &gelu_conv_pos_enc);
  library.impl("gelu_conv_pos_enc_backward", &gelu_conv_pos_enc_backward);
  library.impl("associate_and_aggregate", &associate_and_aggregate);
  library.impl("aggregate", &aggregate);
  library.impl("upsample", &upsample);
  library.impl("upsample_add", &upsample_add);
  library.impl("self_attention", &self_attention);
  library.impl("self_attention_backward", &self_attention_backward);
}
