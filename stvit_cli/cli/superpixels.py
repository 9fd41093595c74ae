"""``stvit superpixels``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, print_table, reporting, showing_progress


@app.command()
def superpixels(
    weights: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs or weights files; NAME=RUN names a row. Runs that differ in train.seed alone are seeds of one row.",
            autocompletion=completion.weights,
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write the table and the plots into.")] = Path(
        "superpixels"
    ),
    scenes: Annotated[int, typer.Option(metavar="N", min=1, help="Number of held-out scenes.")] = 100,
    scene_size: Annotated[int, typer.Option(metavar="N", min=32, help="Longer side of a scene, in pixels.")] = 96,
    scene_seed: Annotated[int, typer.Option(metavar="N", help="Seed of the set of scenes.")] = 0,
    untrained: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of random initializations to compare with; 0: none.")
    ] = 3,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", min=32, help="Short side of the models' input; else that of their evaluation.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure whether super tokens follow objects, beside the regular grid and SLIC with as many segments.

    Boundary recall, undersegmentation error and achievable accuracy of each layer, trained and untrained, on synthetic scenes
    that no run has seen, with exact maps of their objects.

    \b
    stvit superpixels runs/RUN
    stvit superpixels runs/SEED0 runs/SEED1 runs/SEED2 --output superpixels
    stvit superpixels segmenter=runs/A classifier=runs/B --scenes 300 --json -
    """
    with reporting(json_file) as report:
        with showing_progress() as advance:
            found = api.superpixels(
                weights,
                num_scenes=scenes,
                scene_size=scene_size,
                scene_seed=scene_seed,
                untrained=untrained,
                image_size=image_size,
                output=output,
                progress=advance,
            )
        from stvit_cli.analysis.superpixels.measure import COLUMNS

        print_table(COLUMNS, found.table(), right=(2, *range(4, len(COLUMNS))))
        echo(*found.notes())
        echo(f"Written to {output}: superpixels.json, table.md, plot.svg, scenes.png", err=True)
        report(found.to_dict())
