"""``stvit export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stvit_cli.cli import app
from stvit_cli.cli.options import Json, new_file
from stvit_cli.cli.output import echo, reporting
from stvit_cli.errors import UserError


class Precision(StrEnum):
    """Precision of the weights in an exported file."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN_DIR_OR_WEIGHTS", help="The directory of a run, or a weights file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The new file: .onnx, or .safetensors.")],
    precision: Annotated[Precision, typer.Option(help="Of the weights in a .safetensors file.")] = Precision.fp32,
    json_file: Json = None,
) -> None:
    """Write a trained model for use elsewhere: ONNX for any batch, height and width from 64, or weights in half precision.

    The ONNX file is compared with the model before it gets its name. Classes, mean, std and size are in its metadata.

    \b
    stvit export runs/RUN model.onnx
    stvit export stvit-s.pth stvit-s.onnx
    stvit export runs/RUN half.safetensors --precision fp16
    """
    new_file(target, ".onnx", ".safetensors")
    if target.suffix == ".onnx" and precision != Precision.fp32:
        raise UserError(f"--precision {precision}: an .onnx file is written in fp32; half precision is for .safetensors.")
    with reporting(json_file) as report:
        from stvit_cli.analysis.export import export_onnx, export_weights
        from stvit_cli.tasks.loading import open_trained

        trained = open_trained(source)
        if target.suffix == ".onnx":
            echo(f"Writing {trained.info.model} as ONNX; this takes up to a few minutes.", err=True)
            done = export_onnx(trained, target)
            worst = max(done["largest_difference"].values())
            echo(
                f"Checked with onnxruntime at {', '.join(done['largest_difference'])}: differs by {worst:.1e} at most.", err=True
            )
        else:
            done = export_weights(trained, target, precision.value)
        size = target.stat().st_size
        echo(f"Wrote {target}, {size / 1e6:.1f} MB", err=True)
        report({"file": str(target), "model": trained.info.model, "size_bytes": size} | done)
