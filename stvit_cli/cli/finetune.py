"""``stvit finetune``."""

from __future__ import annotations

from stvit_cli import api
from stvit_cli.api.overrides import as_words
from stvit_cli.cli import app
from stvit_cli.cli.options import Data, DryRun, Json, Model, Output, Overrides, RecipeName, Weights
from stvit_cli.cli.output import print_next_commands, report_dry_run, reporting


@app.command()
def finetune(
    weights: Weights,
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    dry_run: DryRun = False,
    json_file: Json = None,
) -> None:
    """Train from weights. Other classes, another image size and another number of channels are fine.

    \b
    stvit finetune --weights stvit-s.safetensors --data FOLDER
    stvit finetune --recipe finetune384 --weights runs/RUN --data IMAGENET
    stvit finetune --recipe mine.yaml --weights stvit-s.pth --data FOLDER schedule.epochs=20
    stvit finetune --recipe mine.yaml --weights stvit-s.pth --data FOLDER finetune.freeze_backbone=true
    """
    given = as_words(overrides or (), model, data)
    with reporting(json_file) as report:
        if dry_run:
            report_dry_run(api.dry_run(recipe, given, weights=weights), report)
            return
        result = api.train(recipe, given, output=output, weights=weights)
        report(result.to_dict())
        print_next_commands(result.run_dir)
