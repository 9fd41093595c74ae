"""What a task's models are in an exported file, and such a file as a model again.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Run = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""Computes an exported file: images (B, C, H, W) to its outputs by name."""


ENDINGS = {".onnx": "onnxruntime", ".xml": "openvino"}
"""The endings of files that can be run, each with its runtime."""
CROP_IS_DEFAULT = "crop_pct_is_default"
"""The key of the metadata that says that `crop_pct` is the default for the image size: another size has another one."""


def files_of(path: Path) -> list[Path]:
    """Return the files that an exported file consists of: OpenVINO keeps the weights in a second one.

    Example:
        >>> [str(file) for file in files_of(Path("model.xml"))]
        ['model.xml', 'model.bin']
    """
    return [path, path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [path]


def is_exported(path: Path) -> bool:
    """Return whether a name is that of an exported file.

    Example:
        >>> is_exported(Path("model.onnx")), is_exported(Path("model.safetensors"))
        (True, False)
    """
    return path.suffix.lower() in (*ENDINGS, ".pt2")


@dataclass(frozen=True)
class ExportForm:
    """A model as one graph.

    Attributes:
        module: images (B, C, H, W) to a tensor, or a tuple of tensors; what is traced.
        reference: the same outputs, as the task's own model computes them; what the file is compared with.
        outputs: the names of the outputs.
        batch: False: it takes one image.
        any_size: False: it takes images of its own size alone.
        is_map: the output has the height and width of the input.
        preparation: how an image becomes the graph's input, and what else is to know, for the metadata.
    """

    module: nn.Module
    reference: Callable[[Tensor], tuple[Tensor, ...]]
    outputs: tuple[str, ...]
    batch: bool = True
    any_size: bool = True
    is_map: bool = False
    preparation: Mapping[str, Any] | None = None

    @property
    def is_detector(self) -> bool:
        """Whether the outputs are a number of objects that depends on the image, not an array of a fixed shape."""
        return "boxes" in self.outputs


class ExportedModel(nn.Module):
    """An exported file in another runtime, with the interface of the task's own model, on the CPU.

    Args:
        run: computes the file.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs for images (B, C, H, W), on their device."""
        found = self.run(np.ascontiguousarray(images.float().cpu().numpy()))
        return {name: torch.from_numpy(np.array(value)).to(images.device) for name, value in found.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a classifier or a segmenter."""
        return self.outputs(images)["logits"]
