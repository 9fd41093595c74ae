"""What a run's best weights predict for its validation images: read where it is kept, else evaluated and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stvit_cli import tasks
from stvit_cli.analysis.evaluate import evaluate
from stvit_cli.engine.kept_evaluation import file_hash, read_kept, write_evaluation
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.utils.text import first_line


@dataclass(frozen=True)
class RunPredictions:
    """What is known of a run's best weights.

    Attributes:
        run_dir: of the run.
        recipe: of the run.
        metrics: of the evaluation, by name.
        predictions: of the validation images.
        was_kept: they were read; False: the run was evaluated just now.
    """

    run_dir: RunDir
    recipe: Recipe
    metrics: Mapping[str, float]
    predictions: Predictions
    was_kept: bool


def predictions_of_run(path: Path, say: Callable[[str], None] = lambda line: None) -> RunPredictions:
    """Return what a run's best weights predict; a run of an earlier version is evaluated first, which is then kept.

    Args:
        path: the run directory.
        say: called with each warning.

    Raises:
        UserError: no run is there, it has no weights yet, or its data are not where they were.
    """
    run_dir = RunDir(path)
    run_dir.require_run()
    recipe = recipe_io.load(run_dir.recipe)
    read = tasks.registry.get(recipe.task).read_predictions
    if read is None:
        raise UserError(f"{path} is a run of the task {recipe.task}, which keeps no predictions.")
    kept = read_kept(run_dir, read)
    if kept is not None:
        return RunPredictions(run_dir, recipe, kept[0].metrics, kept[1], was_kept=True)
    trained = open_trained(path)
    before = file_hash(trained.path)
    found = evaluate(trained, recipe, say=say)
    if found.predictions is None:
        raise UserError(f"{path}: the predictions are on the first process alone; start it without torchrun.")
    try:
        if trained.path == run_dir.best and file_hash(run_dir.best) == before:  # a run that still trains may have replaced it
            write_evaluation(run_dir, recipe.task, None, found, trained.info.class_names)
    except (UserError, OSError) as error:
        say(f"The predictions are not kept: {first_line(error)}")
    return RunPredictions(run_dir, recipe, found.metrics, found.predictions, was_kept=False)
