"""What ``train`` and ``finetune`` have in common: what can be wrong is found before anything is built or written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvit_cli.cli.options import command
from stvit_cli.cli.output import echo
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils.environment import is_main_process, require_group, restart_count, world_size
from stvit_cli.utils.text import file_name

if TYPE_CHECKING:
    from stvit_cli.engine.branch import Branch


def new_run(recipe: Recipe, output: Path | None, weights: Path | None, dry_run: bool) -> tuple[Path, dict[str, Any]]:
    """Train into a new run directory, ``output`` or ``runs/<recipe>-<time>``; return it and the figures."""
    require_group()
    recipe = recipe_io.with_absolute_paths(recipe)
    if dry_run:
        return Path(), _run(recipe, Path(), weights, resume=False, dry_run=True)
    with new_directory(output, recipe.name) as run_dir:
        return run_dir, _run(recipe, run_dir, weights, resume=False, dry_run=False)


def branched_run(
    source: Path, step: int, recipe_name: str | None, words: list[str], output: Path | None, dry_run: bool
) -> tuple[Path, dict[str, Any]]:
    """Train into a new run directory from the checkpoint of ``step`` of the run in ``source``, with its recipe and ``words``."""
    from stvit_cli.engine.branch import Branch
    from stvit_cli.engine.run_dir import RunDir

    require_group()
    branch = Branch(source, step)
    branch.require()
    own = RunDir(source).recipe
    recipe = recipe_io.load(recipe_name or own, words)
    recipe = recipe_io.with_absolute_paths(recipe if recipe.data.dir else _with_data_of(own, recipe, words))
    if dry_run:
        return Path(), _run(recipe, Path(), None, resume=False, dry_run=True)
    with new_directory(output, recipe.name) as run_dir:
        return run_dir, _run(recipe, run_dir, None, resume=False, dry_run=False, branch=branch)


@contextmanager
def new_directory(output: Path | None, name: str) -> Iterator[Path]:
    """Yield the directory of a new run: ``output``, or one under ``runs`` that no other run has, named after the time.

    The latter is made here, so that of two runs that start at once each has its own; where the run does not come to write into
    it, it is removed again.

    Raises:
        UserError: ``output`` holds something, or it is not given but several processes must know it.
    """
    from stvit_cli.engine.run_dir import make_new, require_free
    from stvit_cli.engine.run_lock import require_unlocked

    if output is None and world_size() > 1:
        raise UserError("With several processes the run directory must be named, so that all use the same one: --output DIR")
    if output is not None:
        if is_main_process() and not restart_count():
            require_unlocked(output)
            require_free(output)
        yield output
        return
    is_parent_new = not os.path.lexists("runs")
    run_dir = make_new(Path("runs") / f"{file_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        yield run_dir
    finally:
        for folder in (run_dir, run_dir.parent)[: 1 + is_parent_new]:
            with suppress(OSError):  # not empty: the run is in it
                folder.rmdir()


def resumed_run(run_dir: Path, recipe_name: str | None, words: list[str], dry_run: bool) -> tuple[Path, dict[str, Any]]:
    """Go on with the run in ``run_dir``, by its own recipe or by one that must be the same in all that is learned."""
    from stvit_cli.engine.run_dir import RunDir
    from stvit_cli.engine.run_lock import require_unlocked

    require_group()
    place = RunDir(run_dir)
    place.require_run()
    if is_main_process() and not restart_count() and not dry_run:
        require_unlocked(run_dir)
    recipe = _with_data_of(place.recipe, recipe_io.load(recipe_name or place.recipe, words), words)
    place.check_resumable(recipe)
    return run_dir, _run(recipe, run_dir, None, resume=True, dry_run=dry_run)


def _with_data_of(own: Path, recipe: Recipe, words: list[str]) -> Recipe:
    """Return a recipe with the data's folder of a run's ``own``, unless another one is asked for by a word of the command line.

    A shipped recipe names none, and a relative one of a file would be another folder here.
    """
    if any(word.partition("=")[0].strip() == "data.dir" for word in words):
        return recipe
    folder = recipe_io.load(own).data.dir
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"dir": folder})})


def say_what_next(run_dir: Path) -> None:
    """Print what to type after a run; of several processes only the first does."""
    if is_main_process():
        sample = run_dir / "samples" / "digit-3.png"
        echo("Next:", err=True)
        echo(command("stvit", "eval", run_dir), err=True)
        echo(command("stvit", "predict", sample if sample.exists() else "IMAGE", "--weights", run_dir), err=True)


def _run(
    recipe: Recipe, run_dir: Path, weights: Path | None, *, resume: bool, dry_run: bool, branch: Branch | None = None
) -> dict[str, Any]:
    from stvit_cli import engine, tasks
    from stvit_cli.tasks.loading import weights_file

    task = tasks.build(recipe, weights=None if weights is None else weights_file(weights))
    if dry_run:
        return engine.dry_run(task, recipe)
    figures = engine.fit(task, recipe, run_dir, resume=resume, branch=branch)
    if recipe.data.kind == "digits" and is_main_process():
        from stvit_cli.data.digits import write_samples

        write_samples(run_dir / "samples")  # the digits are in no folder: something to try `stvit predict` on
    return figures
