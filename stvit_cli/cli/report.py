"""``stvit report``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.output import echo
from stvit_cli.utils.console import open_console

QUIET_SECONDS = 5.0
"""Without a terminal, stages are printed from then on."""


@app.command()
def report(
    run_dir: Annotated[
        Path,
        typer.Argument(metavar="RUN_DIR", help="The directory of a run, finished or not.", autocompletion=completion.run_dirs),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page here; by default report.html in RUN_DIR.")
    ] = None,
) -> None:
    """Write the report of a run: one HTML page with its metrics, mistakes, curves and data.

    \b
    stvit report runs/RUN
    stvit report runs/RUN --output report.html
    """
    with _stages() as say:
        path = api.report(run_dir, output, say=say)
    echo(str(path))


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Yield the function that shows what is being done: on one line of a terminal, otherwise as lines if it takes long."""
    console, began = open_console(stderr=True), time.monotonic()
    if not console.is_terminal:
        yield lambda stage: print(f"{stage} ...", file=sys.stderr) if time.monotonic() - began > QUIET_SECONDS else None
        return
    with console.status("") as status:
        yield lambda stage: status.update(f"{stage} ...")
