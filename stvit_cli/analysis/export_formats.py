"""Further formats of an exported model: OpenVINO's, and a program of `torch.export`.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stvit_cli.analysis.export import checked_sizes, export_onnx, export_weights, folder_beside, require_exportable
from stvit_cli.analysis.export_check import TOLERANCES, differences_of, require_finite_outputs
from stvit_cli.analysis.export_int8 import find_calibration
from stvit_cli.analysis.onnx_graph import EXAMPLE_SIZE, metadata
from stvit_cli.errors import UserError
from stvit_cli.models.precision import DTYPES
from stvit_cli.tasks.exported_file import METADATA
from stvit_cli.tasks.loading import Trained
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.files import require_new_file, writing
from stvit_cli.utils.runtimes import EXTRAS

ENDINGS = (".onnx", ".xml", ".pt2", ".safetensors")
"""The endings of the files that a model can be exported to."""


def require_exported_file(path: Path, precision: str, *, calibrated: bool = False) -> None:
    """Raise UserError where a file cannot be written in a format and precision: before the work, not after it.

    Args:
        path: the new file; its ending is the format.
        precision: fp32, fp16, bf16 or int8.
        calibrated: images to calibrate int8 on are given.
    """
    require_new_file(path, *ENDINGS)
    if precision not in (*DTYPES, "int8"):
        raise UserError(f"precision: found {precision!r}, expected one of {', '.join(DTYPES)}, int8.")
    if precision != "int8" and calibrated:
        raise UserError(f"{path}: only int8 is calibrated on images, but the precision is {precision}.")
    known = {".onnx": (*DTYPES, "int8"), ".xml": ("fp32", "fp16"), ".pt2": ("fp32",), ".safetensors": tuple(DTYPES)}[path.suffix]
    if precision not in known:
        other = "; int8 is for names that end in .onnx, which OpenVINO reads too" if precision == "int8" else ""
        raise UserError(f"{path}: a {path.suffix} file is written in {' or '.join(known)}, found {precision}{other}.")
    if path.suffix == ".xml":
        if not is_installed("openvino"):
            raise UserError(f"{path}: needs openvino, which is not installed: pip install 'stvit[{EXTRAS['openvino']}]'")
        require_new_file(path.with_suffix(".bin"), ".bin")


def export_file(
    trained: Trained,
    path: Path,
    precision: str = "fp32",
    *,
    calibrate: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Export a model in the format that the ending of a name says.

    Args:
        trained: a model of any task, see `open_trained`.
        path: the new file: ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (`torch.export`) or ``.safetensors``.
        precision: see `export_onnx`, `export_openvino` and `export_weights`.
        calibrate: a folder of images to calibrate int8 on; None: the training images of the model's run.
        say: called with a line on what is done next.

    Returns:
        What is known of the file, see the function of each format.

    Raises:
        UserError: it cannot be exported so; see the function of each format.
    """
    require_exported_file(path, precision, calibrated=calibrate is not None)
    if path.suffix == ".safetensors":
        return export_weights(trained, path, precision)
    if path.suffix == ".xml":
        return export_openvino(trained, path, precision, say=say)
    if path.suffix == ".pt2":
        return export_program(trained, path, say=say)
    calibration = None
    if precision == "int8":
        require_exportable(trained, precision)
        calibration = find_calibration(trained, calibrate, say)
    return export_onnx(trained, path, precision, calibration=calibration, say=say)


def export_openvino(
    trained: Trained, path: Path, precision: str = "fp32", *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Export a model for OpenVINO: ``path`` and, beside it, the weights in a ``.bin`` file.

    The model is exported as ONNX, compared with onnxruntime as `export_onnx` does, and converted by OpenVINO.

    Args:
        trained: a model of any task, see `open_trained`.
        path: the new ``.xml`` file.
        precision: fp32, or fp16 for weights stored in it.
        say: called with a line on what is done next.

    Returns:
        As `export_onnx` does; its differences are those of the ONNX file.

    Raises:
        UserError: as `export_onnx` does.
    """
    import openvino

    with writing(path, advice=""), folder_beside(path) as folder:
        found = export_onnx(trained, folder / "model.onnx", say=say)
        say("Converting the file for OpenVINO.")
        model = openvino.convert_model(folder / "model.onnx")
        form = require_exportable(trained)
        for output, name in zip(model.outputs, form.outputs, strict=True):
            output.get_tensor().set_names({name})
        model.set_rt_info(json.dumps(metadata(trained.info, form.preparation or {})), [METADATA])
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=precision == "fp16")
        (folder / "model.bin").replace(path.with_suffix(".bin"))
        (folder / "model.xml").replace(path)
    return found | {"format": "openvino", "precision": precision}


def export_program(trained: Trained, path: Path, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Export a classifier or a segmenter as a program of `torch.export`: for PyTorch without this package, and for AOTInductor.

    The metadata of `export_onnx` are in it as the extra file ``stvit.json``.

    Args:
        trained: see `open_trained`.
        path: the new ``.pt2`` file.
        say: called with a line on what is done next.

    Returns:
        format, precision and largest_difference.

    Raises:
        UserError: the model is a detector, its outputs are not finite, or the file cannot be written.
    """
    form = require_exportable(trained)
    if form.is_detector:
        raise UserError(
            f"{path}: torch.export holds no detector, as its number of boxes depends on the image; give a name in .onnx."
        )
    size = EXAMPLE_SIZE if form.any_size else (trained.info.image_size, trained.info.image_size)
    require_finite_outputs(trained, form, (1, *size))
    say(f"Exporting {trained.info.model} by torch.export; this takes a minute or more.")
    free = torch.export.Dim.AUTO
    axes = {0: free, 2: free, 3: free} if form.any_size else {0: free}
    images = torch.zeros(2, trained.info.in_chans, *size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(form.module, (images,), dynamic_shapes=(axes,), strict=False)
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(key, None)  # paths of this machine
    say("Comparing the program with the model.")
    run = program.module()
    differences = differences_of(form, lambda images: (run(images),), trained.info.in_chans, checked_sizes(trained.info, form))
    if not all(difference <= TOLERANCES["fp32"] for difference in differences.values()):
        raise RuntimeError(f"the outputs of the program differ from the model's, relative to the largest output: {differences}")
    with writing(path, advice=""), folder_beside(path) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra = {"stvit.json": json.dumps(metadata(trained.info, form.preparation or {}))}
        torch.export.save(program, folder / "model.pt2", extra_files=extra)
        (folder / "model.pt2").replace(path)
    return {"format": "pt2", "precision": "fp32", "largest_difference": differences}
