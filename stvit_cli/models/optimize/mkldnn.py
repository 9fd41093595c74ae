"""Convolutions with weights packed for oneDNN, for inference on a CPU in float32 or bfloat16.

PyTorch's convolution packs its weights at every call. With few tokens, as in the last stage with one image, that takes longer
than the product. oneDNN cannot multiply tensors of two dtypes ("could not create a primitive descriptor"), so these layers
convert what they are given to the dtype of their weights, whatever autocast does around them.

Shapes: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.models.accelerated import Conv2d
from stvit_cli.models.layers import ConvFFN, ConvPosEnc, PatchMerging
from stvit_cli.models.stvit import STViT
from stvit_cli.models.super_token import SuperTokenAttention
from stvit_cli.utils.text import first_line

logger = logging.getLogger(__name__)

Activation = Literal["none", "gelu"]
CONVOLUTIONS = (nn.Conv2d, Conv2d)

CONVOLUTION_FROM = 256
MAX_SIZES = 256
ADDED = ("proj", "fc2")
"""The products of a block whose result is added to the tokens."""
Geometry = tuple[list[int], list[int], list[int], int]
POINTWISE: Geometry = ([0, 0], [1, 1], [1, 1], 1)
"""Padding, stride, dilation and groups of a 1 x 1 convolution."""


def can_pack() -> bool:
    """Return whether this PyTorch has oneDNN and its packed operators."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 by instructions of its own: AVX512-BF16, AMX, or ARM's."""
    if not hasattr(torch.cpu, "get_capabilities"):  # an older PyTorch
        return torch.cpu._is_avx512_bf16_supported()
    capabilities: Any = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"))


def computed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what products of a dtype are computed in: float32 where the CPU has no instructions for bfloat16.

    There oneDNN has no packed product of bfloat16, or a slow one. The sums are in float32 in either case.
    """
    return torch.float32 if dtype == torch.bfloat16 and not _multiplies_bf16() else dtype


@cache
def _multiplies_bf16() -> bool:
    """Return whether oneDNN multiplies packed bfloat16 on this CPU, by a trial: it depends on its version too."""
    if not (cpu_has_bf16() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    try:
        with torch.no_grad(), _without_autocast():
            return packed_products_are_right(torch.bfloat16)
    except RuntimeError as error:
        logger.warning("oneDNN has no product of packed bfloat16 here (%s). Products are computed in float32.", first_line(error))
        return False


def packed_products_are_right(dtype: torch.dtype) -> bool:
    """Run each packed operator of this file on small tensors, and return whether all results are right.

    Raises:
        RuntimeError: oneDNN lacks one.
    """
    channels, ops = 32, torch.ops.mkldnn
    pad: Geometry = ([1, 1], [1, 1], [1, 1], 1)
    x = torch.linspace(-1, 1, 2 * channels * 9).view(2, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
    pointwise = torch.linspace(-0.2, 0.5, channels**2).view(channels, channels, 1, 1).to(dtype)
    dense = torch.linspace(-0.1, 0.2, channels**2 * 9).view(channels, channels, 3, 3).to(dtype)
    depthwise = dense[:, :1].contiguous()
    packed, added = PackedWeight(pointwise, POINTWISE).for_input(x), x.clone()
    ops._convolution_pointwise_.binary(added, x, packed, None, *POINTWISE, "add", None, None, [], None)
    product = F.conv2d(x.float(), pointwise.float())
    pairs = [
        (ops._convolution_pointwise(x, packed, None, *POINTWISE, "none", [], ""), product),
        (
            ops._linear_pointwise(x.permute(0, 2, 3, 1), _packed_linear(pointwise), None, "none", [], ""),
            product.permute(0, 2, 3, 1),
        ),
        (added, x.float() + product),
    ]
    for weight, groups in ((dense, 1), (depthwise, channels)):
        geometry = (*pad[:3], groups)
        y = ops._convolution_pointwise(x, PackedWeight(weight, geometry).for_input(x), None, *geometry, "gelu", [], "none")
        pairs.append((y, F.gelu(F.conv2d(x.float(), weight.float(), padding=1, groups=groups))))
    return all(bool((found.float() - right).abs().max() <= 0.02 * right.abs().max()) for found, right in pairs)


class PackedWeight:
    """The weight of a convolution in oneDNN's layouts.

    Which layout is fastest depends on the size of the input. Another one is converted at every call, some at 0.03 GB/s: 40 ms for
    a patch merging that takes 3. So the weight is packed for each size at its first call; equal layouts share their memory.

    Args:
        weight: (C', C / groups, rows, columns).
        geometry: padding, stride, dilation and groups.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self._geometry, self._shape = geometry, weight.shape
        self._by_size: dict[torch.Size, Tensor] = {}
        first = self._pack(weight, None)
        self._by_layout = {_layout(first): first}

    def for_input(self, x: Tensor) -> Tensor:
        """Return the packed weight for an input of the size of ``x`` (B, C, H, W)."""
        found = self._by_size.get(x.shape)
        if found is None:
            dense = next(iter(self._by_layout.values())).to_dense().reshape(self._shape)  # with a dimension of groups, if any
            packed = self._pack(dense, list(x.shape))
            found = self._by_layout.setdefault(_layout(packed), packed)
            if len(self._by_size) >= MAX_SIZES:
                self._by_size.clear()
            self._by_size[x.shape] = found
        return found

    def _pack(self, weight: Tensor, size: list[int] | None) -> Tensor:
        channels_last = weight.detach().contiguous(memory_format=torch.channels_last)
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(channels_last, *self._geometry, size)
        return packed


def _packed_linear(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))
    return packed


def _layout(packed: Tensor) -> bytes:
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())


class PackedConv(nn.Module):
    """A packed 1 x 1 convolution of (B, C, H, W) in channels-last memory. It cannot be copied or exported.

    It runs by oneDNN's convolution, or, for few channels, by its inner product. The convolution is faster from 256 channels on,
    and can add its result to a tensor in place: on an EPYC with AVX2, 320 to 1280 channels of 8 x 14 x 14 tokens take 17.3 ms
    instead of 19.7, and 1280 to 320 with the addition 16.9 instead of 19.0.

    Args:
        conv: the convolution.
        dtype: of the weights, and in bfloat16 of the result. In float32 the result has the dtype of the tokens.
        adds: whether `add_to` is called; then `forward` is slower.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype = torch.float32, *, adds: bool = False) -> None:
        super().__init__()
        self.dtype, self.computed = dtype, computed_dtype(dtype)
        self.bias = conv.bias
        self.packed_bias = None if conv.bias is None else conv.bias.detach().to(self.computed)
        is_convolution = adds or conv.in_channels >= CONVOLUTION_FROM
        weight = _rounded(conv.weight, dtype).to(self.computed)
        self.packed = PackedWeight(weight, POINTWISE) if is_convolution else _packed_linear(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.packed_bias).to(self._result_dtype(x))

    def multiply(self, x: Tensor) -> Tensor:
        """Return the convolution of ``x`` without its bias, which a kernel adds."""
        return self._multiply(x, None).to(self._result_dtype(x))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the convolution of ``x`` to ``residual`` (B, C', H, W), in place, and return it."""
        if residual.dtype != self.computed or not isinstance(self.packed, PackedWeight):
            return residual.add_(self._multiply(x, self.packed_bias))
        x = x.to(self.computed)
        with _without_autocast():
            added: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
                residual, x, self.packed.for_input(x), self.packed_bias, *POINTWISE, "add", None, None, [], None
            )
        return added

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.to(self.computed)
        with _without_autocast():
            if isinstance(self.packed, PackedWeight):
                packed = self.packed.for_input(x)
                y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *POINTWISE, "none", [], "")
                return y
            y = torch.ops.mkldnn._linear_pointwise(x.permute(0, 2, 3, 1), self.packed, bias, "none", [], "")
            return y.permute(0, 3, 1, 2)

    def _result_dtype(self, x: Tensor) -> torch.dtype:
        return x.dtype if self.dtype == torch.float32 else self.dtype


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
        self.packed_bias = None if conv.bias is None else conv.bias.detach().to(self.computed)
        self.activation = activation
        self.packed = PackedWeight(_rounded(conv.weight, dtype).to(self.computed), self.geometry)

    def forward(self, x: Tensor) -> Tensor:
        image, name = x.to(self.computed, memory_format=torch.channels_last), self.activation
        packed = self.packed.for_input(image)
        with _without_autocast():
            y = torch.ops.mkldnn._convolution_pointwise(image, packed, self.packed_bias, *self.geometry, name, [], "none")
        return y.to(self.dtype if self.dtype != torch.float32 else x.dtype)


def pack_convolutions(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace the convolutions of STViT's layers after the stem in a fused model, in place.

    Args:
        model: a copy made by `fuse`.
        dtype: of the packed weights, and of the tokens between the layers.
    """
    for module in list(model.modules()):
        if isinstance(module, (SuperTokenAttention, ConvFFN)):
            _replace(module, dtype, PackedConv)
        elif isinstance(module, (ConvPosEnc, PatchMerging)):
            _replace(module, dtype, PackedConv2d)
        elif isinstance(module, STViT) and isinstance(module.proj, nn.Conv2d):
            module.proj = PackedConv(module.proj, dtype)  # type: ignore[assignment]


def _replace(module: nn.Module, dtype: torch.dtype, kind: type[PackedConv] | type[PackedConv2d]) -> None:
    for name, child in list(module.named_children()):
        if not isinstance(child, CONVOLUTIONS) or type(child) not in CONVOLUTIONS or child.weight.dtype != torch.float32:
            continue
        if kind is PackedConv2d:
            setattr(module, name, PackedConv2d(child, dtype))
        elif child.kernel_size == (1, 1):
            setattr(module, name, PackedConv(child, dtype, adds=name in ADDED))


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype)


def _without_autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
