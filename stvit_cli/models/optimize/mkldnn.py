"""Convolutions with weights packed for oneDNN, for inference on a CPU in float32 or bfloat16.

PyTorch's convolution packs its weights at every call. With few tokens, as in the last stage with one image, that takes longer
than the product. oneDNN cannot multiply tensors of two dtypes ("could not create a primitive descriptor"), so these layers
convert what they are given to the dtype of their weights, whatever autocast does around them.

Shapes: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stvit_cli.models.accelerated import Conv2d
from stvit_cli.models.layers import ConvFFN, ConvGelu, ConvPosEnc, PatchMerging
from stvit_cli.models.stvit import STViT
from stvit_cli.models.super_token import SuperTokenAttention

Activation = Literal["none", "gelu"]
CONVOLUTIONS = (nn.Conv2d, Conv2d)


def can_pack() -> bool:
    """Return whether this PyTorch has oneDNN and its packed operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 by instructions of its own: AVX512-BF16, AMX, or ARM's."""
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.11
        return torch.cpu._is_avx512_bf16_supported()
    capabilities: Any = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"))


def computed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what products of a dtype are computed in: float32 where the CPU has no instructions for bfloat16.

    There oneDNN has no packed product of bfloat16, or a slow one. The sums are in float32 in either case.
    """
    is_native = dtype != torch.bfloat16 or (cpu_has_bf16() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype if is_native else torch.float32


class PackedConv(nn.Module):
    """A packed 1 x 1 convolution of (B, C, H, W) in channels-last memory. It cannot be copied or exported.

    Args:
        conv: the convolution.
        dtype: of the weights, and in bfloat16 of the result. In float32 the result has the dtype of the tokens.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype, self.computed = dtype, computed_dtype(dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(_rounded(conv.weight.flatten(1), dtype).to(self.computed))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.bias)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        tokens = x.permute(0, 2, 3, 1).to(self.computed)
        bias = bias if bias is None else bias.to(self.computed)
        with _without_autocast():
            y = torch.ops.mkldnn._linear_pointwise(tokens, self.packed, bias, "none", [], "")
        return y.permute(0, 3, 1, 2).to(self.dtype if self.dtype != torch.float32 else x.dtype)


class PackedConv2d(nn.Module):
    """A packed convolution of (B, C, H, W), any kernel and groups, then an activation, channels-last. It cannot be copied.

    Args:
        conv: the convolution.
        dtype: as for `PackedConv`.
        activation: applied to the result.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.float32, activation: Activation = "none") -> None:
        super().__init__()
        self.dtype, self.computed = dtype, computed_dtype(dtype)
        self.weight, self.bias = conv.weight, conv.bias  # the custom kernels take them as they are
        self.in_channels = conv.in_channels
        assert isinstance(conv.padding, tuple)
        self.geometry = [*conv.padding], [*conv.stride], [*conv.dilation], conv.groups
        self.activation = activation
        weight = _rounded(conv.weight, dtype).to(self.computed, memory_format=torch.channels_last)
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry, None)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.computed)
        image = x.to(self.computed, memory_format=torch.channels_last)
        name = self.activation
        with _without_autocast():
            y = torch.ops.mkldnn._convolution_pointwise(image, self.packed, bias, *self.geometry, name, [], "none")
        return y.to(self.dtype if self.dtype != torch.float32 else x.dtype)


def pack(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace the convolutions of STViT's layers in a fused model, in place, if PyTorch has oneDNN.

    Args:
        model: a copy made by `fuse`.
        dtype: of the packed weights, and of the tokens between the layers.
    """
    if not can_pack():
        return
    for module in list(model.modules()):
        if isinstance(module, (SuperTokenAttention, ConvFFN)):
            _replace(module, dtype, PackedConv)
        elif isinstance(module, (ConvPosEnc, PatchMerging)):
            _replace(module, dtype, PackedConv2d)
        elif isinstance(module, ConvGelu) and type(module.conv) in CONVOLUTIONS:
            module.conv = PackedConv2d(module.conv, dtype, "gelu")  # type: ignore[assignment]
            module.has_gelu = False
        elif isinstance(module, STViT) and isinstance(module.proj, nn.Conv2d):
            module.proj = PackedConv(module.proj, dtype)  # type: ignore[assignment]


def _replace(module: nn.Module, dtype: torch.dtype, kind: type[PackedConv] | type[PackedConv2d]) -> None:
    for name, child in list(module.named_children()):
        if not isinstance(child, CONVOLUTIONS) or type(child) not in CONVOLUTIONS or child.weight.dtype != torch.float32:
            continue
        if kind is PackedConv2d or child.kernel_size == (1, 1):
            setattr(module, name, kind(child, dtype))


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype)


def _without_autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
