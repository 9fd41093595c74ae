"""The stem with packed convolutions, its batch norms folded into the convolutions after them, exactly.

A batch norm s g + t before a convolution that pads with zeros cannot be folded as it is: in the padding s g + t must be 0, which
is g = -t / s and not 0. So each convolution computes one more pixel on every side, these pixels are overwritten by -t / s, and
the next one pads that much less. The batch norm of the last layer stays.

Shapes: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from stvit_cli.models.layers import ConvGelu, Stem
from stvit_cli.models.optimize.fuse import is_batch_norm, scale_and_shift
from stvit_cli.models.optimize.mkldnn import PackedConv2d

LARGEST_EDGE = 1e3
"""The largest \\|t / s\\| that is folded: beyond it, the rounding of s (-t / s) + t would show."""


class PackedStem(nn.Module):
    """The same function as a `layers.Stem` of a fused copy: (B, in_chans, H, W) -> (B, dim, H / 4, W / 4), channels-last.

    Args:
        stem: left unchanged.
        dtype: of the packed weights and of the result; see `PackedConv2d`.
    """

    def __init__(self, stem: Stem, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        layers = [layer for layer in stem if isinstance(layer, ConvGelu)]
        edges = [_edge(layer.norm) for layer in layers[:-1]] + [None]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        before: nn.Module | None = None  # the batch norm to fold into the next convolution
        for number, (layer, edge) in enumerate(zip(layers, edges, strict=True)):
            self.convs.append(PackedConv2d(_with_folded(layer.conv, before, has_edge=edge is not None), dtype, "gelu"))
            self.register_buffer(f"edge{number}", None if edge is None else edge.to(layer.conv.weight.dtype))
            self.norms.append(nn.Identity() if edge is not None else layer.norm)
            before = None if edge is None else layer.norm

    def forward(self, x: Tensor) -> Tensor:
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            edge = getattr(self, f"edge{number}")
            if edge is None:
                x = norm(x)
                continue
            edge = edge.to(x.dtype)[:, None]
            for side in (x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]):
                side.copy_(edge)
        return x


def _edge(norm: nn.Module) -> Tensor | None:
    """Return -t / s (C) of a batch norm s g + t; None where it cannot be folded."""
    if not is_batch_norm(norm):
        return None
    scale, shift = scale_and_shift(norm)
    edge = -shift / scale
    return edge if bool((edge.abs() < LARGEST_EDGE).all()) else None


def _with_folded(conv: nn.Conv2d, before: nn.Module | None, *, has_edge: bool) -> nn.Conv2d:
    """Return a copy of a convolution with the batch norm before it folded in, for an input with an edge of one pixel.

    With ``has_edge`` its result has such an edge too, of any value.
    """
    folded = copy.deepcopy(conv)
    assert isinstance(conv.padding, tuple)
    more = [stride * has_edge - (before is not None) for stride in conv.stride]
    folded.padding = (conv.padding[0] + more[0], conv.padding[1] + more[1])
    if before is not None:
        scale, shift = scale_and_shift(before)
        weight = conv.weight.double()
        assert folded.bias is not None
        with torch.no_grad():
            folded.weight.copy_(weight * scale[:, None, None])
            folded.bias += weight.sum((2, 3)) @ shift
    return folded


def pack_stems(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace the stems of a fused model, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Stem and all(layer.conv.bias is not None for layer in child if isinstance(layer, ConvGelu)):
                setattr(parent, name, PackedStem(child, dtype))
