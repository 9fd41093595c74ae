"""Export trained models: ONNX for any image and batch size, verified with onnxruntime, or weights in another precision.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stvit_cli import __version__
from stvit_cli.analysis.export_int8 import Calibration, Int8Report, quantize_and_measure
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.half_weights import halve_weights
from stvit_cli.models.precision import DTYPES
from stvit_cli.models.timm_models import is_timm_name
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.tasks import registry
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.finite import require_finite
from stvit_cli.tasks.loading import Trained
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.files import replacing, writing

if TYPE_CHECKING:
    import onnx_ir as ir

NEEDED = ("onnx", "onnxscript", "onnxruntime")
CHECKED_SIZES = ((1, 65, 101), (2, 131, 70), (3, 97, 190))  # B, H, W; not multiples of any grid size
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""The largest difference of a file's logits from the model's, relative to the largest logit, by precision of the weights."""


def export_onnx(
    trained: Trained,
    path: Path,
    precision: str = "fp32",
    *,
    calibration: Calibration | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Export a classifier as ONNX: normalized images (B, in_chans, H, W), with H and W from 64, to logits (B, num_classes).

    A model of timm takes images of its own size only. The model is fused first, and the file is compared with the original model
    in onnxruntime before it gets its name. Its metadata holds the fields of `WeightsInfo` (classes, mean, std, image size, ...).

    Args:
        trained: a classifier, see `open_trained`.
        path: the new file.
        precision: fp32; fp16 or bf16 for weights stored in it, computed in float32; int8 as `models.optimize.quantize` makes it.
        calibration: the images that int8 is calibrated on.
        say: called with a line on what is done next.

    Returns:
        format, opset, precision, and largest_difference: the largest difference of the logits by size ``BxHxW``, relative to the
        largest logit (of int8, before it is quantized); of int8 also the fields of `Int8Report`.

    Raises:
        UserError: a package is missing, the model is not a classifier, its outputs are not finite, weights are beyond the range
            of fp16, int8 loses too much, or the file cannot be written.
        RuntimeError: the file computes other outputs than the model.

    Example:
        >>> trained = open_trained(Path("runs/RUN"))  # doctest: +SKIP
        >>> export_onnx(trained, Path("model.onnx"))["format"]  # doctest: +SKIP
        'onnx'
    """
    require_exportable(trained)
    sizes = checked_sizes(trained.info)
    _require_finite_outputs(trained, sizes[0][1:])
    say(f"Writing {trained.info.model} as ONNX; this can take some minutes.")
    model = _traced(trained)
    found: dict[str, Any] = {"format": "onnx", "opset": model.opset_imports[""], "precision": precision}
    with writing(path, advice=""), replacing(path) as temporary, _folder_beside(path) as folder:
        written = temporary if precision in TOLERANCES else folder / "fp32.onnx"
        _save(model, written, trained, precision)
        found["largest_difference"] = differences = compare(trained.model, written, trained.info.in_chans, sizes)
        if not all(difference <= TOLERANCES.get(precision, TOLERANCES["fp32"]) for difference in differences.values()):
            raise RuntimeError(
                f"the logits of the ONNX file differ from the model's, relative to the largest logit: {differences}"
            )
        if written != temporary:
            assert calibration is not None
            report = quantize_and_measure(trained, written, folder / "int8.onnx", calibration, say)
            add_metadata(folder / "int8.onnx", temporary, precision, report)
            found |= asdict(report)
    return found


def require_exportable(trained: Trained) -> None:
    """Raise UserError where a model cannot be exported as ONNX: before the work, not after it."""
    missing = [name for name in NEEDED if not is_installed(name)]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}, which are not installed: pip install 'stvit[onnx]'")
    if not registry.get(trained.info.task).exports_onnx:
        raise UserError(
            f"{trained.path} holds a model for {trained.info.task}; only classifiers can be exported as ONNX.\n"
            "Its weights can be exported in half precision: give a name that ends in .safetensors."
        )


def _traced(trained: Trained) -> ir.Model:
    """Return the graph of the fused model, with the metadata of its weights file."""
    side, any_size = trained.info.image_size, not is_timm_name(trained.info.model)
    example = torch.zeros(2, trained.info.in_chans, *((96, 160) if any_size else (side, side)))
    program = torch.onnx.export(
        fuse(trained.model),
        (example,),
        dynamo=True,
        optimize=False,  # the optimizer takes minutes, and onnxruntime has its own
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"},),
        verbose=False,
    )
    assert program is not None
    model: ir.Model = program.model
    model.producer_name, model.producer_version = "stvit", __version__
    model.metadata_props.update(metadata(trained.info))
    drop_traces(model)
    return model


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Yield a folder for unfinished files on the disk of ``path``, which is removed at the end."""
    with TemporaryDirectory(prefix=f".{path.stem[:50]}.", suffix=".writing", dir=path.parent) as folder:
        yield Path(folder)


def _save(model: ir.Model, path: Path, trained: Trained, precision: str) -> None:
    """Write a graph, with weights in half precision if that is asked for."""
    import onnx_ir

    if precision not in ("fp16", "bf16"):
        onnx_ir.save(model, path)
        return
    import onnx

    proto = onnx_ir.to_proto(model)
    try:
        halve_weights(proto, "fp16" if precision == "fp16" else "bf16")
    except OverflowError as error:
        raise _beyond_range(trained, str(error), precision) from None
    proto.metadata_props.add(key="precision", value=precision)
    onnx.save(proto, path)


def add_metadata(source: Path, target: Path, precision: str, report: Int8Report) -> None:
    """Copy an ONNX file with what was measured of it in its metadata."""
    import onnx

    model = onnx.load(source)
    for key, value in {"precision": precision, **asdict(report)}.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(model, target)


def checked_sizes(info: WeightsInfo) -> Sequence[tuple[int, int, int]]:
    """Return B, H, W at which a file is checked; of a model of timm, which need not take others, of its own images alone."""
    side = info.image_size
    return ((1, side, side), (3, side, side)) if is_timm_name(info.model) else (*CHECKED_SIZES, (2, side, side))


def drop_traces(model: ir.Model) -> None:
    """Remove the stack traces that the exporter attaches to every operation.

    They are meant for debugging the exporter, contain paths and user names of this machine, and make up about half of the file
    of a small model.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        nodes = list(graph.all_nodes())
        values: list[ir.Value] = [
            *graph.inputs,
            *graph.initializers.values(),
            *(output for node in nodes for output in node.outputs),
        ]
        annotated: list[ir.Graph | ir.Node | ir.Value] = [graph, *nodes, *values]
        for item in annotated:
            item.metadata_props.clear()
            item.doc_string = None


def metadata(info: WeightsInfo) -> dict[str, str]:
    """Return the metadata of an ONNX file: the fields of ``info`` as text, lists as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asdict(info).items()}


@torch.no_grad()
def _require_finite_outputs(trained: Trained, size: tuple[int, int]) -> None:
    """Run the model on random images before the export, which takes half a minute."""
    images = torch.randn(1, trained.info.in_chans, *size, generator=torch.Generator().manual_seed(0))
    try:
        require_finite(trained.model(images))
    except NonFiniteOutputsError as error:
        raise UserError(f"{trained.path}: {error}; use other weights. Nothing was written.") from None


@torch.no_grad()
def compare(
    model: nn.Module, path: Path, in_chans: int, sizes: Sequence[tuple[int, int, int]] = CHECKED_SIZES
) -> dict[str, float]:
    """Compare an ONNX file with the model on random images.

    Args:
        model: in eval mode.
        path: the ONNX file.
        in_chans: channels of the images.
        sizes: B, H and W of the images.

    Returns:
        By size ``BxHxW``, the largest difference of the logits, relative to the largest logit.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch, height, width in sizes:
        images = torch.randn(batch, in_chans, height, width, generator=generator)
        expected: Tensor = model(images)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        difference = (torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()
        differences[f"{batch}x{height}x{width}"] = difference.item()
    return differences


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
