"""Further formats of an exported model: OpenVINO's, and a program of `torch.export`.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stvit_cli.analysis.export import checked_sizes, export_onnx, export_weights, folder_beside, require_exportable
from stvit_cli.analysis.export_check import TOLERANCES, compare, differences_of, require_finite_outputs, require_same
from stvit_cli.analysis.export_int8 import find_calibration
from stvit_cli.analysis.export_target import leftovers, require_exported_file
from stvit_cli.analysis.onnx_graph import EXAMPLE_SIZE, OPSET, metadata, write_graph
from stvit_cli.errors import UserError
from stvit_cli.tasks.exported import ExportForm
from stvit_cli.tasks.exported_file import METADATA
from stvit_cli.tasks.loading import Trained
from stvit_cli.utils.files import writing
from stvit_cli.utils.runtimes import require_onnx


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
        require_onnx()
        require_exportable(trained, precision)
        calibration = find_calibration(trained, calibrate, say)
    return export_onnx(trained, path, precision, calibration=calibration, say=say)


def export_openvino(
    trained: Trained, path: Path, precision: str = "fp32", *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Export a model for OpenVINO: ``path`` and, beside it, the weights in a ``.bin`` file.

    The model is written as ONNX and converted by OpenVINO. What OpenVINO computes of the new files is compared with the model
    before they get their names.

    Args:
        trained: a model of any task, see `open_trained`.
        path: the new ``.xml`` file.
        precision: fp32, or fp16 for weights stored in it.
        say: called with a line on what is done next.

    Returns:
        As `export_onnx` does; the nodes are those of the ONNX file.

    Raises:
        UserError: as `export_onnx` does.
        RuntimeError: as `export_onnx` does.
    """
    require_onnx()
    form = require_exportable(trained)
    sizes = checked_sizes(trained.info, form)
    require_finite_outputs(trained, form, sizes[0])
    found: dict[str, Any] = {"format": "openvino", "opset": OPSET, "precision": precision}
    with writing(path, advice=""), folder_beside(path) as folder:
        say(f"Tracing {trained.info.model} for {trained.info.task}.")
        graph, written = folder / "graph.onnx", folder / path.name
        found["num_nodes_traced"] = write_graph(form, trained.info, graph, precision)
        say("Converting the file for OpenVINO.")
        found["num_nodes"] = _convert(graph, written, form, metadata(trained.info, form.preparation, precision), precision)
        say(f"Comparing the file with the model in OpenVINO, at {len(sizes)} sizes.")
        found |= compare(form, written, trained.info.in_chans, sizes, TOLERANCES[precision])
        require_same(found, precision, say=say)
        _place(written, path)
    return found


def _convert(graph: Path, target: Path, form: ExportForm, told: dict[str, str], precision: str) -> int:
    """Write an ONNX file for OpenVINO, as an ``.xml`` and a ``.bin`` file; return the number of its nodes in ONNX."""
    import onnx
    import openvino

    model = openvino.convert_model(graph)
    for output, name in zip(model.outputs, form.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(json.dumps(told), [METADATA])
    openvino.save_model(model, target, compress_to_fp16=precision == "fp16")
    return len(onnx.load(graph).graph.node)


def _place(written: Path, path: Path) -> None:
    """Give both files of OpenVINO their names: the weights first, so that an ``.xml`` file is never without them."""
    weights = path.with_suffix(".bin")
    for folder in list(leftovers(path)):
        shutil.rmtree(folder, ignore_errors=True)
    written.with_suffix(".bin").replace(weights)
    try:
        written.replace(path)
    except BaseException:  # Ctrl-C too
        weights.unlink(missing_ok=True)
        raise


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
    require_same({"largest_difference": differences}, "fp32")
    with writing(path, advice=""), folder_beside(path) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extra = {"stvit.json": json.dumps(metadata(trained.info, form.preparation))}
        torch.export.save(program, folder / "model.pt2", extra_files=extra)
        (folder / "model.pt2").replace(path)
    return {"format": "pt2", "precision": "fp32", "largest_difference": differences}
