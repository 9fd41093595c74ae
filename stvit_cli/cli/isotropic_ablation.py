"""``stvit isotropic-ablation``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli.api.ablation import isotropic_ablation as isotropic_ablation_of
from stvit_cli.api.overrides import as_words
from stvit_cli.cli import app
from stvit_cli.cli.options import Data, Json, Output, Overrides, RecipeName
from stvit_cli.cli.output import echo, print_table, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_main_process
from stvit_cli.utils.files import require_writable_folder

ALL_ROWS = tuple(range(1, 8))


@app.command("isotropic-ablation")
def isotropic_ablation(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    rows: Annotated[
        str | None, typer.Option(metavar="4,5", help="Rows to train, such as 4,5 or 1-3; all where none is given.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of seeds to train each row with.")] = None,
    parallel: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of runs at a time, each on its GPU or its part of the CPU.")
    ] = 1,
    data: Data = None,
    output: Output = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Resume an ablation; --rows and --seeds may add to it.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Table II: Swin and STViT without convolution stem, projection, CPE and ConvFFN.

    Without a recipe: parameters and FLOPs beside the paper's, in seconds. With one, the rows are trained too.

    \b
    stvit isotropic-ablation
    stvit isotropic-ablation --recipe isotropic-mini --seeds 3
    stvit isotropic-ablation --recipe isotropic300 --data IMAGENET --rows 4,5 --output RUNS --parallel 2
    stvit isotropic-ablation --resume RUNS
    """
    numbers = None if rows is None else parse_rows(rows)
    given = as_words(overrides or (), data=data)
    failed = None
    with reporting(json_file) as report:
        if resume is not None and (recipe is not None or output is not None):
            raise UserError("--resume continues in the folder of the ablation, with its recipe; leave --recipe and --output out.")
        if resume is not None or recipe is not None:
            result, output, failed = isotropic_ablation_of(
                recipe, given, rows=numbers, seeds=seeds, parallel=parallel, output=output, resume=resume
            )
        elif given or rows or seeds:
            raise UserError(
                "Nothing is trained without a recipe. Give --recipe isotropic-mini or isotropic300, or leave the rest out."
            )
        else:
            from stvit_cli.analysis.ablation.isotropic.report import report_counts

            if output is not None:
                require_writable_folder(output)
            result = report_counts()
            if output is not None:
                result.write(output)
        if is_main_process():
            print_table(result.columns(), result.cells(), title=result.title)
            echo(*result.notes)
            if output is not None:
                echo(f"Written to {output}: table.md, table.csv, table.json, table.png", err=True)
            report(result.as_json())
    if failed is not None:
        raise UserError(failed)


def parse_rows(text: str) -> tuple[int, ...]:
    """Return the row numbers that ``4,5`` or ``1-3,7`` name, in order. Raises UserError for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(end.isdecimal() and int(end) in ALL_ROWS for end in ends) or int(ends[0]) > int(ends[1]):
            raise UserError(f"--rows {text}: expected rows from {ALL_ROWS[0]} to {ALL_ROWS[-1]}, such as 4,5 or 1-3.")
        numbers |= set(range(int(ends[0]), int(ends[1]) + 1))
    return tuple(sorted(numbers))
