"""``stvit embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app
from stvit_cli.cli.options import BatchSize, Dtype, Json, Precision, Weights
from stvit_cli.cli.output import reporting
from stvit_cli.cli.parquet_output import note, parquet_progress, print_files


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
