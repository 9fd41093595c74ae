"""A trained model evaluated anew: on the data of its run, or on another folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stvit_cli import engine, tasks
from stvit_cli.engine.distributed import pick_device
from stvit_cli.models.optimize.inference import for_inference
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.yaml import flow
from stvit_cli.tasks.loading import Trained

FOLDERS = {"classification": "imagefolder", "detection": "coco", "segmentation": "ade20k"}
"""What data.kind calls a folder of a person's own data, for each task."""


def evaluate(
    trained: Trained, recipe: Recipe, *, whole: bool = False, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Return the task's name and its metrics on the validation data of the recipe.

    Args:
        trained: the model, with what its weights file says of it.
        recipe: names the data.
        whole: where the data's folder is not divided, take all of it instead of the held-out share.
        say: is told what looks wrong with the data, a line at a time.

    Raises:
        UserError: the data are not there, or are of other classes than the model's.
    """
    evaluation = tasks.build_evaluation(recipe, trained.info, whole=whole)
    for line in evaluation.check_data():
        say(line)
    device = pick_device(recipe.train.device)
    sizes = {"batch_size": recipe.eval.batch_size, "num_workers": recipe.data.num_workers}
    return {"task": evaluation.name} | engine.evaluate(evaluation, for_inference(trained.model, device), device, **sizes)


def recipe_for(trained: Trained, words: list[str]) -> Recipe:
    """Return a recipe that prepares images of a folder as the weights file says, with the ``key=value`` words over it."""
    info, spec = trained.info, tasks.registry.get(trained.info.task)
    known: dict[str, Any] = {
        "name": trained.path.stem,
        "task": info.task,
        "model": {"name": info.model, "in_chans": info.in_chans, "grid_sizes": info.grid_sizes},
        "data": {"kind": spec.folder_kind, "image_size": info.image_size, "mean": info.mean, "std": info.std},
        "augment": {"interpolation": info.interpolation},
        "eval": {"crop_pct": info.crop_pct},
    }
    if spec.eval_batch_size is not None:
        known["eval"]["batch_size"] = spec.eval_batch_size
    if info.settings:
        known[info.task] = json.loads(info.settings)
    return recipe_io.from_text(flow(known), words, source=str(trained.path), saved=True)


def same_folder(one: str | None, other: str | None) -> bool:
    """Whether two folders of data, as recipes name them, are the same one."""
    return one is not None and other is not None and Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
