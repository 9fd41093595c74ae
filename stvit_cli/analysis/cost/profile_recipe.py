"""What the model of a recipe costs, heads and all."""

from __future__ import annotations

from typing import Any

from stvit_cli import tasks
from stvit_cli.analysis.cost.profile import MIN_IMAGE_SIZE, describe_cost
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe


def profile_recipe(recipe: Recipe, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Return of a recipe's model what `profile_models` returns; of a detector with COCO's 80 classes.

    Args:
        recipe: names the model, its heads and its image size.
        image_size: height and width; as published for the task, or the recipe's own, if none.

    Raises:
        UserError: no such model, or a side below 32 pixels.
    """
    spec = tasks.registry.get(recipe.task)
    size = image_size or spec.published_size or (recipe.data.image_size,) * 2
    if min(size) < MIN_IMAGE_SIZE:
        raise UserError(f"--image-size {size[0]}x{size[1]}: a side is at least {MIN_IMAGE_SIZE} pixels.")
    return describe_cost(f"{recipe.name} {recipe.model.name}", spec.create_cost_model(recipe), size, None)
