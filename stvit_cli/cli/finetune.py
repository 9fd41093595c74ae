"""``stvit finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli.cli import app
from stvit_cli.cli.options import Data, DryRun, Json, Model, Output, Overrides, words
from stvit_cli.cli.output import reporting
from stvit_cli.cli.training import new_run, say_what_next
from stvit_cli.recipe import io as recipe_io


@app.command()
def finetune(
    recipe: Annotated[str, typer.Option(metavar="NAME", help="A shipped recipe's name (stvit recipes list), or a file.")],
    weights: Annotated[Path, typer.Option(metavar="FILE", help="A weights file, or the directory of a run.")],
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    dry_run: DryRun = False,
    json_file: Json = None,
) -> None:
    """Train from weights. Other classes, another image size and another number of channels are fine.

    \b
    stvit finetune --recipe finetune384 --weights runs/RUN --data IMAGENET
    stvit finetune --recipe mine.yaml --weights stvit-s.pth --data FOLDER schedule.epochs=20
    stvit finetune --recipe mine.yaml --weights stvit-s.pth --data FOLDER finetune.freeze_backbone=true
    """
    with reporting(json_file) as report:
        settings = recipe_io.load(recipe, words(overrides, model, data))
        run_dir, figures = new_run(settings, output, weights, dry_run)
        report(figures)
        if not dry_run:
            say_what_next(run_dir)
