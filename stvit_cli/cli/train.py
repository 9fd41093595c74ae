"""``stvit train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.api.overrides import as_words
from stvit_cli.api.own_data import keys_of
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Data, DryRun, Json, Model, Output, Overrides, RecipeName
from stvit_cli.cli.output import print_next_commands, report_dry_run, reporting
from stvit_cli.errors import UserError


@app.command()
def train(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Start from these weights: a file, a run's directory, a name of `stvit weights list`.",
            autocompletion=completion.weights,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_DIR",
            help="Resume this run from its last checkpoint, by its own recipe.",
            autocompletion=completion.run_dirs,
        ),
    ] = None,
    from_step: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="With --resume: start a new run from its checkpoint of step N; keys may change."),
    ] = None,
    dry_run: DryRun = False,
    json_file: Json = None,
) -> None:
    """Train a model on a folder of data, or by a recipe.

    \b
    stvit train --data FOLDER
    stvit train --recipe quickstart
    stvit train --recipe own-images --data FOLDER schedule.epochs=30
    stvit train --recipe deit300 --data IMAGENET --model stvit-b --dry-run
    stvit train --recipe coco-mask-rcnn-1x --data COCO --weights stvit-s.safetensors
    stvit train --resume runs/RUN
    stvit train --resume runs/RUN --from-step 5000 optim.lr=5e-4 --output runs/CALMER
    """
    given = as_words(overrides or (), model, data)
    if from_step is not None and (resume is None or weights is not None):
        raise UserError("--from-step N takes a checkpoint of the run that --resume RUN_DIR names; leave --weights out.")
    if resume is not None and from_step is None and (output is not None or weights is not None):
        raise UserError(
            "--resume continues in the run's own folder, from its checkpoint; leave --output out, and --weights too.\n"
            "A new run from one of its checkpoints: add --from-step N."
        )
    if resume is None and recipe is None and "data.dir" not in keys_of(given):
        raise UserError(_which_data())
    with reporting(json_file) as report:
        if dry_run:
            report_dry_run(api.dry_run(recipe, given, weights=weights, resume=resume, from_step=from_step), report)
            return
        if resume is not None:
            result = api.resume(resume, given, recipe=recipe, from_step=from_step, output=output)
        else:
            result = api.train(recipe, given, output=output, weights=weights)
        report(result.to_dict())
        print_next_commands(result.run_dir)


def _which_data() -> str:
    from stvit_cli.recipe.files import list_recipes

    shipped = ", ".join(path.stem for path in list_recipes())
    return f"Which data? Give --data FOLDER, whose kind is found out, or --resume RUN_DIR,\nor --recipe NAME, one of {shipped}."
