"""``stvit ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Data, Json
from stvit_cli.cli.output import echo, print_table, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_main_process

if TYPE_CHECKING:
    from stvit_cli.analysis.ablation.table import AblationTable


@app.command()
def ablate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=A,B,...]...",
            help="A shipped recipe's name or a file; keys with their values. A key with one value is set in every run.",
            autocompletion=completion.recipes_and_overrides,
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of seeds to train each setting with.")] = None,
    parallel: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Number of runs at a time, each on its GPU or its part of the CPU."),
    ] = 1,
    product: Annotated[bool, typer.Option("--product", help="Train all combinations, not one key at a time.")] = False,
    data: Data = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of the runs and the table, new or empty; by default in runs/."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Resume an ablation; keys with more values and --seeds add to it.",
            autocompletion=completion.ablations,
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Train a recipe in several settings with several seeds: a table and a plot with intervals.

    Of one key the settings are its values. Of several they are the recipe itself and each value by itself. The first setting
    is what the others are compared with, seed by seed.

    \b
    stvit ablate quickstart 'model.grid_sizes=[8,4,1,1],[4,2,1,1]' --seeds 3
    stvit ablate quickstart optim.lr=1e-3,2e-3 augment.random_erasing=0.25 schedule.epochs=4 --output runs/LR
    stvit ablate quickstart optim.lr=1e-3,2e-3 train.ema_decay=null,0.99 --product --parallel 2
    stvit ablate --resume runs/LR optim.lr=4e-3 --seeds 3
    """
    given = list(arguments or ())
    recipe = given.pop(0) if resume is None and given and (given[0].partition("=")[0] == given[0]) else None
    if resume is None and recipe is None:
        raise UserError("Which recipe? Give its name before the keys: stvit ablate RECIPE KEY=A,B. See: stvit recipes list")
    if resume is not None and (output is not None or product or any("=" not in word for word in given)):
        raise UserError(
            "--resume continues in the folder of the ablation, with its recipe; leave recipe, --output and --product out."
        )
    with reporting(json_file) as report:
        table = api.ablate(
            recipe, given, seeds=seeds, parallel=parallel, product=product, data=data, output=output, resume=resume
        )
        if is_main_process():
            _print(table)
            report(table.to_dict())
    if table.failed is not None:
        raise UserError(table.failed)


def _print(table: AblationTable) -> None:
    columns = table.columns()
    print_table(columns, table.cells(), table.title, right=(1, *range(5, len(columns))))
    echo(*table.notes())
    echo(f"Written to {table.path}: table.md, table.json, table.svg", err=True)
