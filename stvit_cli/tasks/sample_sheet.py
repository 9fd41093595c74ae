"""What the tasks' sheets of augmented training samples share: the first samples of a run, as images. C channels, H W sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stvit_cli.data.sampling import sample_order
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Task


def first_samples(task: Task, recipe: Recipe, num_images: int) -> list[dict[str, Any]]:
    """Return the first training samples of the first epoch that can be opened; as many that cannot be are tried.

    Args:
        task: the task of the recipe.
        recipe: its seed determines the samples.
        num_images: the largest number of samples.
    """
    num_samples = len(task.train_set)  # type: ignore[arg-type]
    keys = sample_order(num_samples, 0, recipe.train.seed, recipe.augment.repeats, task.class_balance, task.shuffle_blocks)
    samples: list[dict[str, Any]] = []
    for key in keys[: 2 * num_images]:
        if len(samples) == num_images:
            break
        try:
            samples.append(task.train_set[key])
        except UserError:
            continue
    return samples


def as_image(pixels: Tensor) -> Image.Image:
    """Return pixels (C, H, W) of 0 to 1, in grey or in colour, as an image with 8 bits a channel."""
    array = pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array if array.shape[2] == 3 else array[..., 0]))


def denormalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Return normalized pixels (C, H, W) as an image with 8 bits a channel."""
    factor, offset = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    return as_image(pixels.float() * factor + offset)
