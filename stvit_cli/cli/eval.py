"""``stvit eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.metrics_tables import print_metrics
from stvit_cli.cli.options import Json, Precision
from stvit_cli.cli.output import echo, reporting, require_writable_table
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_main_process


@app.command("eval")
def eval_(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN_DIR] [KEY=VALUE]...",
            help="The directory of a run; keys such as eval.batch_size=16.",
            autocompletion=completion.runs_and_overrides,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A weights file or a name of `stvit weights list`, in place of a run.",
            autocompletion=completion.weights,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model that the file is expected to hold.", autocompletion=completion.models),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Another folder, laid out as its task's data are.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write what is said of every image, with the truth: a .csv or .parquet file."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also draw images here, truth beside prediction, those with the most errors first."),
    ] = None,
    max_images: Annotated[int, typer.Option(metavar="N", min=1, help="With --output: how many images to draw.")] = 50,
    precision: Precision = "fp32",
    json_file: Json = None,
) -> None:
    """Evaluate a run on its validation data, or weights on a folder: of images by class, in COCO's or in ADE20K's layout.

    \b
    stvit eval runs/RUN
    stvit eval runs/RUN --data FOLDER --json -
    stvit eval runs/RUN --predictions mistakes.csv
    stvit eval runs/RUN --output drawn --max-images 20
    stvit eval runs/RUN --precision bf16
    stvit eval --weights stvit-s.pth --model stvit-s --data IMAGENET
    """
    given = list(arguments or ())
    run_dir = Path(given.pop(0)) if given and "=" not in given[0] else None
    if (run_dir is None) == (weights is None):
        raise UserError("Evaluate what? Give either the directory of a run (stvit eval RUN_DIR) or a file (--weights FILE).")
    if weights is not None and data is None:
        raise UserError(
            "A weights file comes without data; give a folder of images by class, or in the layout of its task: --data DIR"
        )
    if predictions is not None and is_main_process():
        require_writable_table(predictions)
    with reporting(json_file) as report:
        if weights is not None and data is not None:
            trained = api.load(weights, model)
            result = trained.evaluate(data, given, output=output, max_images=max_images, precision=precision)
        else:
            assert run_dir is not None
            result = api.evaluate(run_dir, data, given, model=model, output=output, max_images=max_images, precision=precision)
        if predictions is not None and result.predictions is not None:
            result.predictions.write(predictions)
        results = result.to_dict()
        if is_main_process():
            print_metrics(results)
            if output is not None:
                echo(f"Drawn, the worst first: {output}", err=True)
        report(results)
