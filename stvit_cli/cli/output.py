"""What the commands print: tables for people, JSON for programs. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvit_cli.errors import UserError
from stvit_cli.utils import strict_json
from stvit_cli.utils.console import open_console
from stvit_cli.utils.environment import is_main_process
from stvit_cli.utils.files import reason_of, replace_file, require_writable_file, try_file
from stvit_cli.utils.text import printable, shell_command

if TYPE_CHECKING:
    from rich.console import Console

    from stvit_cli.api.results import DryRunResult

GAP = "  "
"""Between two columns of a table."""
LEAST_WRAPPED = 24
"""The least width to which the last column of a table is wrapped."""
LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


@contextlib.contextmanager
def reporting(json_file: str | None) -> Iterator[Callable[[Any], None]]:
    """Yield the function that writes a command's figures where ``--json`` says: nowhere, to a file, or to standard output.

    With ``-``, which is standard output, everything else that is printed in the block goes to standard error.

    Raises:
        UserError: the file cannot be written; said before the work, not after it.
    """
    if json_file is None or not is_main_process():
        yield lambda figures: None
    elif json_file == "-":
        stdout = sys.stdout
        if getattr(stdout, "was_closed", False):
            raise UserError("--json -: standard output is closed; expected one that can be written, or --json FILE")
        with contextlib.redirect_stdout(sys.stderr):
            yield lambda figures: print(_to_json(figures), file=stdout, flush=True)
    else:
        path = Path(json_file)
        try:
            try_file(path)
        except OSError as error:
            expected = "expected a file in a folder that exists, or -"
            raise UserError(f"--json {json_file}: cannot be written: {reason_of(error)}; {expected}") from None
        yield lambda figures: _write(path, _to_json(figures) + "\n")


@contextlib.contextmanager
def showing_progress() -> Iterator[Callable[[int, int], None]]:
    """Yield the function that shows how far the work is, with the time left: a bar on a terminal, otherwise lines."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stvit_cli.engine.progress import duration

    console = open_console(stderr=True)
    columns = (TextColumn("images"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    started = last = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("images", total=None)

        def advance(done: int, total: int) -> None:
            nonlocal last
            bars.update(bar, completed=done, total=total)
            now = time.monotonic()
            if bars.disable and now - last >= LINE_SECONDS:
                last = now
                left = duration((now - started) / done * (total - done))
                print(f"{done} of {total} images, {left} left", file=sys.stderr)

        yield advance


@contextlib.contextmanager
def showing_stages() -> Iterator[Callable[[str], None]]:
    """Yield the function that says what is done now: beside a spinner and the time on a terminal, otherwise as lines."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = open_console(stderr=True)
    if not console.is_terminal:
        yield lambda line: echo(line, err=True)
        return
    with Progress(
        SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False), console=console, transient=True
    ) as bars:
        stage = bars.add_task("", total=None)
        yield lambda line: bars.update(stage, description=printable(line))


def echo(*lines: str, err: bool = False) -> None:
    """Print lines: results to standard output; notes, warnings and what to do next to standard error.

    Control characters in them are escaped, newlines too: names of files and classes can hold anything.
    """
    for line in lines:
        print(printable(line), file=sys.stderr if err else sys.stdout)


def report_dry_run(result: DryRunResult, report: Callable[[Any], None]) -> None:
    """Print what a run would be, and hand it to ``report``; of several processes only the first does."""
    if is_main_process():
        echo(*result.summary)
    report(result.to_dict())


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, *, right: Collection[int] = ()
) -> None:
    """Print a table to standard output; in a pipe or a file as plain text, as wide as it needs to be.

    Where a terminal is too narrow, the last column is wrapped. No cell is cut: names that differ at their ends stay different.

    Args:
        columns: their heads.
        rows: the cells.
        title: a line above.
        right: indices of the columns that are aligned to the right.
    """
    from rich.cells import cell_len

    cells = [[printable(cell) for cell in row] for row in rows]
    console = open_console()
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    before = sum(width + len(GAP) for width in widths[:-1])
    widths[-1] = min(widths[-1], max(console.width - before, LEAST_WRAPPED, cell_len(columns[-1])))
    if title is not None:
        console.print(printable(title), style="italic", markup=False, emoji=False, soft_wrap=True)
    for number, row in enumerate([list(columns), *cells]):
        *others, last = row
        for part in _wrapped(last, widths[-1], console):
            aligned = [
                _aligned(cell, width, i in right) for i, (cell, width) in enumerate(zip([*others, part], widths, strict=True))
            ]
            style = "bold" if number == 0 else None
            console.print(GAP.join(aligned).rstrip(), style=style, markup=False, emoji=False, soft_wrap=True)
            others = [""] * len(others)


def _aligned(cell: str, width: int, to_the_right: bool) -> str:
    from rich.cells import cell_len

    space = " " * (width - cell_len(cell))
    return space + cell if to_the_right else cell + space


def _wrapped(text: str, width: int, console: Console) -> list[str]:
    """Return the lines of a text at most ``width`` characters wide, broken between words where that is possible."""
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(text).wrap(console, width)] or [""]


def command(*parts: str | Path) -> str:
    """Return a command to paste, quoted for the shell where a path needs it."""
    return "  " + shell_command(*parts)


def print_next_commands(run_dir: Path) -> None:
    """Print the commands that use a finished run; of several processes only the first does."""
    if is_main_process():
        sample = run_dir / "samples" / "digit-3.png"
        echo("Next:", err=True)
        echo(command("stvit", "eval", run_dir), err=True)
        echo(command("stvit", "predict", sample if sample.exists() else "IMAGE", "--weights", run_dir), err=True)
        page = run_dir / "report.html"
        if page.is_file():
            echo(f"Report: {page}", err=True)


def require_writable_table(path: Path) -> None:
    """Raise UserError where a table of rows cannot be written to ``path``: before the work, not after it."""
    from stvit_cli.tasks.tables import require_table_name

    require_table_name(path)
    require_writable_file(path)


def _write(path: Path, text: str) -> None:
    """Write the whole of a report or nothing, but in place where that is no plain file or its folder is not to be changed."""
    target, content = Path(os.path.realpath(path)), text.encode()
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
            return
        try:
            replace_file(target, content)
        except PermissionError:
            target.write_bytes(content)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written: {reason_of(error)}.") from None


def _to_json(figures: Any) -> str:
    return strict_json.dumps(figures, indent=2)
