"""Parameters and multiply-adds of a recipe's model, including the heads of detectors and segmenters."""

from __future__ import annotations

from typing import Any

from stvit_cli import tasks
from stvit_cli.analysis.cost.profile import describe_cost, require_image_size
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.timm_choices import resolve_model


def profile_recipe(recipe: Recipe, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Count parameters and multiply-adds of a recipe's model; detectors have COCO's 80 classes.

    Args:
        recipe: of any task.
        image_size: height and width in pixels; by default the published size of the task, or that of the recipe.

    Returns:
        See `profile_models`.

    Raises:
        UserError: unknown model, or a side below 32 pixels.
    """
    if recipe.model.name == "auto":
        raise UserError(f"{recipe.name}: model.name is auto, which a run resolves; expected a model such as model.name=stvit-s.")
    recipe, _ = resolve_model(recipe)
    spec = tasks.registry.get(recipe.task)
    size = image_size or spec.published_size or (recipe.data.image_size,) * 2
    require_image_size(size)
    return describe_cost(f"{recipe.name} {recipe.model.name}", spec.create_cost_model(recipe), size, None)
