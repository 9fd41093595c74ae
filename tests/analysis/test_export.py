"""Exported ONNX files run without this package and compute the same at any size; weights in half precision."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stvit_cli import create_model
from stvit_cli.analysis import export
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo, load_weights, read_info, read_weights, save_weights

Stvit = Callable[..., Any]

INFO = WeightsInfo(
    "stvit-nano",
    num_classes=3,
    class_names=("ant", "bee", "cat"),
    in_chans=1,
    mean=(0.5,),
    std=(0.25,),
    image_size=64,
    licence="CC0",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    torch.manual_seed(0)
    save_weights(path, create_model("stvit-nano", 3, 1), INFO)
    return path


STANDALONE = """
import sys
for name in ("stvit_cli", "torch", "timm"):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
for size in [(1, 64, 64), (5, 113, 67), (2, 250, 128)]:
    images = numpy.full((size[0], 1, *size[1:]), 0.5, dtype="float32")
    images[:, :, ::3] = -1
    print(*session.run(None, {"images": images})[0].flatten())
"""


def test_onnx(weights: Path, tmp_path: Path, stvit: Stvit) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "nano.onnx"
    ended = stvit("export", weights, path, "--json", tmp_path / "report.json")
    assert ended.code == 0, ended.err
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["nano.onnx", "report.json"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["largest_difference"]) == 3
    assert max(report["largest_difference"].values()) < 1e-4

    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {opset.domain for opset in file.opset_import} == {""}
    content = path.read_bytes()
    home = str(Path(export.__file__).parents[1])
    for trace in (home, "site-packages", "stack_trace", 'File "', ".py"):
        assert trace.encode() not in content, f"the file tells of the machine that made it: {trace}"
    assert not any(node.metadata_props or node.doc_string for node in file.graph.node)
    assert not file.graph.metadata_props
    assert len(content) < 1.1 * weights.stat().st_size + 1_000_000
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(metadata["class_names"]) == ["ant", "bee", "cat"]
    assert json.loads(metadata["mean"]) == [0.5]
    assert (metadata["model"], metadata["image_size"], metadata["licence"]) == ("stvit-nano", "64", "CC0")

    done = subprocess.run([sys.executable, "-c", STANDALONE, path], capture_output=True, text=True, check=True)
    model = create_model("stvit-nano", 3, 1).eval()
    load_weights(model, weights)
    for line, size in zip(done.stdout.splitlines(), [(1, 64, 64), (5, 113, 67), (2, 250, 128)], strict=True):
        images = torch.full((size[0], 1, *size[1:]), 0.5)
        images[:, :, ::3] = -1
        with torch.no_grad():
            expected = model(images).flatten()
        np.testing.assert_allclose(np.array(line.split(), dtype=float), expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision(weights: Path, tmp_path: Path, stvit: Stvit, precision: str, dtype: torch.dtype) -> None:
    path = tmp_path / "half.safetensors"
    ended = stvit("export", weights, path, "--precision", precision)
    assert ended.code == 0, ended.err
    assert path.stat().st_size < 0.55 * weights.stat().st_size
    assert read_info(path) == INFO
    stored = read_weights(path).state_dict
    assert stored["head.weight"].dtype == dtype
    assert stored["norm.running_var"].dtype == torch.float32
    full, half = (create_model("stvit-nano", 3, 1).eval() for _ in range(2))
    load_weights(full, weights)
    load_weights(half, path)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert (half(x) - full(x)).abs().max() < 0.02 * full(x).abs().max()


def test_weights_beyond_the_range_of_fp16_are_refused(tmp_path: Path, stvit: Stvit) -> None:
    model = create_model("stvit-nano", 3, 1)
    torch.nn.init.constant_(model.get_classifier().weight, 1e5)
    save_weights(tmp_path / "large.safetensors", model, INFO)
    ended = stvit("export", tmp_path / "large.safetensors", tmp_path / "half.safetensors", "--precision", "fp16")
    assert ended.code == 2
    assert "head.weight" in ended.err
    assert "bf16" in ended.err
    assert stvit("export", tmp_path / "large.safetensors", tmp_path / "half.safetensors", "--precision", "bf16").code == 0


def test_weights_beyond_the_range_of_bf16_are_refused(tmp_path: Path, stvit: Stvit) -> None:
    model = create_model("stvit-nano", 3, 1)
    torch.nn.init.constant_(model.get_classifier().weight, 3.4e38)
    save_weights(tmp_path / "large.safetensors", model, INFO)
    for precision in ("fp16", "bf16"):
        ended = stvit("export", tmp_path / "large.safetensors", tmp_path / "half.safetensors", "--precision", precision)
        assert ended.code == 2
        assert ended.err.endswith("Use precision fp32.\n")
    assert stvit("export", tmp_path / "large.safetensors", tmp_path / "fp32.safetensors").code == 0


def test_unusable_targets_are_refused(weights: Path, tmp_path: Path, stvit: Stvit) -> None:
    for target, expected in [
        (tmp_path / "x.pt", "expected a name ending in .onnx or .safetensors"),
        (tmp_path / "absent" / "x.onnx", "there is no folder"),
        (weights, "exists"),
    ]:
        ended = stvit("export", weights, target)
        assert ended.code == 2, ended.err
        assert expected in ended.err, ended.err
    ended = stvit("export", weights, tmp_path / "x.onnx", "--precision", "fp16")
    assert ended.code == 2
    assert "half precision is for .safetensors" in ended.err
    ended = stvit("export", tmp_path, tmp_path / "x.onnx")
    assert ended.code == 2
    assert "a folder without weights" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_missing_onnx_package_is_named(weights: Path, tmp_path: Path, stvit: Stvit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "NEEDED", ("a_package_that_is_not_there",))
    ended = stvit("export", weights, tmp_path / "x.onnx")
    assert ended.code == 2
    assert "pip install 'stvit[onnx]'" in ended.err


def test_onnx_file_with_other_outputs_is_not_kept(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is made on the file: a fault in writing ends without one."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(export, "compare", lambda *_: {"1x65x101": 1e-3})
    monkeypatch.setattr(export.torch.onnx, "export", lambda *_, **__: _Program())
    from stvit_cli.tasks.loading import open_trained

    with pytest.raises(RuntimeError, match="the logits of the ONNX file differ"):
        export.export_onnx(open_trained(weights), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


class _Program:
    """An exported program as far as the exporter looks at it."""

    def __init__(self) -> None:
        self.model = self
        self.metadata_props: dict[str, str] = {}
        self.opset_imports = {"": 20}
        onnx_ir = pytest.importorskip("onnx_ir")
        self.graph, self.functions = onnx_ir.Graph([], [], nodes=[]), dict[str, Any]()

    def save(self, path: Path, external_data: bool) -> None:
        path.write_bytes(b"onnx")


def test_only_classifiers_are_exported_as_onnx(weights: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from stvit_cli.tasks.loading import open_trained

    trained = open_trained(weights)
    with pytest.raises(UserError, match="only classifiers"):
        export.export_onnx(replace(trained, info=replace(trained.info, task="segmentation")), tmp_path / "x.onnx")
