"""A segmenter as one graph for ONNX files: adaptive pooling as products of matrices, which any size of the image has.

B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.tasks.exported import ExportForm
from stvit_cli.tasks.segmentation.task import section_of
from stvit_cli.tasks.spec import Trained


class ExportedAdaptivePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` for a graph that holds for every size; ONNX has none: (B, C, H, W) -> (B, C, side, side).

    Bin i of a side of H pixels is from floor(i H / side) to ceil((i + 1) H / side), as in PyTorch.

    Args:
        side: of the output.

    Example:
        >>> x = torch.rand(1, 2, 7, 5)
        >>> torch.allclose(ExportedAdaptivePool(3)(x), nn.AdaptiveAvgPool2d(3)(x), atol=1e-6)
        True
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self._means(x.shape[2], x), self._means(x.shape[3], x)
        return rows @ x @ columns.transpose(0, 1)

    def _means(self, length: Any, x: Tensor) -> Tensor:
        """Return the matrix (side, length) that averages each bin."""
        index = torch.arange(self.side, device=x.device)[:, None]
        position = torch.arange(length, device=x.device)[None]
        first = torch.div(index * length, self.side, rounding_mode="floor")
        end = torch.div((index + 1) * length + self.side - 1, self.side, rounding_mode="floor")
        inside = ((position >= first) & (position < end)).to(x.dtype)
        return inside / inside.sum(1, keepdim=True)


def export_form(trained: Trained) -> ExportForm:
    """Return a segmenter as one graph: images, resized and normalized, to logits (B, K, H, W)."""
    section = section_of(trained.info)
    preparation = {
        "resize": {"max_long_side": section.max_size[0], "max_short_side": section.max_size[1], "antialias": True},
        "size_divisor": section.size_divisor,
        "padding": "right and below to a multiple of size_divisor, the last column and row repeated",
        "window": section.window,
        "window_stride": section.window_stride,
        "scales": list(section.eval_scales),
        "flip": section.eval_flip,
        "logits": "at the size of the input; cut the padding off, resize them to the image (bilinear), then take the largest",
    }
    return ExportForm(
        exportable(fuse(trained.model)),
        lambda images: (trained.model(images),),
        ("logits",),
        is_map=True,
        preparation=preparation,
    )


def exportable(segmenter: nn.Module) -> nn.Module:
    """Return a copy of a segmenter whose adaptive pooling can be exported."""
    copied = copy.deepcopy(segmenter)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size != 1:
                side = child.output_size
                assert isinstance(side, int)
                setattr(module, name, ExportedAdaptivePool(side))
    return copied
