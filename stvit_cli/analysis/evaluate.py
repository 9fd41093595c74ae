"""Evaluate a trained model on the data of its run or on another folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stvit_cli import engine, tasks
from stvit_cli.analysis.eval_drawings import write_drawings
from stvit_cli.engine.distributed import pick_device
from stvit_cli.engine.evaluation import Evaluated
from stvit_cli.models.optimize.inference import Precision
from stvit_cli.models.options import given, options_of
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.yaml import flow
from stvit_cli.tasks.loading import Trained
from stvit_cli.tasks.spec import ReportInput

NUM_DRAWN = 50
"""The largest number of images that an evaluation draws, where nothing else is said."""


def evaluate(
    trained: Trained,
    recipe: Recipe,
    *,
    whole: bool = False,
    say: Callable[[str], None] = lambda line: None,
    output: Path | None = None,
    max_images: int = NUM_DRAWN,
    precision: Precision = "fp32",
) -> Evaluated:
    """Evaluate a trained model on the validation data of a recipe.

    Args:
        trained: see `open_trained`.
        recipe: the data, transforms, batch size and device.
        whole: use all images of a folder without splits, instead of the held-out part.
        say: called with each warning about the data.
        output: a folder to draw the images into, with truth and prediction, the worst first; None: nothing is drawn.
        max_images: the largest number of images that are drawn.
        precision: what the model computes in, see `models.optimize.inference.for_inference`.

    Returns:
        The metrics and, on the main process, the predictions.

    Raises:
        UserError: the data are missing, or have other classes than the model.
    """
    evaluation = tasks.build_evaluation(recipe, trained.info, whole=whole)
    for line in evaluation.check_data():
        say(line)
    device = pick_device(recipe.train.device)
    sizes = {"batch_size": recipe.eval.batch_size, "num_workers": recipe.data.num_workers}
    model = trained.prepared(device, precision=precision)
    found = replace(engine.evaluate_keeping(evaluation, model, device, **sizes), precision=precision)
    if output is not None and found.predictions is not None:
        given = ReportInput(recipe, evaluation, found.predictions, trained, device, max_images, precision)
        write_drawings(given, output, say)
    return found


def recipe_for(trained: Trained, overrides: list[str]) -> Recipe:
    """Build a recipe that evaluates a weights file on a folder, with the transforms recorded in the file.

    Args:
        trained: see `open_trained`.
        overrides: ``key=value``, such as ``data.dir=FOLDER``.

    Raises:
        UserError: an override is invalid.
    """
    info, spec = trained.info, tasks.registry.get(trained.info.task)
    known: dict[str, Any] = {
        "name": trained.path.stem,
        "task": info.task,
        "model": {"name": info.model, "in_chans": info.in_chans, **given(options_of(info))},
        "data": {"kind": spec.folder_kind, "image_size": info.image_size, "mean": info.mean, "std": info.std},
        "augment": {"interpolation": info.interpolation},
        "eval": {"crop_pct": info.crop_pct},
    }
    if info.multi_label:
        known["data"] |= {"kind": "table", "multi_label": True}
    if spec.eval_batch_size is not None:
        known["eval"]["batch_size"] = spec.eval_batch_size
    if info.settings:
        known[info.task] = json.loads(info.settings)
    return recipe_io.from_text(flow(known), overrides, source=str(trained.path), saved=True)


def same_folder(one: str | None, other: str | None) -> bool:
    """Return whether two values of ``data.dir`` are the same folder."""
    return one is not None and other is not None and Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
