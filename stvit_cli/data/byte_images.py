"""Batches of images as bytes: what a loader's workers hand over, a quarter of the size of the floats that the model takes.

Normalization and the writing of erased rectangles come last, on the device of the model. The values of a rectangle are random
numbers of its sample, drawn by the worker, so that a batch is the same on every device.

B batch, C channels of the model, D channels of the images (1: grey, 3: RGB), S side of the square input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from stvit_cli.data import pixels as compiled


@dataclass(frozen=True)
class Erased:
    """An erased rectangle of an image: rows top to top + height, columns left to left + width, all channels."""

    image: int
    top: int
    left: int
    height: int
    width: int
    shape: tuple[int, ...]
    """Shape of its values, (C, height, width) or (C, 1, 1)."""


@dataclass(frozen=True)
class ByteImages:
    """A batch of images before normalization.

    Attributes:
        pixels: (B, S, S, D), uint8.
        mean: of each channel, in 0..1.
        std: of each channel.
        erased: the rectangles that are erased after normalization.
        values: the values of all rectangles, one after the other, float32.
    """

    pixels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    erased: tuple[Erased, ...] = ()
    values: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """Return the images as the model takes them: (B, C, S, S), float32, in channels-last memory, on a device.

        >>> ByteImages(torch.full((1, 2, 2, 1), 255, dtype=torch.uint8), (0.5,), (0.5,)).on(torch.device("cpu")).unique()
        tensor([1.])
        """
        moved = self.pixels.to(device, non_blocking=True)
        functions = compiled.library(build=False) if device.type == "cpu" else None
        if functions is not None:
            batch = functions.look_up(moved.contiguous(), _table(self.mean, self.std)).permute(0, 3, 1, 2)
        else:
            batch = normalized(moved, *(torch.tensor(values, device=device) for values in (self.mean, self.std)))
        if self.values is not None:
            values, start = self.values.to(device, non_blocking=True), 0
            for found in self.erased:
                count = torch.Size(found.shape).numel()
                rows, columns = slice(found.top, found.top + found.height), slice(found.left, found.left + found.width)
                batch[found.image, :, rows, columns] = values[start : start + count].view(found.shape)
                start += count
        return batch

    def pin_memory(self) -> ByteImages:
        """Return the batch in pinned memory; torch's DataLoader calls this."""
        values = None if self.values is None else self.values.pin_memory()
        return ByteImages(self.pixels.pin_memory(), self.mean, self.std, self.erased, values)


def normalized(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return images of bytes as `transforms` normalizes them.

    Args:
        pixels: (B, S, S, D), uint8.
        mean: (C,).
        std: (C,).

    Returns:
        (B, C, S, S), float32, in channels-last memory.
    """
    count, size, channels = len(pixels), pixels.shape[1], len(mean)
    values = pixels.expand(-1, -1, -1, channels).to(torch.float32, memory_format=torch.contiguous_format)
    rows = values.view(count * size, size * channels)  # vectors of the processor's, where a row of C values is shorter than one
    # By a tensor: a GPU multiplies by the reciprocal of a number, which rounds otherwise.
    rows.div_(torch.full((1,), 255.0, device=values.device)).sub_(mean.repeat(size)).div_(std.repeat(size))
    return values.permute(0, 3, 1, 2)


@cache
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return the normalized value of each byte for each channel, (C, 256)."""
    every = torch.arange(256, dtype=torch.float32).div_(255).expand(len(mean), -1)
    return every.sub(torch.tensor(mean)[:, None]).div_(torch.tensor(std)[:, None])


def new_block(shape: Sequence[int], dtype: torch.dtype = torch.uint8) -> Tensor:
    """Return an uninitialized tensor: in a worker in shared memory, where the training process reads it without a copy."""
    if get_worker_info() is None:
        return torch.empty(*shape, dtype=dtype)
    empty: Any = torch.empty(0, dtype=dtype)
    count = torch.Size(shape).numel()
    block: Tensor = empty.new(empty._typed_storage()._new_shared(count, device=empty.device)).resize_(*shape)
    return block


def without_bytes(batch: Any, device: torch.device) -> Any:
    """Return a batch, a dict, with `ByteImages` in it as tensors on a device; others as they are."""
    if isinstance(batch, dict):
        return {key: value.on(device) if isinstance(value, ByteImages) else value for key, value in batch.items()}
    return batch
