"""``stvit embed``, and what it shares with ``stvit predict --parquet``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app
from stvit_cli.cli.options import BatchSize, Dtype, Json, Precision, Weights
from stvit_cli.cli.output import echo, reporting, showing_progress
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_main_process

if TYPE_CHECKING:
    from stvit_cli.api import PredictionFiles


@app.command()
def embed(
    paths: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Images, folders of images, lists of paths (.txt), and shards.")
    ],
    weights: Weights,
    output: Annotated[Path, typer.Option(metavar="DIR", help="A directory for Parquet files, a row for each image.")],
    dtype: Dtype = "fp32",
    batch_size: BatchSize = None,
    precision: Precision = "fp32",
    json_file: Json = None,
) -> None:
    """Write the features of images, from which a classifier computes its classes, as Parquet files: for search and clustering.

    The same command resumes a run that was ended. Processes of torchrun share the work.

    \b
    stvit embed FOLDER --weights runs/RUN --output embedded
    stvit embed paths.txt --weights stvit-s.pth --output embedded --dtype fp16
    stvit embed 'shards/train-{000..127}.tar' --weights runs/RUN --output embedded
    torchrun --nproc-per-node 8 -m stvit_cli embed FOLDER --weights runs/RUN --output embedded
    """
    with reporting(json_file) as report, parquet_progress("output") as progress:
        result = api.embed(
            weights, paths, output, dtype=dtype, precision=precision, batch_size=batch_size, say=note, advance=progress
        )
        report(result.to_dict())
    print_files(result)


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
