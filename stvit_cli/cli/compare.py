"""``stvit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, print_table, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.files import require_writable_file

if TYPE_CHECKING:
    from stvit_cli.analysis.comparison.result import Comparison

MOST_KEYS = 20
"""Keys of the recipes that are printed; the page has all."""


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="Directories of runs; the first one is the baseline.", autocompletion=completion.run_dirs
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("compare.html"),
    json_file: Json = None,
) -> None:
    """Compare runs: recipes, curves, metrics with paired intervals, and the images that one gets right and the other wrong.

    \b
    stvit compare runs/A runs/B
    stvit compare runs/A runs/B runs/C --output abc.html --json -
    """
    if output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {output}: expected a name that ends in .html.")
    require_writable_file(output)
    with reporting(json_file) as report:
        found = api.compare(runs)
        found.write(output)
        _print(found)
        report(found.to_dict())
        echo(f"Page: {output}", err=True)


def _print(found: Comparison) -> None:
    from stvit_cli.analysis.comparison.sections import metric_table, recipe_table

    names = [row["run"] for row in found.runs]
    for note in found.notes:
        echo(f"Note: {note}")
    heads, rows = recipe_table(names, found.recipes)
    if rows:
        more = f", {MOST_KEYS} of {len(rows)}; the page has all" if len(rows) > MOST_KEYS else ""
        print_table(heads, rows[:MOST_KEYS], f"Recipes{more}")
    else:
        echo("Recipes: the same")
    images = min((row["num_images"] for row in found.runs if row["num_images"] is not None), default=0)
    heads, rows = metric_table(names, found.metrics, images)
    echo("")
    is_paired = len(heads) > 1 + len(names)
    what = f", {images} {found.runs[0]['images']} images" if is_paired else ""
    what += f"; differences from {names[0]} with 95 % intervals" if is_paired else ""
    print_table(heads, rows, f"Metrics{what}")
    for name in names[1:]:
        own = [row for row in found.images if row["run"] == name]
        better = sum(row["score"] > row["baseline_score"] for row in own)
        if own:
            verb = "right" if all(row["score"] in (0, 1) and row["baseline_score"] in (0, 1) for row in own) else "better"
            verb = "right alone" if verb == "right" else verb
            echo(f"Images: {name} {verb}: {better}, {names[0]} {verb}: {len(own) - better}")
