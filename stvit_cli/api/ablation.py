"""Ablations: a recipe trained in several settings with several seeds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from stvit_cli.api import training
from stvit_cli.api.overrides import Overrides, as_words
from stvit_cli.api.training import AnyPath
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.utils.cpus import limit_threads
from stvit_cli.utils.environment import is_main_process, require_group
from stvit_cli.utils.text import shell_command

if TYPE_CHECKING:
    from stvit_cli.analysis.ablation.ablation import Ablation
    from stvit_cli.analysis.ablation.isotropic.ablation import IsotropicAblation
    from stvit_cli.analysis.ablation.isotropic.report import Report
    from stvit_cli.analysis.ablation.runs import Run
    from stvit_cli.analysis.ablation.table import AblationTable

Values = Mapping[str, Sequence[object]] | Sequence[str]
"""Keys of a recipe with their values: ``{"model.num_iters": [0, 1, 2]}``, or ``["model.num_iters=0,1,2"]``."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class IsotropicResult(NamedTuple):
    """Table II, trained."""

    report: Report
    path: Path
    """Directory of the runs and of the table."""
    failed: str | None
    """Which runs failed and how to try them again; None where none did."""


def ablate(
    recipe: AnyPath | None = None,
    keys: Values = (),
    *,
    overrides: Overrides = (),
    seeds: int | None = None,
    parallel: int = 1,
    product: bool = False,
    data: AnyPath | None = None,
    output: AnyPath | None = None,
    resume: AnyPath | None = None,
) -> AblationTable:
    """Train a recipe in several settings with several seeds, and compare the settings with the first one.

    Of one key the settings are its values, and the recipe itself where there is a single one. Of several keys they are the recipe
    itself and each value by itself, or with ``product`` all combinations. A run that fails or diverges is said in the table and
    does not end the others.

    Args:
        recipe: the name of a shipped recipe, or a file.
        keys: the values of each key.
        overrides: recipe keys to set in every run; of an ablation that is resumed only those that do not change what is learned.
        seeds: number of seeds per setting, counted up from the recipe's; by default 1, or as many as the ablation has that is
            resumed.
        parallel: number of runs at a time, each in a process of its own, on a GPU of its own or on an equal part of the CPU.
        product: train all combinations of the values.
        data: sets ``data.dir``.
        output: directory of the runs and of the table, new or empty; by default ``runs/RECIPE-ablation-TIME``.
        resume: resume the ablation in this directory; ``keys`` and ``seeds`` may add to it.

    Returns:
        The table: ``rows`` with mean, interval and paired difference, ``to_rows()`` for ``pandas.DataFrame``, ``to_dict()``;
        ``failed`` says which runs are tried again when it is resumed. The directory has it as table.json, table.md, table.svg.

    Raises:
        UserError: recipe, keys, data or directory are not usable.
        Interrupted: a signal asked to stop; the state of every run is saved.

    Example:
        >>> table = ablate("quickstart", {"model.grid_sizes": [[8, 4, 1, 1], [4, 2, 1, 1]]}, seeds=3)  # doctest: +SKIP
        >>> table.to_rows()[0]["score"]  # doctest: +SKIP
        99.17
    """
    require_group()
    limit_threads()
    varied, words = _split(keys)
    words += as_words(overrides, data=data)
    if resume is not None:
        if recipe is not None or output is not None or product:
            raise UserError(
                "resume continues in the folder of the ablation, with its recipe; leave recipe, output and product out."
            )
        return _run(_reopen(Path(resume), varied, words, seeds), parallel)
    if recipe is None:
        raise UserError("Which recipe? Give the name of a shipped one (`stvit recipes list`), or a file.")
    from stvit_cli.analysis.ablation.ablation import new_ablation
    from stvit_cli.recipe.renamed_keys import rename_key

    for word in words:
        if (key := rename_key(word.partition("=")[0])[0]) in varied:
            raise UserError(f"{key} is given twice, with the values to compare and as an override; keep one of them.")
    settings = training.new_recipe(recipe, [*words, *_own_length(varied)])
    with training.new_run_dir(output, f"{settings.name}-ablation") as folder:
        ablation = new_ablation(folder, settings, varied, seeds or 1, product=product)
        ablation.require_free()
        return _run(ablation, parallel)


def isotropic_ablation(
    recipe: AnyPath | None = None,
    overrides: Overrides = (),
    *,
    rows: Sequence[int] | None = None,
    seeds: int | None = None,
    parallel: int = 1,
    output: AnyPath | None = None,
    resume: AnyPath | None = None,
) -> IsotropicResult:
    """Train rows of Table II by a recipe, or resume that; the arguments are those of `ablate`.

    Args:
        recipe: the name of a shipped recipe, or a file.
        overrides: recipe keys to set.
        rows: numbers from 1 to 7; None: all, or those of the last time.
        seeds: number of seeds per row.
        parallel: number of runs at a time.
        output: directory of the runs and of the table.
        resume: resume the ablation in this directory.

    Raises:
        UserError: recipe, data or directory are not usable.
        Interrupted: a signal asked to stop; the state of every run is saved.
    """
    from stvit_cli.analysis.ablation.isotropic.ablation import IsotropicAblation, reopen
    from stvit_cli.recipe import io as recipe_io

    require_group()
    limit_threads()
    words, numbers = as_words(overrides), None if rows is None else tuple(rows)
    if resume is not None:
        return _run_isotropic(reopen(Path(resume), words, numbers, seeds), parallel)
    assert recipe is not None
    settings = recipe_io.load(recipe if isinstance(recipe, str) else Path(recipe), words)
    with training.new_run_dir(output, settings.name) as folder:
        ablation = IsotropicAblation(folder, settings, numbers or tuple(range(1, 8)), seeds or 1)
        ablation.require_free()
        return _run_isotropic(ablation, parallel)


def train_run(run: Run) -> None:
    """Train a run of an ablation in this process, or resume it."""
    from stvit_cli.engine.distributed import joined_world

    with joined_world(run.recipe.train.device) as world:
        if world.broadcast(run.has_started):
            training.resume(run.path, run.overrides)
        else:
            world.on_main(run.write_recipe)
            training.train(run.recipe_file, output=run.path)


def _run(ablation: Ablation, parallel: int) -> AblationTable:
    from stvit_cli.analysis.ablation.ablation import run_ablation
    from stvit_cli.analysis.ablation.table import resume_command

    return _resumable(lambda: run_ablation(ablation, train_run, parallel), resume_command(ablation.path))


def _run_isotropic(ablation: IsotropicAblation, parallel: int) -> IsotropicResult:
    from stvit_cli.analysis.ablation.isotropic.ablation import run_ablation
    from stvit_cli.analysis.ablation.training import what_failed

    command = shell_command("stvit", "isotropic-ablation", "--resume", ablation.path)
    report = _resumable(lambda: run_ablation(ablation, train_run, parallel), command)
    return IsotropicResult(report, ablation.path, what_failed(ablation.runs, command))


def _resumable(work: Callable[[], Result], command: str) -> Result:
    """Do the work; where a signal stops it, say how it is resumed."""
    try:
        return work()
    except (Interrupted, KeyboardInterrupt):
        if is_main_process():
            logger.info("Resume the ablation with: %s", command)
        raise


def _split(keys: Values) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the values of each key, and the ``key=value`` among them that set a key in every run."""
    from stvit_cli.analysis.ablation.settings import split_words

    if isinstance(keys, Mapping):
        for key, values in keys.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise UserError(f"keys: {key}: found {values!r}, expected the list of its values; one value for all: overrides.")
        return {key: list(values) for key, values in keys.items()}, []
    if isinstance(keys, str):
        raise UserError(f'keys: found the text {keys!r}, expected {{"optim.lr": [1e-3, 2e-3]}} or ["optim.lr=1e-3,2e-3"].')
    return split_words(keys)


def _reopen(path: Path, varied: dict[str, list[Any]], words: Sequence[str], seeds: int | None) -> Ablation:
    """Open an ablation; a single value of a key that decides what is learned is one more setting."""
    from stvit_cli.analysis.ablation.ablation import reopen
    from stvit_cli.analysis.ablation.settings import split_values
    from stvit_cli.recipe import FREE_ON_RESUME
    from stvit_cli.recipe.renamed_keys import rename_key

    free: list[str] = []
    for word in words:
        given, equals, text = word.partition("=")
        key = rename_key(given)[0]
        if key in FREE_ON_RESUME or not equals:
            free.append(word)
        else:
            varied.setdefault(key, []).extend(split_values(text))
    return reopen(path, varied, free, seeds)


def _own_length(varied: Mapping[str, object]) -> list[str]:
    """Keep ``schedule.min_steps`` from making runs of other lengths equally long."""
    return ["schedule.min_steps=null"] if varied.keys() & {"schedule.epochs", "schedule.steps"} else []
