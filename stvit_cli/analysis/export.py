"""Export trained models: ONNX, verified with onnxruntime, OpenVINO and PyTorch programs of it, or weights in another precision.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stvit_cli.analysis.export_check import CHECKED_SIZES, TOLERANCES, compare, require_finite_outputs, require_same
from stvit_cli.analysis.export_int8 import Calibration, Int8Report, quantize_and_measure
from stvit_cli.analysis.export_target import unfinished
from stvit_cli.analysis.onnx_graph import OPSET, write_graph
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.half_weights import halve_weights
from stvit_cli.models.precision import DTYPES
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.tasks import registry
from stvit_cli.tasks.exported import ExportForm
from stvit_cli.tasks.loading import Trained
from stvit_cli.utils.files import replacing, writing
from stvit_cli.utils.runtimes import require_onnx


def export_onnx(
    trained: Trained,
    path: Path,
    precision: str = "fp32",
    *,
    calibration: Calibration | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Export a model as ONNX, from normalized images (B, in_chans, H, W) to its outputs.

    A classifier's are ``logits`` (B, num_classes), of any B, and H and W from 64; a segmenter's are (B, num_classes, H, W).
    A detector takes one image, and gives ``boxes``, ``scores``, ``labels`` and, with masks, ``masks`` of any number of objects
    (`tasks.detection.export`). A classifier of timm takes images of its own size only.

    The model is fused first, and the file is compared with the original model in onnxruntime before it gets its name. Its
    metadata hold the fields of `WeightsInfo` (classes, mean, std, image size, ...) and ``preparation``: how an image becomes its
    input.

    Args:
        trained: a model of any task, see `open_trained`.
        path: the new file.
        precision: fp32; fp16 or bf16 for weights stored in it, computed in float32; int8 as `models.optimize.quantize` makes it.
        calibration: the images that int8 is calibrated on.
        say: called with a line on what is done next.

    Returns:
        format, opset, precision, num_nodes and num_nodes_traced: of the graph, and before it was simplified; and
        largest_difference: the largest difference of the outputs by size ``BxHxW``, relative to the largest output (of int8,
        before it is quantized); of a detector also ``num_compared`` and ``unmatched``, see `compare`; of int8 also the fields of
        `Int8Report`.

    Raises:
        UserError: a package is missing, the model cannot be exported, its outputs are not finite, weights are beyond the range
            of fp16, int8 loses too much, or the file cannot be written.
        RuntimeError: the file computes other outputs than the model.

    Example:
        >>> trained = open_trained(Path("runs/RUN"))  # doctest: +SKIP
        >>> export_onnx(trained, Path("model.onnx"))["format"]  # doctest: +SKIP
        'onnx'
    """
    require_onnx()
    form = require_exportable(trained, precision)
    sizes = checked_sizes(trained.info, form)
    require_finite_outputs(trained, form, sizes[0])
    found: dict[str, Any] = {"format": "onnx", "opset": OPSET, "precision": precision}
    with writing(path, advice=""), replacing(path) as temporary, folder_beside(path) as folder:
        say(f"Tracing {trained.info.model} for {trained.info.task}.")
        graph = folder / "fp32.onnx"
        found["num_nodes_traced"] = write_graph(form, trained.info, graph, precision)
        found["num_nodes"] = _halved(graph, temporary, trained, precision)
        say(f"Comparing the file with the model in onnxruntime, at {len(sizes)} sizes.")
        computed = precision if precision in TOLERANCES else "fp32"
        found |= compare(form, temporary, trained.info.in_chans, sizes, TOLERANCES[computed])
        require_same(found, computed, say=say)
        if precision not in TOLERANCES:
            assert calibration is not None
            report = quantize_and_measure(trained, graph, folder / "int8.onnx", calibration, say)
            add_metadata(folder / "int8.onnx", temporary, report)
            found |= asdict(report)
    return found


def require_exportable(trained: Trained, precision: str = "fp32") -> ExportForm:
    """Return a model as one graph; raise UserError where there is none, or not of this precision."""
    spec = registry.get(trained.info.task)
    if spec.export_form is None:
        raise UserError(
            f"{trained.path} holds a model for {trained.info.task}, which cannot be exported as a graph.\n"
            "Its weights can be exported in half precision: give a name that ends in .safetensors."
        )
    if precision == "int8" and spec.training_images is None:
        raise UserError(
            f"{trained.path} holds a model for {trained.info.task}; only classifiers are quantized to int8.\n"
            "Export it in fp16, which halves the file, or give an fp32 file to a quantizer of the runtime."
        )
    return spec.export_form(trained)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield a folder for unfinished files on the disk of ``path``, which is removed at the end."""
    start, end = unfinished(path)
    with TemporaryDirectory(prefix=start, suffix=end, dir=path.parent) as folder:
        yield Path(folder)


def _halved(source: Path, target: Path, trained: Trained, precision: str) -> int:
    """Copy a graph, with weights in half precision if that is asked for; return the number of its nodes."""
    import onnx

    model = onnx.load(source)
    num_nodes = len(model.graph.node)
    if precision in ("fp16", "bf16"):
        try:
            halve_weights(model, "fp16" if precision == "fp16" else "bf16")
        except OverflowError as error:
            raise _beyond_range(trained, str(error), precision) from None
    onnx.save(model, target)
    return num_nodes


def add_metadata(source: Path, target: Path, report: Int8Report) -> None:
    """Copy an ONNX file with what was measured of it in its metadata."""
    import onnx

    model = onnx.load(source)
    for key, value in asdict(report).items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, target)


def checked_sizes(info: WeightsInfo, form: ExportForm) -> list[tuple[int, int, int]]:
    """Return B, H, W at which a file is checked, and of a classifier also at its own size; of a model of timm there alone."""
    side = info.image_size
    if not form.any_size:
        return [(1, side, side), (3, side, side)]
    sizes = [(batch if form.batch else 1, height, width) for batch, height, width in CHECKED_SIZES]
    return [*sizes, (2, side, side)] if info.task == "classification" else sizes


def export_weights(trained: Trained, path: Path, precision: str) -> dict[str, Any]:
    """Export the weights as safetensors in another precision; norms, biases and statistics stay in float32.

    Args:
        trained: a model of any task, see `open_trained`.
        path: the new file.
        precision: fp32, fp16 or bf16.

    Returns:
        format and precision.

    Raises:
        UserError: a weight exceeds the range of the precision, or the file cannot be written.
    """
    dtype = DTYPES[precision]
    state_dict = {name: tensor.to(dtype) if tensor.ndim > 1 else tensor for name, tensor in trained.model.state_dict().items()}
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise _beyond_range(trained, name, precision)
    with writing(path, advice=""):
        save_weights(path, state_dict, trained.info)
    return {"format": "safetensors", "precision": precision}


def _beyond_range(trained: Trained, name: str, precision: str) -> UserError:
    return UserError(f"{trained.path}: {name} has values beyond the range of {precision}.{_wider(trained, precision)}")


def _wider(trained: Trained, precision: str) -> str:
    """Suggest a precision that holds every weight; if there is none, the weights themselves are not finite."""
    wider = [name for name in ("bf16", "fp32") if name != precision and _fits(trained, DTYPES[name])]
    return f" Use precision {wider[0]}." if wider else " They are not finite; use other weights."


def _fits(trained: Trained, dtype: torch.dtype) -> bool:
    return all(bool(tensor.to(dtype).isfinite().all()) for tensor in trained.model.state_dict().values())
