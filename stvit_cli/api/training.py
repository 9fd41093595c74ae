"""Training runs: `train`, `resume` and `dry_run`. What can be wrong is found before anything is built or written."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stvit_cli.api import own_data
from stvit_cli.api.overrides import Overrides, as_words
from stvit_cli.api.results import DryRunResult, TrainingResult
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_main_process, require_group, restart_count, world_size
from stvit_cli.utils.text import file_name

if TYPE_CHECKING:
    from stvit_cli.engine.branch import Branch
    from stvit_cli.recipe import Recipe
    from stvit_cli.tasks import Task

AnyPath = str | os.PathLike[str]

logger = logging.getLogger(__name__)


def train(
    recipe: AnyPath | None = None,
    overrides: Overrides = (),
    *,
    output: AnyPath | None = None,
    model: str | None = None,
    data: AnyPath | None = None,
    weights: AnyPath | None = None,
) -> TrainingResult:
    """Train a model by a recipe, from scratch or from weights.

    Args:
        recipe: the name of a shipped recipe, or a file. None: the one that fits the folder ``data``.
        overrides: recipe keys to set.
        output: the run directory, new or empty; by default ``runs/RECIPE-TIME``.
        model: sets ``model.name``.
        data: sets ``data.dir``, the folder of the data set, or its annotation file.
        weights: start from this weights file or run directory. Another number of classes, of channels and another image size are
            possible.

    Raises:
        UserError: recipe, data, weights or output are not usable; what was saved before is intact.
        Interrupted: a signal asked to stop; the state is saved, and `resume` continues.
    """
    require_group()
    words = as_words(overrides, model, data)
    settings = _recipe(recipe, words, weights)
    with new_run_dir(output, settings.name) as run_dir:
        return _fit(settings, run_dir, weights=weights, given=own_data.keys_of(words))


def resume(
    run: AnyPath,
    overrides: Overrides = (),
    *,
    recipe: AnyPath | None = None,
    from_step: int | None = None,
    output: AnyPath | None = None,
) -> TrainingResult:
    """Resume a run from its last checkpoint, or start a new run from an earlier one.

    Args:
        run: the run directory.
        overrides: recipe keys to set. Without ``from_step`` only keys that do not change what is learned, such as
            ``data.num_workers``.
        recipe: takes the place of the run's own recipe.
        from_step: start a new run from the checkpoint of this step; then any key may change but the model and its classes.
        output: the directory of that new run; by default ``runs/RECIPE-TIME``.

    Raises:
        UserError: no run is there, it is in use or damaged, its recipe has changed, or it has no checkpoint of ``from_step``.
        Interrupted: a signal asked to stop; the state is saved.
    """
    require_group()
    run_dir = Path(run)
    if from_step is None:
        if output is not None:
            raise UserError("A resumed run stays in its directory; leave output out, or start a new run: add from_step=N.")
        return _fit(_saved_recipe(run_dir, recipe, overrides, locks=True), run_dir, resume=True)
    words = as_words(overrides)
    settings, branch = _branch(run_dir, from_step, recipe, words)
    with new_run_dir(output, settings.name) as new_dir:
        return _fit(settings, new_dir, branch=branch, given=own_data.keys_of(words))


def dry_run(
    recipe: AnyPath | None = None,
    overrides: Overrides = (),
    *,
    model: str | None = None,
    data: AnyPath | None = None,
    weights: AnyPath | None = None,
    resume: AnyPath | None = None,
    from_step: int | None = None,
) -> DryRunResult:
    """Build everything a run needs, take one real training step, and write nothing.

    The arguments are those of `train`; with ``resume``, a run directory, those of `resume`.

    Raises:
        UserError: what would end the run at its start.
    """
    from stvit_cli import engine

    require_group()
    if resume is not None and from_step is not None:
        settings, _ = _branch(Path(resume), from_step, recipe, as_words(overrides, model, data))
    elif resume is not None:
        settings = _saved_recipe(Path(resume), recipe, as_words(overrides, model, data), locks=False)
    else:
        settings = _recipe(recipe, as_words(overrides, model, data), weights)
    if resume is None or from_step is not None:
        weights = weights if resume is not None else _initial_weights(settings, weights)
        task, settings = _build_new(settings, weights, own_data.keys_of(as_words(overrides, model, data)))
    else:
        task = _build(settings, weights)
    return DryRunResult(**engine.dry_run(task, settings))


@contextmanager
def new_run_dir(output: AnyPath | None, name: str) -> Iterator[Path]:
    """Yield the directory of a new run: ``output``, or a new one under ``runs``, named after the recipe and the time.

    The latter is made here, so that of two runs that start at once each has its own; where the run ends before it writes into
    it, it is removed again.

    Raises:
        UserError: ``output`` holds something, or it is not given but several processes must know it.
    """
    from stvit_cli.engine.run_dir import make_new, require_free
    from stvit_cli.engine.run_lock import require_unlocked

    if output is None and world_size() > 1:
        raise UserError("With several processes the run directory must be named, so that all use the same one: output=DIR")
    if output is not None:
        run_dir = Path(output)
        if is_main_process() and not restart_count():
            require_unlocked(run_dir)
            require_free(run_dir)
        yield run_dir
        return
    is_parent_new = not os.path.lexists("runs")
    run_dir = make_new(Path("runs") / f"{file_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        yield run_dir
    finally:
        for folder in (run_dir, run_dir.parent)[: 1 + is_parent_new]:
            with suppress(OSError):  # not empty: the run is in it
                folder.rmdir()


def _recipe(recipe: AnyPath | None, words: list[str], weights: AnyPath | None = None) -> Recipe:
    given = own_data.keys_of(words)
    if "schedule.min_steps" not in given and given.keys() & {"schedule.epochs", "schedule.steps"}:
        words = [*words, "schedule.min_steps=null"]  # the user has chosen the length
    settings = own_data.new_recipe(recipe, words, weights)
    frozen = [key for key in ("freeze_backbone", "unfreeze_epochs") if getattr(settings.finetune, key)]
    if frozen and weights is None and not settings.model.pretrained and is_main_process():
        logger.warning("finetune.%s: no weights are given, so the backbone is frozen at random initial values", frozen[0])
    return settings


def _saved_recipe(run_dir: Path, recipe: AnyPath | None, overrides: Overrides, *, locks: bool) -> Recipe:
    """Return the recipe to resume a run by. Raises UserError where it is another one, or the run is in use."""
    from stvit_cli.engine.run_dir import RunDir
    from stvit_cli.engine.run_lock import require_unlocked
    from stvit_cli.recipe import io as recipe_io

    saved = RunDir(run_dir)
    saved.require_run()
    if is_main_process() and not restart_count() and locks:
        require_unlocked(run_dir)
    words = as_words(overrides)
    settings = _with_data_of(saved.recipe, recipe_io.load(saved.recipe if recipe is None else Path(recipe), words), words)
    settings = own_data.as_saved(settings, recipe_io.load(saved.recipe), own_data.keys_of(words))
    saved.check_resumable(settings)
    return settings


def _branch(run_dir: Path, step: int, recipe: AnyPath | None, overrides: Overrides) -> tuple[Recipe, Branch]:
    """Return the recipe of a new run from a checkpoint, and that checkpoint. Raises UserError where there is none."""
    from stvit_cli.engine.branch import Branch
    from stvit_cli.engine.run_dir import RunDir
    from stvit_cli.recipe import io as recipe_io

    branch = Branch(run_dir, step)
    branch.require()
    own, words = RunDir(run_dir).recipe, as_words(overrides)
    settings = recipe_io.load(own if recipe is None else Path(recipe), words)
    settings = own_data.as_saved(settings, recipe_io.load(own), own_data.keys_of(words))
    return recipe_io.with_absolute_paths(settings if settings.data.dir else _with_data_of(own, settings, words)), branch


def _with_data_of(own: Path, recipe: Recipe, words: list[str]) -> Recipe:
    """Return a recipe with the data folder of a run's ``own`` recipe, unless an override sets another one.

    A shipped recipe names none, and a relative one of a file would be another folder here.
    """
    from stvit_cli.recipe import io as recipe_io

    if any(word.partition("=")[0].strip() == "data.dir" for word in words):
        return recipe
    folder = recipe_io.load(own).data.dir
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"dir": folder})})


def _resolved(recipe: Recipe) -> Recipe:
    """Return the recipe of a new run with the choices that depend on its data made, and say each of them."""
    from stvit_cli import tasks

    resolved, notes = tasks.resolve(recipe)
    for note in notes if is_main_process() else ():
        logger.info("%s", note)
    return resolved


def _build_new(recipe: Recipe, weights: AnyPath | None, given: Collection[str]) -> tuple[Task, Recipe]:
    """Build the task of a new run, and fit the run's length and batches to the number of its images; say what was chosen.

    Raises:
        UserError: as `tasks.build`; where the data are of another layout, the message names the recipe that fits.
    """
    from stvit_cli import engine

    try:
        recipe = _resolved(recipe)
        task = _build(recipe, weights)
    except UserError as error:
        raise own_data.explain_mismatch(error, recipe) from None
    recipe, notes = engine.fit_to_data(recipe, len(cast(Sized, task.train_set)), world_size(), task.batch_multiple, given)
    for note in notes if is_main_process() else ():
        logger.info("%s", note)
    return task, recipe


def _initial_weights(recipe: Recipe, weights: AnyPath | None) -> AnyPath | None:
    """Return the file that a new run starts from: the one given, or timm's where the recipe says so."""
    if weights is not None or not recipe.model.pretrained:
        return weights
    from stvit_cli.tasks.timm_choices import download_pretrained

    return download_pretrained(recipe.model.name)


def _build(recipe: Recipe, weights: AnyPath | None = None) -> Task:
    from stvit_cli import tasks
    from stvit_cli.tasks.loading import weights_file

    return tasks.build(recipe, weights=None if weights is None else weights_file(Path(weights)))


def _fit(
    recipe: Recipe,
    run_dir: Path,
    *,
    weights: AnyPath | None = None,
    resume: bool = False,
    branch: Branch | None = None,
    given: Collection[str] = (),
) -> TrainingResult:
    from stvit_cli import engine

    if not resume and branch is None:
        weights = _initial_weights(recipe, weights)
    task, recipe = (_build(recipe, weights), recipe) if resume else _build_new(recipe, weights, given)
    metrics = engine.fit(task, recipe, run_dir, resume=resume, branch=branch)
    if recipe.data.kind == "digits" and is_main_process():
        from stvit_cli.data.digits import write_samples

        write_samples(run_dir / "samples")  # the digits are in no folder: images to try `predict` on
    return TrainingResult(run_dir, metrics)
