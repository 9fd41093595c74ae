"""Runs beside each other: `compare`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stvit_cli.utils.environment import is_main_process

if TYPE_CHECKING:
    from stvit_cli.analysis.comparison.result import Comparison

AnyPath = str | os.PathLike[str]

logger = logging.getLogger(__name__)


def compare(runs: Sequence[AnyPath]) -> Comparison:
    """Compare runs with the first of them: recipes, curves, metrics with paired intervals, and the images on which they differ.

    What the runs predict is read where it is kept; others are evaluated. Runs of different data, classes or tasks are compared as
    far as that goes, and `notes` says what is not.

    Args:
        runs: run directories, two or more.

    Returns:
        ``to_rows()`` for ``pandas.DataFrame``, ``to_dict()``, and ``write(path)`` for the page.

    Raises:
        UserError: fewer than two, or a path is no run.
    """
    from stvit_cli.analysis.comparison import compare_runs

    def say(line: str) -> None:
        if is_main_process():
            logger.warning("%s", line)

    return compare_runs([Path(run) for run in runs], say)
