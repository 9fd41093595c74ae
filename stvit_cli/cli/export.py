"""``stvit export``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from stvit_cli import api
from stvit_cli.cli import app, completion
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, print_table, reporting, showing_stages


class Precision(StrEnum):
    """Precision of the weights in an exported file."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_WEIGHTS",
            help="The directory of a run, a weights file, or a name of `stvit weights list`.",
            autocompletion=completion.weights,
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The new file: .onnx, .xml (OpenVINO), .pt2 (torch.export) or .safetensors.")
    ],
    precision: Annotated[
        Precision,
        typer.Option(
            metavar="fp32|fp16|bf16|int8",
            help="fp16, bf16: of the weights. int8, of a classifier as .onnx: convolutions and linear layers compute in it.",
        ),
    ] = Precision.fp32,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="For int8: a folder of images to calibrate on; by default the training images of the run."
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Write a trained model for use elsewhere, in the format that the name's ending says.

    For any height and width from 64, and any batch but of a detector. The file is compared with the model before it gets its
    name; classes, mean, std, size and how an image is prepared are in its metadata. `stvit predict` and `stvit eval` run it.
    With int8, the layers that lose too much stay in float32, and the accuracy is measured before and after.

    \b
    stvit export runs/RUN model.onnx
    stvit export runs/DETECTOR detector.onnx --precision fp16
    stvit export runs/RUN int8.onnx --precision int8
    stvit export stvit-s.pth int8.onnx --precision int8 --calibrate FOLDER
    stvit export runs/SEGMENTER model.xml           (OpenVINO; pip install 'stvit[openvino]')
    stvit export runs/RUN model.pt2                 (torch.export)
    stvit export runs/RUN half.safetensors --precision fp16
    """
    from stvit_cli.analysis.export_target import require_exported_file  # before PyTorch is imported, which takes seconds

    require_exported_file(target, precision.value, calibrated=calibrate is not None)
    with reporting(json_file) as report:
        with showing_stages() as say:
            say(f"Opening {source}.")
            result = api.load(source).export(target, precision.value, calibrate=calibrate, say=say)
        differences = result.details.get("largest_difference")
        if differences:
            worst = max(differences.values())
            before = "file" if precision != Precision.int8 else "fp32 file"
            runtime = {".pt2": "torch", ".xml": "openvino"}.get(target.suffix, "onnxruntime")
            echo(f"The {before}, checked with {runtime} at {', '.join(differences)}, differs by {worst:.1e} at most.", err=True)
        if "num_compared" in result.details:
            echo(f"Compared {result.details['num_compared']} objects that both find.", err=True)
        if target.suffix == ".xml":
            echo(f"The weights are in {target.with_suffix('.bin')}; keep both files together.", err=True)
        if precision == Precision.int8:
            _print_int8(result.details)
        echo(f"Wrote {target}, {result.size_bytes / 1e6:.1f} MB", err=True)
        report(result.to_dict())


def _print_int8(found: Mapping[str, Any]) -> None:
    """Print which layers stay in float32, and the metrics of both precisions."""
    kept = found["float_layers"]
    shown = [f"{name} ({snr_db:.1f} dB)" for name, snr_db in kept.items()]
    echo(f"In int8: {found['num_layers'] - len(kept)} of {found['num_layers']} layers.", err=True)
    if kept:
        echo(f"Kept in float32, as they lose the most: {', '.join(shown)}", err=True)
    same = f"{100 * found['agreement']:.1f} % of the calibration images have the same prediction in int8"
    echo(f"{same}; signal to noise of the logits {found['snr_db']:.1f} dB.", err=True)
    if found["metrics"]:
        before, after = found["metrics"]["fp32"], found["metrics"]["int8"]
        rows = [(name, f"{before[name]:.4g}", f"{after[name]:.4g}") for name in before if name != "num_images"]
        print_table(
            ("metric", "fp32", "int8"), rows, f"on {before['num_images']:.0f} validation images, in onnxruntime", right=(1, 2)
        )
