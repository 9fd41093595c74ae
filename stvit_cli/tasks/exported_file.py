"""Open a file of `stvit export` in the runtime that it is for, as a model of its task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from stvit_cli.errors import UserError
from stvit_cli.models.optimize.quantize import open_session
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.models.weights.info import missing_parts, parse
from stvit_cli.tasks import registry
from stvit_cli.tasks.exported import CROP_IS_DEFAULT, ENDINGS, Run
from stvit_cli.tasks.spec import Trained
from stvit_cli.utils.runtimes import openvino_core, require_runtime
from stvit_cli.utils.text import first_line, shortened

METADATA = "stvit"
"""Where the metadata are in an OpenVINO file, as JSON."""
_REQUIRED = ("model", "task", "num_classes", "mean", "std", "image_size")
_TEXTS = {each.name for each in fields(WeightsInfo) if isinstance(each.default, str) or each.name == "model"}


def open_exported(path: Path) -> Trained:
    """Open an exported file; its model computes in its runtime on the CPU, and has the interface of the task's own.

    Args:
        path: an ``.onnx`` file, or the ``.xml`` of OpenVINO.

    Raises:
        UserError: the file is not there, damaged, of another tool, or its runtime is not installed.
    """
    runtime = ENDINGS.get(path.suffix.lower())
    if runtime is None:
        raise UserError(
            f"{path}: a .pt2 file is run by torch.export.load alone (docs/export.md), which runs code that the file may hold.\n"
            "Give an .onnx or .xml file, or the weights that it was exported from."
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    require_runtime(path, runtime)
    try:
        run, found = open_runner(path)
    except Exception as error:  # each runtime has exceptions of its own for a damaged file
        reason = shortened(first_line(error), 160)
        raise UserError(f"{path}: {runtime} cannot read it: {reason}") from error
    info = _parsed(path, found)
    build = registry.get(info.task).exported_model
    if build is None:
        raise UserError(f"{path} holds a model for {info.task}, which cannot be run from an exported file.")
    return Trained(build(info, run).eval(), info, path)


def open_runner(path: Path) -> tuple[Run, Mapping[str, str]]:
    """Open an exported file in its runtime; return what computes it, and its metadata.

    What is returned raises UserError for images of a shape that the file does not take.

    Args:
        path: the ``.xml`` of OpenVINO, or an ONNX file of any name. It may raise what the runtime raises for a damaged file.
    """
    runtime = ENDINGS.get(path.suffix.lower(), "onnxruntime")  # the name of an unfinished file ends otherwise
    run, accepted, found = (_onnxruntime if runtime == "onnxruntime" else _openvino)(path)

    def run_or_say(images: Any) -> Mapping[str, Any]:
        if any(side not in (None, given) for side, given in zip(accepted, images.shape, strict=False)):
            raise UserError(
                f"{path} takes images of {_shape(accepted)} alone (batch x channels x height x width); "
                f"found {_shape(images.shape)}.\n"
                "Leave data.image_size as it is, or give the weights that it was exported from."
            )
        try:
            return run(images)
        except Exception as error:  # each runtime has exceptions of its own
            reason = shortened(first_line(error), 160)
            raise UserError(
                f"{path}: {runtime} cannot run it on images of {_shape(images.shape)} (batch x channels x height x width); "
                f"it takes {_shape(accepted)}: {reason}"
            ) from error

    return run_or_say, found


def _shape(sides: Sequence[int | None]) -> str:
    """Return a shape as text.

    >>> _shape((None, 3, 64, 64))
    'any x 3 x 64 x 64'
    """
    return " x ".join("any" if side is None else str(side) for side in sides)


def _parsed(path: Path, found: Mapping[str, str]) -> WeightsInfo:
    missing = [key for key in _REQUIRED if key not in found]
    if missing:
        raise UserError(
            f"{path}: not a file of `stvit export`: its metadata lack {', '.join(missing)}.\n"
            "They say how an image is prepared and what the classes are; export the weights with this version."
        )
    default_crop = found.get(CROP_IS_DEFAULT) == "true"
    names = [each.name for each in fields(WeightsInfo) if each.name in found and not (default_crop and each.name == "crop_pct")]
    try:
        values = {name: found[name] if name in _TEXTS else json.loads(found[name]) for name in names}
        info = parse(json.dumps(values), str(path))
    except ValueError as error:
        raise UserError(f"{path}: its metadata cannot be read: {error}.") from None
    for problem in missing_parts(info):
        raise UserError(f"{path}: its metadata are incomplete: {problem}.")
    return info


Accepted = tuple[int | None, ...]
"""The shape of the images that a file takes; None for a dimension of any size."""


def _onnxruntime(path: Path) -> tuple[Run, Accepted, Mapping[str, str]]:
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    given = session.get_inputs()[0]

    def run(images: Any) -> Mapping[str, Any]:
        return dict(zip(names, session.run(names, {given.name: images}), strict=True))

    accepted = tuple(side if isinstance(side, int) else None for side in given.shape)
    return run, accepted, session.get_modelmeta().custom_metadata_map


def _openvino(path: Path) -> tuple[Run, Accepted, Mapping[str, str]]:
    core = openvino_core()
    model = core.read_model(path)
    found = json.loads(str(model.get_rt_info([METADATA]).astype(str))) if model.has_rt_info([METADATA]) else {}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    names = [output.get_any_name() for output in model.outputs]

    def run(images: Any) -> Mapping[str, Any]:
        request.infer([images])
        return {name: request.get_tensor(name).data.copy() for name in names}

    shape = model.inputs[0].get_partial_shape()
    accepted = () if shape.rank.is_dynamic else tuple(side.get_length() if side.is_static else None for side in shape)
    return run, accepted, found
