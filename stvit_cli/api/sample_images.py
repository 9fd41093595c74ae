"""The first images that the loggers of a run get: augmented training samples, as a report shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stvit_cli.engine.loggers.base import LoggedImage
    from stvit_cli.recipe import Recipe
    from stvit_cli.tasks import Task

NUM_SAMPLES = 8


def sample_images(recipe: Recipe, task: Task) -> list[LoggedImage]:
    """Return augmented training samples with their truth; an empty list for a task that has no sheet of them."""
    from stvit_cli.engine.loggers.base import LoggedImage
    from stvit_cli.tasks import registry

    draw = registry.get(recipe.task).sample_sheet
    shown = [] if draw is None else draw(task, NUM_SAMPLES)
    return [
        LoggedImage(
            f"train/sample-{number}", thumbnail.data, ", ".join([image.name, *image.caption, *filter(None, [thumbnail.label])])
        )
        for number, image in enumerate(shown)
        for thumbnail in image.thumbnails[:1]
    ]
