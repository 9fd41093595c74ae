"""Open a file of `stvit export` in the runtime that it is for, as a model of its task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from stvit_cli.errors import UserError
from stvit_cli.models.optimize.quantize import open_session
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.models.weights.info import missing_parts, parse
from stvit_cli.tasks import registry
from stvit_cli.tasks.exported import ENDINGS, Run
from stvit_cli.tasks.spec import Trained
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.runtimes import EXTRAS, openvino_core
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
    if not is_installed(runtime):
        raise UserError(f"{path} needs {runtime}, which is not installed: pip install 'stvit[{EXTRAS[runtime]}]'")
    try:
        run, found = (_onnxruntime if runtime == "onnxruntime" else _openvino)(path)
    except Exception as error:  # each runtime has exceptions of its own for a damaged file
        reason = shortened(first_line(error), 160)
        raise UserError(f"{path}: {runtime} cannot read it: {reason}") from error
    info = _parsed(path, found)
    build = registry.get(info.task).exported_model
    if build is None:
        raise UserError(f"{path} holds a model for {info.task}, which cannot be run from an exported file.")
    return Trained(build(info, run).eval(), info, path)


def _parsed(path: Path, found: Mapping[str, str]) -> WeightsInfo:
    missing = [key for key in _REQUIRED if key not in found]
    if missing:
        raise UserError(
            f"{path}: not a file of `stvit export`: its metadata lack {', '.join(missing)}.\n"
            "They say how an image is prepared and what the classes are; export the weights with this version."
        )
    names = [each.name for each in fields(WeightsInfo) if each.name in found]
    try:
        values = {name: found[name] if name in _TEXTS else json.loads(found[name]) for name in names}
        info = parse(json.dumps(values), str(path))
    except ValueError as error:
        raise UserError(f"{path}: its metadata cannot be read: {error}.") from None
    for problem in missing_parts(info):
        raise UserError(f"{path}: its metadata are incomplete: {problem}.")
    return info


def _onnxruntime(path: Path) -> tuple[Run, Mapping[str, str]]:
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    given = session.get_inputs()[0].name

    def run(images: Any) -> Mapping[str, Any]:
        return dict(zip(names, session.run(names, {given: images}), strict=True))

    return run, session.get_modelmeta().custom_metadata_map


def _openvino(path: Path) -> tuple[Run, Mapping[str, str]]:
    core = openvino_core()
    model = core.read_model(path)
    found = json.loads(str(model.get_rt_info([METADATA]).astype(str))) if model.has_rt_info([METADATA]) else {}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    names = [output.get_any_name() for output in model.outputs]

    def run(images: Any) -> Mapping[str, Any]:
        request.infer([images])
        return {name: request.get_tensor(name).data.copy() for name in names}

    return run, found
