"""ONNX graphs: traced from a model, simplified, and free of what tells of the machine that made them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stvit_cli import __version__
from stvit_cli.models.exporting import exporting_onnx
from stvit_cli.models.optimize.quantize import open_session
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.tasks.exported import CROP_IS_DEFAULT, ExportForm

if TYPE_CHECKING:
    import onnx

OPSET = 18
EXAMPLE_SIZE = (96, 160)
"""H and W of the images that a model for any size is traced with."""


def write_graph(form: ExportForm, info: WeightsInfo, path: Path, precision: str = "fp32") -> int:
    """Trace a model and write it as ONNX, simplified, with its metadata.

    PyTorch's tracing exporter does it. The newer one, built on `torch.export`, reasons about every size as an expression: it
    takes about ten times as long for a classifier, and refuses a detector, whose number of boxes depends on the image
    (pytorch/vision#9306).

    Args:
        form: the model.
        info: of its weights.
        path: the new file; files that are needed in between are written beside it.
        precision: what the metadata say; the weights are in float32.

    Returns:
        The number of nodes before they were simplified.
    """
    import onnx
    import onnxruntime

    traced, simplified = path.with_name("traced.onnx"), path.with_name("simplified.onnx")
    trace(form, info, traced)
    num_nodes = len(onnx.load(traced).graph.node)
    # Folds constants and joins equal nodes; its other optimizations are for the machine, and each runtime has its own.
    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    open_session(traced, graph_optimization_level=basic, optimized_model_filepath=str(simplified))
    model = onnx.load(simplified)
    clean(model)
    onnx.helper.set_model_props(model, metadata(info, form.preparation, precision))
    onnx.save(model, path)
    return num_nodes


def trace(form: ExportForm, info: WeightsInfo, path: Path) -> None:
    """Write the graph of a model as PyTorch's exporter traces it."""
    size = EXAMPLE_SIZE if form.any_size else (info.image_size, info.image_size)
    images = torch.zeros(2 if form.batch else 1, info.in_chans, *size)
    free = {axis: name for axis, name in ((0, "batch"), (2, "height"), (3, "width")) if _is_free(form, axis)}
    with exporting_onnx(), torch.no_grad(), _quiet():
        torch.onnx.export(
            form.module,
            (images,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(form.outputs),
            dynamic_axes={"images": free, **{name: _free_axes(form, name, free) for name in form.outputs}},
        )


def _is_free(form: ExportForm, axis: int) -> bool:
    return form.batch if axis == 0 else form.any_size


def _free_axes(form: ExportForm, output: str, free: Mapping[int, str]) -> dict[int, str]:
    """Return the axes of an output whose length depends on the input, with their names."""
    if form.is_detector:
        return {0: "detections"}
    return dict(free) if form.is_map else {0: "batch"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of itself, and of sizes that it takes for constants, from the user: the file is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def clean(model: onnx.ModelProto) -> None:
    """Remove what a graph need not hold: debugging notes, with paths of this machine; sets of operators that it does not use."""
    del model.metadata_props[:], model.graph.value_info[:], model.graph.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "stvit", __version__, ""
    model.graph.name, model.graph.doc_string = "stvit", ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def metadata(info: WeightsInfo, preparation: Mapping[str, Any] | None = None, precision: str = "fp32") -> dict[str, str]:
    """Return the metadata of an exported file as text.

    Args:
        info: its fields are in them, lists as JSON. A classifier's ``crop_pct`` is there also where it is the default, with
            `CROP_IS_DEFAULT`.
        preparation: how an image is prepared.
        precision: of the file.
    """
    values = {**asdict(info), "precision": precision, "stvit_version": __version__}
    if info.task == "classification":
        values |= {"crop_pct": info.resolved_crop_pct, CROP_IS_DEFAULT: info.crop_pct is None}
    if preparation:
        values["preparation"] = {"channels": "RGB" if info.in_chans == 3 else "grey", "range": "0 to 1", **preparation}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
