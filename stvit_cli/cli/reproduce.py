"""``stvit reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.api.reproducing import collect_all
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Data, Json
from stvit_cli.cli.output import echo, print_table, reporting
from stvit_cli.errors import UserError


@app.command()
def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="An experiment; without one, they are listed.", autocompletion=completion.experiments
        ),
    ] = None,
    collect: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Train nothing: write the tables of the finished runs in this folder.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of seeds, in place of the experiment's.")] = None,
    parallel: Annotated[int, typer.Option(metavar="N", min=1, help="Number of runs at a time, each in a process.")] = 1,
    data: Data = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of runs, NAME.json and NAME.md; by default runs/reproduce-NAME.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Train an experiment from nothing and write its tables: every figure with recipe, seed, machine and version.

    After Ctrl-C the same command resumes it.

    \b
    stvit reproduce
    stvit reproduce fashion-mnist --parallel 2
    stvit reproduce fashion-mnist --collect RUNS --output results
    stvit reproduce --collect RUNS --output results                all of which runs have finished
    """
    with reporting(json_file) as report:
        if collect is not None and (seeds is not None or parallel > 1 or data is not None):
            raise UserError("--collect trains nothing: leave --seeds, --parallel and --data out.")
        if name is None and collect is not None:
            written = collect_all(collect, output)
            for each in written:
                _print(each)
            report([each.to_dict() for each in written])
            return
        if name is None:
            if seeds is not None or parallel > 1 or data is not None or output is not None:
                raise UserError(f"Which experiment? Name one of {', '.join(row['name'] for row in api.experiments())}.")
            rows = api.experiments()
            cells = [[row["name"], f"{row['finished']} of {row['num_runs']}", f"{row['hours']:g}", row["title"]] for row in rows]
            print_table(["name", "runs here", "hours on one core", "what"], cells, right={1, 2})
            report(rows)
            return
        result = api.reproduce(name, seeds=seeds, parallel=parallel, data=data, output=output, collect=collect)
        _print(result)
        report(result.to_dict())


def _print(result: api.ReproductionResult) -> None:
    echo(*result.to_markdown().splitlines())
    for note in result.notes:
        echo(f"Note: {note}", err=True)
    echo(f"Written: {result.json_file}, {result.markdown_file}", err=True)
