"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stvit_cli.cli import completion

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Keys of the recipe set here, such as optim.lr=5e-4.",
        show_default=False,
        autocompletion=completion.overrides,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="A shipped recipe's name (`stvit recipes list`), or a file.",
        autocompletion=completion.recipes,
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Sets model.name, such as stvit-b.", autocompletion=completion.models),
]
Weights = Annotated[
    Path,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="A weights file, a run's directory, a name of `stvit weights list`, hf-hub:OWNER/NAME, or an exported file.",
        autocompletion=completion.weights,
    ),
]
Data = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Sets data.dir, the folder of the data set, or its annotation file.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="The run directory, new or empty; by default runs/<recipe>-<time>."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Build everything, take one step, print what the run would be; write nothing.")
]
Precision = Annotated[
    Literal["fp32", "bf16"],
    typer.Option("--precision", metavar="fp32|bf16", help="What the model computes in; bf16 needs a GPU or CPU that has it."),
]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - is standard output.")]
Dtype = Annotated[
    Literal["fp32", "fp16"], typer.Option(metavar="fp32|fp16", help="What scores and features are written in, in Parquet files.")
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Images in one forward pass; by default 64 of a classifier, 8 of others.")
]
