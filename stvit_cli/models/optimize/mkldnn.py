"""1 x 1 convolutions with weights packed for oneDNN, for inference on a CPU in float32.

PyTorch's convolution packs its weights at every call. With few tokens, as in the last stage with one image, that takes longer
than the product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stvit_cli.models.layers import ConvFFN
from stvit_cli.models.super_token import SuperTokenAttention


class PackedConv(nn.Module):
    """A packed 1 x 1 convolution of (B, C, H, W) in channels-last memory. It cannot be copied or exported."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(conv.weight.detach().flatten(1))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.bias)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        # The weights are packed for float32; tokens in another precision, as under autocast, are converted and back.
        tokens, bias = x.permute(0, 2, 3, 1).float(), bias if bias is None else bias.float()
        y = torch.ops.mkldnn._linear_pointwise(tokens, self.packed, bias, "none", [], "")
        return y.permute(0, 3, 1, 2).to(x.dtype)


def pack(model: nn.Module) -> None:
    """Replace the 1 x 1 convolutions of attention and ConvFFN in a model, in place, if PyTorch has oneDNN."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return
    for module in model.modules():
        if isinstance(module, (SuperTokenAttention, ConvFFN)):
            for name, child in list(module.named_children()):
                if type(child) is nn.Conv2d and child.kernel_size == (1, 1) and child.weight.dtype == torch.float32:
                    setattr(module, name, PackedConv(child))
