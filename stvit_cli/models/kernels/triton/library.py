"""Register the Triton kernels as the implementation of the operators on a GPU; importing this needs the package triton."""

from __future__ import annotations

import os

from stvit_cli.models.kernels.operators import library
from stvit_cli.models.kernels.triton.attention import aggregate, associate_and_aggregate, upsample
from stvit_cli.models.kernels.triton.convolution import (
    conv_pos_enc,
    conv_pos_enc_backward,
    gelu_conv_pos_enc,
    gelu_conv_pos_enc_backward,
)

DEVICE = "CPU" if os.environ.get("TRITON_INTERPRET") == "1" else "CUDA"  # Triton's interpreter runs on tensors of a CPU

for operator in (
    associate_and_aggregate,
    aggregate,
    upsample,
    conv_pos_enc,
    conv_pos_enc_backward,
    gelu_conv_pos_enc,
    gelu_conv_pos_enc_backward,
):
    library.impl(operator.__name__, operator, DEVICE)
