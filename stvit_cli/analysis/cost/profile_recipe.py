"""What the model of a recipe costs, heads and all."""

from __future__ import annotations

from typing import Any

from torch import nn

from stvit_cli.analysis.cost.profile import MIN_IMAGE_SIZE, describe_cost
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.detection.cost import CountedDetector
from stvit_cli.tasks.detection.detector import create_detector
from stvit_cli.tasks.segmentation.upernet import create_segmenter

COCO_CLASSES = 80
PUBLISHED_SIZES = {"detection": (800, 1280), "segmentation": (512, 2048)}
"""Height and width for which the costs of such models are published."""


def profile_recipe(recipe: Recipe, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Return of a recipe's model what `profile_models` returns; of a detector with COCO's 80 classes.

    Args:
        image_size: height and width; as published for the task, or the recipe's own, if none.

    Raises:
        UserError: no such model, or a side below 32 pixels.
    """
    size = image_size or PUBLISHED_SIZES.get(recipe.task, (recipe.data.image_size,) * 2)
    if min(size) < MIN_IMAGE_SIZE:
        raise UserError(f"--image-size {size[0]}x{size[1]}: a side is at least {MIN_IMAGE_SIZE} pixels.")
    return describe_cost(f"{recipe.name} {recipe.model.name}", _build(recipe), size, None)


def _build(recipe: Recipe) -> nn.Module:
    name, grid_sizes = recipe.model.name, recipe.model.grid_sizes
    if recipe.task == "detection":
        return CountedDetector(create_detector(name, COCO_CLASSES, recipe.detection, grid_sizes=grid_sizes))
    if recipe.task == "segmentation":
        section = recipe.segmentation
        return create_segmenter(name, len(section.class_names), section, grid_sizes=grid_sizes)
    return create_model(name, in_chans=recipe.model.in_chans, grid_sizes=grid_sizes)
