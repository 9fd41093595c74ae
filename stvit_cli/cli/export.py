"""``stvit export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, reporting
from stvit_cli.errors import UserError
from stvit_cli.utils.files import require_new_file


class Precision(StrEnum):
    """Precision of the weights in an exported file."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_WEIGHTS", help="The directory of a run, or a weights file.", autocompletion=completion.weights
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new file: .onnx, or .safetensors.")],
    precision: Annotated[
        Precision, typer.Option(metavar="fp32|fp16|bf16", help="Of the weights in a .safetensors file.")
    ] = Precision.fp32,
    json_file: Json = None,
) -> None:
    """Write a trained model for use elsewhere: ONNX for any batch, height and width from 64, or weights in half precision.

    The ONNX file is compared with the model before it gets its name. Classes, mean, std and size are in its metadata.

    \b
    stvit export runs/RUN model.onnx
    stvit export stvit-s.pth stvit-s.onnx
    stvit export runs/RUN half.safetensors --precision fp16
    """
    require_new_file(target, ".onnx", ".safetensors")
    if target.suffix == ".onnx" and precision != Precision.fp32:
        raise UserError(f"--precision {precision}: an .onnx file is written in fp32; half precision is for .safetensors.")
    with reporting(json_file) as report:
        trained = api.load(source)
        if target.suffix == ".onnx":
            echo(f"Writing {trained.info.model} as ONNX; this takes up to a few minutes.", err=True)
        result = trained.export(target, precision.value)
        if target.suffix == ".onnx":
            differences = result.details["largest_difference"]
            worst = max(differences.values())
            echo(f"Checked with onnxruntime at {', '.join(differences)}: differs by {worst:.1e} at most.", err=True)
        echo(f"Wrote {target}, {result.size_bytes / 1e6:.1f} MB", err=True)
        report(result.to_dict())
