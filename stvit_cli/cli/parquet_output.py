"""What ``stvit embed`` and ``stvit predict --parquet`` print, on the first of several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from stvit_cli.cli.output import echo, showing_progress
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_main_process

if TYPE_CHECKING:
    from stvit_cli.api import PredictionFiles


@contextlib.contextmanager
def parquet_progress(option: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows progress, on the first of several processes. Messages about the directory name its option."""
    try:
        if is_main_process():
            with showing_progress() as advance:
                yield advance
        else:
            yield lambda done, total: None
    except UserError as error:
        raise UserError(str(error).replace("output=DIR", f"--{option} DIR")) from error


def note(line: str) -> None:
    """Print a line to standard error, on the first of several processes."""
    if is_main_process():
        echo(line, err=True)


def print_files(result: PredictionFiles) -> None:
    """Say what was written, on the first of several processes."""
    if not is_main_process():
        return
    echo(f"{result.output}: {result.num_images} images in {result.num_files} Parquet files.", err=True)
    if result.num_errors:
        echo(f"{result.num_errors} images could not be read or answered; the column error says why.", err=True)
