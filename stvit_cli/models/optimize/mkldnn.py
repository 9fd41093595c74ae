"""1 x 1 convolutions whose weights lie as oneDNN computes with them, for inference on a CPU in float32.

PyTorch's convolution puts its weights into that order anew at every call. Where there are few tokens to a weight, as in the last
stage with one image, that takes longer than the product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stvit_cli.models.layers import ConvFFN
from stvit_cli.models.super_token import SuperTokenAttention


class PackedConv(nn.Module):
    """Stands for a 1 x 1 convolution: (B, C, H, W), channels-last in memory, to (B, C', H, W). Cannot be copied or exported."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(conv.weight.detach().flatten(1))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.bias)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        # The weights are packed for float32; tokens of another precision, as autocast has them, come back in theirs.
        tokens, bias = x.permute(0, 2, 3, 1).float(), bias if bias is None else bias.float()
        y = torch.ops.mkldnn._linear_pointwise(tokens, self.packed, bias, "none", [], "")
        return y.permute(0, 3, 1, 2).to(x.dtype)


def pack(model: nn.Module) -> None:
    """Replace the 1 x 1 convolutions of attention and ConvFFN anywhere in ``model``, in place, where PyTorch has oneDNN."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return
    for module in model.modules():
        if isinstance(module, (SuperTokenAttention, ConvFFN)):
            for name, child in list(module.named_children()):
                if type(child) is nn.Conv2d and child.kernel_size == (1, 1) and child.weight.dtype == torch.float32:
                    setattr(module, name, PackedConv(child))
