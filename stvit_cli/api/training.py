"""Training runs: `train`, `resume` and `dry_run`. What can be wrong is found before anything is built or written."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stvit_cli.api import after_run, own_data
from stvit_cli.api.overrides import Overrides, as_words
from stvit_cli.api.results import DryRunResult, TrainingResult
from stvit_cli.errors import UserError
from stvit_cli.utils.cpus import limit_threads
from stvit_cli.utils.environment import is_main_process, require_group, restart_count, world_size
from stvit_cli.utils.text import file_name

if TYPE_CHECKING:
    from stvit_cli.engine.branch import Branch
    from stvit_cli.engine.callbacks import Callback
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
    callbacks: Sequence[Callback] = (),
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
        callbacks: called at the points of the loop, see `Callback`; under torchrun in every process.

    Raises:
        UserError: recipe, data, weights or output are not usable; what was saved before is intact.
        Interrupted: a signal asked to stop; the state is saved, and `resume` continues.
    """
    require_group()
    limit_threads()
    words = as_words(overrides, model, data)
    settings = new_recipe(recipe, words, weights)
    with new_run_dir(output, settings.name) as run_dir:
        return _fit(settings, run_dir, weights=weights, given=own_data.keys_of(words), callbacks=callbacks)


def resume(
    run: AnyPath,
    overrides: Overrides = (),
    *,
    recipe: AnyPath | None = None,
    from_step: int | None = None,
    output: AnyPath | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Resume a run from its last checkpoint, or start a new run from an earlier one.

    Args:
        run: the run directory.
        overrides: recipe keys to set. Without ``from_step`` only keys that do not change what is learned, such as
            ``data.num_workers``.
        recipe: takes the place of the run's own recipe.
        from_step: start a new run from the checkpoint of this step; then any key may change but the model and its classes.
        output: the directory of that new run; by default ``runs/RECIPE-TIME``.
        callbacks: called at the points of the loop, see `Callback`. They are no part of the saved run.

    Raises:
        UserError: no run is there, it is in use or damaged, its recipe has changed, or it has no checkpoint of ``from_step``.
        Interrupted: a signal asked to stop; the state is saved.
    """
    require_group()
    limit_threads()
    run_dir = Path(run)
    if from_step is None:
        if output is not None:
            raise UserError("A resumed run stays in its directory; leave output out, or start a new run: add from_step=N.")
        return _fit(_saved_recipe(run_dir, recipe, overrides, locks=True), run_dir, resume=True, callbacks=callbacks)
    words = as_words(overrides)
    settings, branch = _branch(run_dir, from_step, recipe, words)
    with new_run_dir(output, settings.name) as new_dir:
        return _fit(settings, new_dir, branch=branch, given=own_data.keys_of(words), callbacks=callbacks)


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
    limit_threads()
    words = as_words(overrides, model, data)
    if resume is None:
        settings = new_recipe(recipe, words, weights)
    elif from_step is None:
        settings = _saved_recipe(Path(resume), recipe, words, locks=False)
    else:
        settings, _ = _branch(Path(resume), from_step, recipe, words)
    if resume is not None and from_step is None:
        task = _build(settings, weights)
    else:
        task, settings = _build_new(settings, weights, own_data.keys_of(words), is_branch=resume is not None)
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


def new_recipe(recipe: AnyPath | None, words: list[str], weights: AnyPath | None = None) -> Recipe:
    """Return the recipe of a new run; see `train`. Raises UserError where it is invalid or does not fit the data."""
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
    own, settings = recipe_io.load(saved.recipe), recipe_io.load(saved.recipe if recipe is None else Path(recipe), words)
    settings = own_data.as_saved(_with_data_of(own, settings, words), own, own_data.keys_of(words))
    saved.check_resumable(settings)
    return settings


def _branch(run_dir: Path, step: int, recipe: AnyPath | None, overrides: Overrides) -> tuple[Recipe, Branch]:
    """Return the recipe of a new run from a checkpoint, and that checkpoint. Raises UserError where there is none."""
    from stvit_cli.engine.branch import Branch
    from stvit_cli.engine.run_dir import RunDir
    from stvit_cli.recipe import io as recipe_io

    branch = Branch(run_dir, step)
    branch.require()
    saved, words = RunDir(run_dir).recipe, as_words(overrides)
    own, settings = recipe_io.load(saved), recipe_io.load(saved if recipe is None else Path(recipe), words)
    settings = own_data.as_saved(settings, own, own_data.keys_of(words))
    return recipe_io.with_absolute_paths(settings if settings.data.dir else _with_data_of(own, settings, words)), branch


def _with_data_of(own: Recipe, recipe: Recipe, words: list[str]) -> Recipe:
    """Return a recipe with the data folder of a run's ``own`` recipe, unless an override sets another one.

    A shipped recipe names none, and a relative one of a file would be another folder here.
    """
    if any(word.partition("=")[0].strip() == "data.dir" for word in words):
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"dir": own.data.dir})})


def _build_new(
    recipe: Recipe, weights: AnyPath | None, given: Collection[str], *, is_branch: bool = False
) -> tuple[Task, Recipe]:
    """Build the task of a new run, with the choices made that depend on its data, and say each of them.

    Args:
        recipe: of the run.
        weights: the run starts from this weights file or run directory.
        given: keys that the user has set.
        is_branch: the run starts from a checkpoint of another one.

    Returns:
        The task, and the recipe with its length and batches fitted to the number of images.

    Raises:
        UserError: as `tasks.build`; where the data are of another layout, the message names the recipe that fits.
    """
    from stvit_cli import engine, tasks

    weights = weights if is_branch else _initial_weights(recipe, weights)
    try:
        recipe, chosen = tasks.resolve(recipe)
        _say(chosen)
        task = _build(recipe, weights)
    except UserError as error:
        raise own_data.explain_mismatch(error, recipe) from None
    recipe, fitted = engine.fit_to_data(recipe, len(cast(Sized, task.train_set)), world_size(), task.batch_multiple, given)
    _say(fitted)
    return task, recipe


def _say(notes: Sequence[str]) -> None:
    for note in notes if is_main_process() else ():
        logger.info("%s", note)


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
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    from stvit_cli import engine
    from stvit_cli.api.sample_images import sample_images

    if resume:
        task = _build(recipe)
    else:
        task, recipe = _build_new(recipe, weights, given, is_branch=branch is not None)
    metrics = engine.fit(
        task,
        recipe,
        run_dir,
        resume=resume,
        branch=branch,
        first_images=lambda: sample_images(recipe, task),
        callbacks=callbacks,
    )
    if recipe.data.kind == "digits" and is_main_process():
        from stvit_cli.data.digits import write_samples

        write_samples(run_dir / "samples")  # the digits are in no folder: images to try `predict` on
    if "best_epoch" in metrics:  # not where a callback stopped the run before its first evaluation
        after_run.finish(run_dir, recipe, task)
    return TrainingResult(run_dir, metrics)
