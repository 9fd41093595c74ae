"""What a finished run gets beside its weights: a report to open. A failure here never fails the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stvit_cli.utils.environment import is_main_process, single_process
from stvit_cli.utils.text import first_line, shell_command

if TYPE_CHECKING:
    from stvit_cli.recipe import Recipe
    from stvit_cli.tasks import Task

logger = logging.getLogger(__name__)


def finish(run_dir: Path, recipe: Recipe, task: Task) -> None:
    """Write what belongs to a finished run: `api.training` calls it at the end, on every process; the main one acts.

    Args:
        run_dir: the run directory.
        recipe: of the run.
        task: of the run, with the weights that it ended with.
    """
    if not is_main_process():
        return
    with single_process():  # a run without kept predictions is evaluated, for which the others would have to be there
        attempt("The model card", lambda: write_card(run_dir), "stvit", "push", run_dir, "local-dir:FOLDER")
        write_report(run_dir, recipe, task)


def write_card(run_dir: Path) -> None:
    """Write the model card, ``README.md``, unless the one that is there was edited by hand."""
    from stvit_cli.analysis import model_card

    model_card.write_card(run_dir)


def write_report(run_dir: Path, recipe: Recipe, task: Task) -> None:
    """Write ``report.html``, unless ``train.report`` is false; the test suite replaces this function where it is not tested."""
    from stvit_cli.api import run_report

    if recipe.train.report:
        attempt("The report", lambda: run_report.write_report(run_dir, task), "stvit", "report", run_dir)


def attempt(what: str, work: Callable[[], object], *command: str | Path) -> None:
    """Do what is not part of the run: if it fails, warn, with the command that does it again.

    Args:
        what: is made, for the warning.
        work: makes it.
        command: the words of the command.
    """
    try:
        work()
    except (Exception, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else first_line(error)
        # One line: a log record has its line breaks shown, not obeyed.
        logger.warning(
            "%s was not written: %s. The run itself is complete. Again: %s", what, reason.rstrip("."), shell_command(*command)
        )
        if isinstance(error, KeyboardInterrupt):
            raise
