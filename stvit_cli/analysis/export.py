"""A trained model for use elsewhere: ONNX for any size and batch, checked against onnxruntime, or weights in half precision."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stvit_cli import __version__
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.tasks import registry
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.finite import require_finite
from stvit_cli.tasks.loading import Trained
from stvit_cli.utils.files import replacing, writing

if TYPE_CHECKING:
    import onnx_ir as ir

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NEEDED = ("onnx", "onnxscript", "onnxruntime")
CHECKED_SIZES = ((1, 65, 101), (2, 131, 70), (3, 97, 190))  # B H W, multiples of no grid
TOLERANCE = 1e-4  # of the largest logit


def export_onnx(trained: Trained, path: Path) -> dict[str, Any]:
    """Write a classifier as ONNX: normalised images (B, in_chans, H, W), H and W from 64 -> logits (B, num_classes).

    What a user of the file must know (classes, mean, std, size) is in its metadata, one text for each. The fused model is
    written, and compared with the original in onnxruntime at three sizes before the file gets its name.

    Raises:
        UserError: a package is missing, another task, or the file cannot be written.
        RuntimeError: the file computes something else than the model.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}, which are not installed. Get them with: pip install 'stvit[onnx]'")
    if not registry.get(trained.info.task).exports_onnx:
        raise UserError(f"{trained.path} holds a model for {trained.info.task}; only classifiers can be written as ONNX.")
    _require_finite_outputs(trained)
    example = torch.zeros(2, trained.info.in_chans, 96, 160)
    program = torch.onnx.export(
        fuse(trained.model),
        (example,),
        dynamo=True,
        optimize=False,  # the optimiser does not end within minutes; onnxruntime has its own
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        verbose=False,
    )
    assert program is not None
    program.model.producer_name, program.model.producer_version = "stvit", __version__
    program.model.metadata_props.update(metadata(trained.info))
    drop_traces(program.model)
    with writing(path, advice=""), replacing(path) as aside:
        program.save(aside, external_data=False)
        differences = compare(trained.model, aside, trained.info.in_chans)
        if not all(difference <= TOLERANCE for difference in differences.values()):
            raise RuntimeError(f"the ONNX file differs from the model by {differences} of its largest logit")
    return {"format": "onnx", "opset": program.model.opset_imports[""], "largest_difference": differences}


def drop_traces(model: ir.Model) -> None:
    """Take out what the exporter notes of every operation: the source lines it comes from, with this machine's paths and users.

    It is for debugging the exporter, and about half of the file of a small model.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        nodes = list(graph.all_nodes())
        values: list[ir.Value] = [
            *graph.inputs,
            *graph.initializers.values(),
            *(output for node in nodes for output in node.outputs),
        ]
        every: list[ir.Graph | ir.Node | ir.Value] = [graph, *nodes, *values]
        for noted in every:
            noted.metadata_props.clear()
            noted.doc_string = None


def metadata(info: WeightsInfo) -> dict[str, str]:
    """Return the metadata of an ONNX file: the fields of ``info``, lists as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in asdict(info).items()}


@torch.no_grad()
def _require_finite_outputs(trained: Trained) -> None:
    """Try the model on random images: before the export, which takes half a minute."""
    images = torch.randn(1, trained.info.in_chans, *CHECKED_SIZES[0][1:], generator=torch.Generator().manual_seed(0))
    try:
        require_finite(trained.model(images))
    except NonFiniteOutputsError as error:
        raise UserError(f"{trained.path}: {error}; take other weights. Nothing was written.") from None


@torch.no_grad()
def compare(model: nn.Module, path: Path, in_chans: int) -> dict[str, float]:
    """Return for each checked size (B x H x W) the difference of onnxruntime's logits from the model's, by the largest logit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch, height, width in CHECKED_SIZES:
        images = torch.randn(batch, in_chans, height, width, generator=generator)
        expected: Tensor = model(images)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        difference = (torch.from_numpy(logits) - expected).abs().max() / expected.abs().max()
        differences[f"{batch}x{height}x{width}"] = difference.item()
    return differences


def export_weights(trained: Trained, path: Path, precision: str) -> dict[str, Any]:
    """Write the weights as safetensors, kernels and matrices in ``precision``; norms, biases and statistics stay in float32.

    Raises:
        UserError: a weight does not fit the precision, or the file cannot be written.
    """
    dtype = PRECISIONS[precision]
    state_dict = {name: tensor.to(dtype) if tensor.ndim > 1 else tensor for name, tensor in trained.model.state_dict().items()}
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise UserError(f"{trained.path}: {name} has values beyond the range of {precision}.{_wider(trained, precision)}")
    with writing(path, advice=""):
        save_weights(path, state_dict, trained.info)
    return {"format": "safetensors", "precision": precision}


def _wider(trained: Trained, precision: str) -> str:
    """Return what to say of the precisions that hold every weight; where none does, the weights themselves are not finite."""
    wider = [name for name in ("bf16", "fp32") if name != precision and _fits(trained, PRECISIONS[name])]
    return f" Take --precision {wider[0]}." if wider else " They are not finite; take other weights."


def _fits(trained: Trained, dtype: torch.dtype) -> bool:
    return all(bool(tensor.to(dtype).isfinite().all()) for tensor in trained.model.state_dict().values())
