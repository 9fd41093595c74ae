"""Static int8 quantization of an ONNX file by onnxruntime's quantizer, for inference on a CPU.

Convolutions and linear layers compute in int8; what lies between them (softmax, norms, GELU, super token sampling, residuals)
stays in float32. Activations are uint8 with a zero point, by tensor, from their minimum to their maximum over the calibration
images; percentiles and entropy were measured and are not better. Weights are symmetric int8, by channel, of 7 bits: without VNNI,
a CPU adds two products of uint8 and int8 in 16 bits, which weights of 8 bits exceed. That is silent, and costs stvit-nano on the
digits 14 points of top-1, where 7 bits cost nothing.

Shapes: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float32]

LEAST_SNR_DB = 20.0
"""The least ratio of signal to noise of the logits, in decibels, for which no further layer is kept in float32."""
LEAST_AGREEMENT = 0.99
"""The least fraction of calibration images whose prediction stays the same."""
NUM_PROBED = 16
"""Calibration images on which every layer alone is measured."""
BATCH_SIZE = 8
_KINDS = ("Conv", "MatMul", "Gemm")
_FLOAT_OUTPUT = ("MatMul", "Gemm")  # the runtime has kernels for these with int8 inputs and float32 outputs; not for Conv


class TooMuchLossError(ValueError):
    """A model loses too much in int8, whatever layers are kept in float32."""


@dataclass(frozen=True)
class Fidelity:
    """How near the logits of a quantized file are to those of the original.

    Attributes:
        snr_db: power of the logits over the power of their error, in decibels.
        agreement: fraction of the images with the same prediction.
    """

    snr_db: float
    agreement: float

    @property
    def is_enough(self) -> bool:
        """Whether both limits are met."""
        return self.snr_db >= LEAST_SNR_DB and self.agreement >= LEAST_AGREEMENT


@dataclass(frozen=True)
class Quantized:
    """A quantized file.

    Attributes:
        num_layers: number of convolutions and linear layers.
        float_layers: those that stay in float32, the worst first, each with the decibels of the logits where it alone is in int8.
        fidelity: on the calibration images.
    """

    num_layers: int
    float_layers: dict[str, float]
    fidelity: Fidelity


def quantize(
    source: Path, target: Path, images: Floats, *, multi_label: bool = False, say: Callable[[str], None] = lambda line: None
) -> Quantized:
    """Quantize an ONNX file to int8, in the QDQ format that onnxruntime, OpenVINO and TensorRT read.

    If the logits lose more than `LEAST_SNR_DB` and `LEAST_AGREEMENT` allow, every layer is measured alone, and the worst are kept
    in float32: their number is doubled until the limits are met, then reduced by bisection.

    Args:
        source: a float32 file with one input, ``images``, and one output, ``logits``.
        target: the quantized file. Files that are needed in between are written beside it.
        images: to calibrate on, (N, C, H, W), as the model takes them.
        multi_label: whether each logit is a decision of its own; otherwise the largest is the prediction.
        say: called with a line on what is done next.

    Returns:
        The layers that stay in float32, and how near the logits are.

    Raises:
        TooMuchLossError: no layer, or next to none, can be quantized.
    """
    import onnx

    with _quiet():
        simplified = target.with_name("simplified.onnx")
        _simplify(source, simplified)
        model = onnx.shape_inference.infer_shapes(onnx.load(simplified))
        layers = _layers(model)
        ranges = _ranges(simplified, target.with_name("observed.onnx"), images)
        expected = run(source, images)

        def attempt(float_layers: Sequence[str]) -> Fidelity:
            kept = [node for name, node in layers.items() if name not in float_layers]
            onnx.save(_with_metadata_of(source, _quantized(model, ranges, kept)), target)
            return fidelity(expected, run(target, images), multi_label)

        found = attempt(())
        if found.is_enough:
            return Quantized(len(layers), {}, found)
        say(f"int8 loses too much ({found.snr_db:.1f} dB); looking for the layers to keep in float32.")
        snr_db = _snr_of_layers(model, layers, ranges, images[:NUM_PROBED], say)
        worst = sorted(snr_db, key=snr_db.__getitem__)
        count, found = _fewest(len(worst), lambda count: attempt(worst[:count]))
    return Quantized(len(layers), {name: snr_db[name] for name in worst[:count]}, found)


def _fewest(num_layers: int, attempt: Callable[[int], Fidelity]) -> tuple[int, Fidelity]:
    """Return the least number of layers in float32, nearly, for which ``attempt`` is enough; it was not for 0."""
    tried: dict[int, Fidelity] = {}
    too_few, count = 0, 1
    while not (tried.setdefault(count, attempt(count))).is_enough:
        too_few, count = count, 2 * count
        if count >= num_layers:
            raise TooMuchLossError(f"{tried[too_few].snr_db:.1f} dB with {too_few} of {num_layers} layers in float32")
    while count - too_few > max(1, count // 8):
        middle = (count + too_few) // 2
        if tried.setdefault(middle, attempt(middle)).is_enough:
            count = middle
        else:
            too_few = middle
    return count, attempt(count)  # writes the file


def fidelity(expected: Floats, found: Floats, multi_label: bool) -> Fidelity:
    """Compare logits (N, K) with those of the original.

    >>> fidelity(np.float32([[1, 0], [0, 1]]), np.float32([[1, 0.1], [0.1, 1]]), multi_label=False)
    Fidelity(snr_db=20.0, agreement=1.0)
    """
    error = found.astype(np.float64) - expected
    same = ((expected > 0) == (found > 0)).mean() if multi_label else (expected.argmax(1) == found.argmax(1)).mean()
    return Fidelity(round(_decibels((error**2).sum() / max((expected.astype(np.float64) ** 2).sum(), 1e-30)), 2), float(same))


def run(model: Path | bytes, images: Floats, **options: Any) -> Floats:
    """Return the logits (N, K) of an ONNX file, or of its content, for images (N, C, H, W); ``options``: see `open_session`."""
    session = open_session(model, **options)
    parts = [images[first : first + BATCH_SIZE] for first in range(0, len(images), BATCH_SIZE)]
    return np.concatenate([session.run(["logits"], {"images": part})[0] for part in parts])


def open_session(model: Path | bytes, **options: Any) -> Any:
    """Open an ONNX file in onnxruntime on the CPU, with as many threads as PyTorch uses.

    Args:
        model: the file, or its content.
        options: attributes of ``onnxruntime.SessionOptions``.
    """
    import onnxruntime
    import torch

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = torch.get_num_threads()
    chosen.log_severity_level = 3  # errors
    for name, value in options.items():
        setattr(chosen, name, value)
    return onnxruntime.InferenceSession(model, chosen, providers=["CPUExecutionProvider"])


def _simplify(source: Path, target: Path) -> None:
    """Fold constants and norms, which a quantizer takes for layers of their own, with operators of ONNX alone."""
    import onnxruntime

    basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    open_session(source, graph_optimization_level=basic, optimized_model_filepath=str(target))


def _layers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the nodes with weights by the name of their layer, such as ``stages.0.blocks.0.mlp.fc1``."""
    weights = {tensor.name for tensor in model.graph.initializer if not _selects(tensor)}
    found: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        if node.op_type in _KINDS and node.input[1] in weights:
            name = node.input[1].removesuffix(".weight")
            found[name if name not in found and name != node.input[1] else node.name] = node
    return found


def _selects(tensor: onnx.TensorProto) -> bool:
    """Return whether the kernels of a convolution are zeros and ones: it moves values (`models.neighbours`), and is exact."""
    from onnx import numpy_helper

    return len(tensor.dims) == 4 and set(np.unique(numpy_helper.to_array(tensor)).tolist()) == {0.0, 1.0}


def _ranges(model: Path, observed: Path, images: Floats) -> Any:
    """Return the minimum and maximum of every activation, as onnxruntime's quantizer takes them."""
    from onnxruntime.quantization import create_calibrator

    calibrator = create_calibrator(model, list(_KINDS), augmented_model_path=str(observed))
    calibrator.collect_data(_Batches(images))
    return calibrator.compute_data()


class _Batches:
    """Batches of images, as onnxruntime's calibrators read them."""

    def __init__(self, images: Floats) -> None:
        self._left: Iterator[Floats] = (images[first : first + BATCH_SIZE] for first in range(0, len(images), BATCH_SIZE))

    def __iter__(self) -> Iterator[dict[str, Floats]]:
        return ({"images": part} for part in self._left)

    def get_next(self) -> dict[str, Floats] | None:
        return next(iter(self), None)


def _quantized(model: onnx.ModelProto, ranges: Any, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """Return a copy of a graph in which ``nodes``, at least one, are quantized."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    quantizer = QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=list(_KINDS),
        extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUT)},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _with_metadata_of(source: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a quantized graph with the producer and metadata of the original, without operator sets that it does not use."""
    import onnx

    original = onnx.load(source, load_external_data=False)
    model.producer_name, model.producer_version = original.producer_name, original.producer_version
    del model.metadata_props[:], model.graph.value_info[:]
    model.metadata_props.extend(original.metadata_props)
    domains = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


def _snr_of_layers(
    model: onnx.ModelProto, layers: dict[str, onnx.NodeProto], ranges: Any, images: Floats, say: Callable[[str], None]
) -> dict[str, float]:
    """Return the ratio of signal to noise of the logits, in decibels, with one layer alone in int8, by layer."""
    import onnxruntime

    plain = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # opened sooner
    expected = run(model.SerializeToString(), images, graph_optimization_level=plain)
    found = {}
    for number, (name, node) in enumerate(layers.items(), start=1):
        alone = _quantized(model, ranges, [node]).SerializeToString()
        found[name] = fidelity(expected, run(alone, images, graph_optimization_level=plain), False).snr_db
        if not number % 20:
            say(f"{number} of {len(layers)} layers measured.")
    return found


def _decibels(ratio: float) -> float:
    """Return what noise over signal is in decibels of signal over noise.

    >>> _decibels(0.01)
    20.0
    """
    return -10 * math.log10(max(ratio, 1e-30)) if math.isfinite(ratio) else -math.inf


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the root logger's notes of onnxruntime's quantizer from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
