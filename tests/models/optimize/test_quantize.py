"""int8 and half precision of a small ONNX file: what computes in which precision, and what is kept from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stvit_cli.models.optimize import quantize
from stvit_cli.models.optimize.half_weights import halve_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

NAMES = ("first", "second", "third")


def network(path: Path, outlier: float = 1.0) -> Path:
    """Write a network of three convolutions and a linear layer, for images (B, 1, H, W).

    The first channel between the second convolution and the third is larger by ``outlier``, which the third undoes: the function
    does not depend on it, but one range for all channels leaves nothing of the others.
    """
    generator = np.random.default_rng(0)
    weights = {
        "first.weight": generator.standard_normal((8, 1, 3, 3)),
        "second.weight": generator.standard_normal((8, 8, 3, 3)),
        "third.weight": generator.standard_normal((16, 8, 3, 3)),
        "head.weight": generator.standard_normal((5, 16)),
    }
    weights["second.weight"][0] *= outlier
    weights["third.weight"][:, 0] /= outlier
    nodes, last = [], "images"
    for name in NAMES:
        nodes.append(onnx.helper.make_node("Conv", [last, f"{name}.weight"], [name], name=f"conv_{name}", pads=[1, 1, 1, 1]))
        nodes.append(onnx.helper.make_node("Gelu", [name], [f"{name}_gelu"], name=f"gelu_{name}"))
        last = f"{name}_gelu"
    nodes.append(onnx.helper.make_node("ReduceMean", [last, "axes"], ["pooled"], keepdims=0))
    nodes.append(onnx.helper.make_node("Gemm", ["pooled", "head.weight", "head.bias"], ["logits"], name="gemm", transB=1))
    tensors = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    tensors.append(onnx.numpy_helper.from_array(np.zeros(5, np.float32), "head.bias"))
    tensors.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("images", ["batch", 1, "height", "width"]), ("logits", ["batch", 5]))
    ]
    graph = onnx.helper.make_graph(nodes, "network", values[:1], values[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    model.producer_name = "stvit"
    model.metadata_props.add(key="model", value="network")
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(1).standard_normal((12, 1, 8, 8), dtype=np.float32)


def operators(path: Path, folder: Path) -> Counter[str]:
    """Return how often each operator runs, as onnxruntime's optimizer leaves them."""
    optimized = folder / "optimized.onnx"
    quantize.open_session(path, optimized_model_filepath=str(optimized))
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def test_every_layer_computes_in_int8(tmp_path: Path, images: Any) -> None:
    source, target = network(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    found = quantize.quantize(source, target, images)
    assert (found.num_layers, found.float_layers) == (4, {})
    assert found.fidelity.snr_db > 25
    assert found.fidelity == quantize.fidelity(quantize.run(source, images), quantize.run(target, images), False)
    ran = operators(target, tmp_path)
    assert (ran["QLinearConv"], ran["QGemm"], ran["Conv"], ran["Gemm"]) == (3, 1, 0, 0)
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.metadata_props[0].value) == ("stvit", "network")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stored = [weights[f"{name}.weight_quantized"] for name in (*NAMES, "head")]
    assert all(tensor.dtype == np.int8 and np.abs(tensor.astype(int)).max() <= 64 for tensor in stored), "7 bits"
    assert [weights[f"{name}.weight_scale"].shape for name in (*NAMES, "head")] == [(8,), (8,), (16,), (5,)], "by channel"
    assert quantize.run(target, images[:2, :, :5, :7]).shape == (2, 5)


def test_layers_that_lose_too_much_stay_in_float32(tmp_path: Path, images: Any) -> None:
    source, target = network(tmp_path / "float.onnx", outlier=3000), tmp_path / "int8.onnx"
    said: list[str] = []
    found = quantize.quantize(source, target, images, say=said.append)
    assert set(found.float_layers) == {"second", "third"}
    assert max(found.float_layers.values()) < quantize.LEAST_SNR_DB
    assert found.fidelity.is_enough
    assert operators(target, tmp_path)["QLinearConv"] == 1
    assert "looking for the layers to keep in float32" in said[0]


def test_a_model_that_loses_too_much_in_any_case_is_refused(tmp_path: Path, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "LEAST_SNR_DB", 200)
    with pytest.raises(quantize.TooMuchLossError, match="of 4 layers in float32"):
        quantize.quantize(network(tmp_path / "float.onnx"), tmp_path / "int8.onnx", images)


@pytest.mark.parametrize("needed", range(1, 12))
def test_the_fewest_layers_are_searched_by_doubling(needed: int) -> None:
    tried = []

    def attempt(count: int) -> quantize.Fidelity:
        tried.append(count)
        return quantize.Fidelity(30.0 if count >= needed else 10.0, 1.0)

    count, found = quantize._fewest(40, attempt)
    assert needed <= count <= needed + needed // 7
    assert found.is_enough
    assert tried[-1] == count, "the last attempt writes the file"


def test_fidelity_of_several_labels_counts_every_decision() -> None:
    expected, found = np.array([[1.0, -1.0, 0.1, 2.0]], np.float32), np.array([[1.0, -1.0, -0.1, 2.0]], np.float32)
    assert quantize.fidelity(expected, found, multi_label=True).agreement == 0.75
    assert quantize.fidelity(expected, found, multi_label=False).agreement == 1.0


@pytest.mark.parametrize(("precision", "eps"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_weights_in_half_precision_are_rounded_once(tmp_path: Path, images: Any, precision: Any, eps: float) -> None:
    source = network(tmp_path / "float.onnx")
    model = onnx.load(source)
    halve_weights(model, precision)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "half.onnx")
    expected, found = quantize.run(source, images), quantize.run(tmp_path / "half.onnx", images)
    difference = np.abs(expected - found).max() / np.abs(expected).max()
    assert 0 < difference < 4 * eps
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer)
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    assert (kinds[half], kinds[onnx.TensorProto.FLOAT]) == (4, 1), "the bias stays in float32"


def test_a_weight_beyond_the_range_of_fp16_is_named(tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "float.onnx", outlier=1e6))
    with pytest.raises(OverflowError, match=r"second\.weight"):
        halve_weights(model, "fp16")
