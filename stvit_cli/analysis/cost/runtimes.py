"""Other runtimes beside PyTorch: models as ONNX files, run by onnxruntime and OpenVINO on the CPU.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stvit_cli.analysis.cost.profile import build
from stvit_cli.analysis.export import export_onnx
from stvit_cli.errors import UserError
from stvit_cli.models import list_models
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.weights.info import WeightsInfo
from stvit_cli.tasks.loading import Trained
from stvit_cli.utils.runtimes import openvino_core
from stvit_cli.utils.text import first_line, shortened

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Runnable:
    """A model in a runtime.

    Attributes:
        label: the runtime, and the precision where it is not float32, such as ``openvino bf16``.
        precision: what it computes in; None: what the file says.
        step: computes one batch.
    """

    label: str
    precision: str | None
    step: Callable[[], object]


def export(name: str, path: Path, batch_size: int, image_size: tuple[int, int]) -> str | None:
    """Export an untrained model as ONNX.

    A built-in model is exported as `stvit export` does it, for any size; another one for images of this size alone.

    Args:
        name: a model of this package, torchvision or timm.
        path: the new file.
        batch_size: B.
        image_size: H and W.

    Returns:
        Why the model cannot be exported; None where it was.
    """
    model = build(name).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's exporter about itself
            if name in list_models():
                export_onnx(Trained(model, WeightsInfo(name, image_size=min(image_size)), Path(name)), path)
            else:
                images = torch.zeros(batch_size, 3, *image_size)
                torch.onnx.export(
                    fuse(model),
                    (images,),
                    path,
                    dynamo=True,
                    optimize=False,  # the optimizer takes minutes, and the runtimes have their own
                    external_data=False,
                    verbose=False,
                )
    except Exception as error:  # whatever the exporter does not know of a model
        return shortened(first_line(error), 160)
    return None


def runnables(path: Path, runtime: str, images: Images, threads: int, say: Callable[[str], None]) -> Iterator[Runnable]:
    """Yield a model in a runtime: in float32, and in OpenVINO also in bf16 where the processor has it.

    Args:
        path: the ONNX file.
        runtime: onnxruntime or openvino.
        images: (B, C, H, W).
        threads: number of threads.
        say: called with what cannot be run.

    Raises:
        UserError: the file cannot be read, or takes other images.
    """
    make = _onnxruntime if runtime == "onnxruntime" else _openvino
    try:
        yield from make(path, images, threads, say)
    except UserError:
        raise
    except Exception as error:  # both runtimes have exceptions of their own, for a damaged file and for a wrong shape
        reason = shortened(" ".join(str(error).split()), 200)
        raise UserError(f"{path}: {runtime} cannot run it on images of {_size(images)}: {reason}") from error


def image_shape(path: Path, batch_size: int, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the shape of the images that an ONNX file is timed with, (B, C, H, W): free dimensions are as given.

    Args:
        path: the file.
        batch_size: B.
        image_size: H and W.

    Raises:
        UserError: it cannot be read, or does not take images.
    """
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # protobuf's own
        raise UserError(f"{path}: it cannot be read as ONNX: {type(error).__name__}.") from error
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    sides = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    if len(sides) != 4:
        raise UserError(f"{path}: expected one input of images (B, C, H, W), found {len(inputs)} inputs of other shapes.")
    given = (batch_size, 3, *image_size)
    batch, channels, height, width = (side.dim_value or free for side, free in zip(sides, given, strict=True))
    if batch != batch_size:
        raise UserError(f"{path}: it takes batches of {batch} alone; give --batch-size {batch}.")
    return batch, channels, height, width


def _onnxruntime(path: Path, images: Images, threads: int, say: Callable[[str], None]) -> Iterator[Runnable]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    for name, size in zip(("batch", "channels", "height", "width"), images.shape, strict=True):  # as `export_onnx` names them
        options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    precision = _computed_in(session.get_modelmeta().custom_metadata_map.get("precision"))
    feed = {session.get_inputs()[0].name: images}
    yield Runnable("onnxruntime", precision, lambda: session.run(None, feed))


def _openvino(path: Path, images: Images, threads: int, say: Callable[[str], None]) -> Iterator[Runnable]:
    import openvino

    core = openvino_core()
    model = core.read_model(path)
    model.reshape(list(images.shape))
    kept = ["framework", "precision"]  # where OpenVINO keeps the file's metadata
    precision = _computed_in(str(model.get_rt_info(kept).astype(str)) if model.has_rt_info(kept) else None)
    hints = {"f32": precision}
    if not _has_bf16(core):
        say("OpenVINO in bf16 is not timed: this processor has no bf16 instructions.")
    elif precision == "fp32":
        hints["bf16"] = "bf16"
    for hint, computed in hints.items():
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(model, "CPU", settings | {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1})
        request, tensor = compiled.create_infer_request(), openvino.Tensor(images, shared_memory=True)
        label = "openvino" if hint == "f32" else f"openvino {hint}"
        yield Runnable(label, computed, lambda request=request, tensor=tensor: request.infer([tensor]))  # type: ignore[misc]


def _computed_in(precision: str | None) -> str:
    """Return what a file is computed in by the precision in its metadata: weights in half precision are computed in float32."""
    return "int8" if precision == "int8" else "fp32"


def _has_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _size(images: Images) -> str:
    return "x".join(map(str, images.shape))
