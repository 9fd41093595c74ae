"""The report of a run: `report`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling, replace_file, require_writable_folder, writing
from stvit_cli.utils.text import printable

if TYPE_CHECKING:
    from stvit_cli.tasks.base import Task

AnyPath = str | os.PathLike[str]

REPORT = "report.html"


def report(run: AnyPath, output: AnyPath | None = None, *, say: Callable[[str], None] = lambda stage: None) -> Path:
    """Write the report of a run: one HTML page that needs no network.

    It shows metrics with 95 % intervals, confusion, classes, calibration and mistakes, curves, data, super tokens, speed, the
    recipe and what differs from its defaults. The kept predictions of the run are used; a run without them is evaluated. A run
    that is not finished, or whose data have moved, has a report too, which says so.

    Args:
        run: the run directory.
        output: the file; by default ``report.html`` in the run directory. An existing one is replaced.
        say: called with each stage of the work.

    Returns:
        The file.

    Raises:
        UserError: ``run`` is not the directory of a run, or the file cannot be written.
    """
    from stvit_cli.analysis.report.run_report import run_report

    path = Path(run)
    require_run(path)
    target = path / REPORT if output is None else Path(output)
    if target.is_dir():
        target = target / REPORT
    require_writable_folder(target.parent)
    page = run_report(path, say=say)
    _write(target, page)
    return target


def write_report(run_dir: Path, task: Task) -> Path:
    """Write the report of a run whose task is built already; see `report`."""
    from stvit_cli.analysis.report.run_report import run_report

    target = run_dir / REPORT
    _write(target, run_report(run_dir, task=task))
    return target


def require_run(path: Path) -> None:
    """Raise UserError, with the nearest name, where ``path`` is not the directory of a run."""
    from stvit_cli.engine.run_dir import RunDir

    try:
        RunDir(path).require_run()
    except UserError as error:
        inside = sorted(entry.parent.name for entry in path.glob("*/recipe.yaml")) if path.is_dir() else []
        if inside:
            last = printable(inside[-1])
            names = f"1 run is in it: '{last}'." if len(inside) == 1 else f"{len(inside)} runs are in it, such as '{last}'."
            raise UserError(f"{error}\n{names}") from None
        near = "" if path.exists() else nearest_sibling(path, lambda entry: (entry / "recipe.yaml").is_file())
        raise UserError(f"{error}{near}") from None


def _write(target: Path, page: str) -> None:
    with writing(target, advice=""):
        replace_file(target, page.encode(errors="backslashreplace"))
