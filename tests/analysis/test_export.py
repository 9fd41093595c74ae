"""Exported ONNX files run without this package and compute the same at any size; weights in half precision, layers in int8."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import stvit_cli
from stvit_cli import create_model
from stvit_cli.analysis import export, export_formats, export_int8, export_target, onnx_graph
from stvit_cli.analysis.export_formats import _place
from stvit_cli.analysis.onnx_graph import write_graph
from stvit_cli.cli import output
from stvit_cli.data import eval_transform
from stvit_cli.data.images import open_image
from stvit_cli.engine.kept_evaluation import file_hash
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.models.optimize import quantize
from stvit_cli.models.weights.file import WeightsInfo, load_weights, read_info, read_weights, save_weights
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import registry
from stvit_cli.tasks.exported import files_of
from stvit_cli.tasks.exported_file import _parsed as parsed
from stvit_cli.tasks.loading import open_trained
from stvit_cli.utils import runtimes

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
SMALL = replace(INFO, model="timm/test_resnet")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    torch.manual_seed(0)
    save_weights(path, create_model("stvit-nano", 3, 1), INFO)
    return path


@pytest.fixture(scope="module")
def traced(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of the model, which takes some seconds: all tests write it."""
    pytest.importorskip("onnxruntime")
    path, trained = tmp_path_factory.mktemp("traced") / "graph.onnx", open_trained(weights)
    write_graph(export.require_exportable(trained), trained.info, path)
    return path


@pytest.fixture
def as_traced(traced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(form: Any, info: Any, path: Path, precision: str) -> int:
        import onnx

        model = onnx.load(traced)
        onnx.helper.set_model_props(model, onnx_graph.metadata(info, form.preparation, precision))
        onnx.save(model, path)
        return 2000

    monkeypatch.setattr(export, "write_graph", write)


@pytest.fixture
def run(weights: Path, tmp_path: Path) -> Path:
    """A run directory with the weights, and the data that its recipe names: three classes, five training images."""
    generator = np.random.default_rng(0)
    for split, name, count in [(split, name, 1) for split in ("train", "val") for name in INFO.class_names] + [
        ("train", "ant", 3)
    ]:
        folder = tmp_path / "data" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 255, (40, 40), dtype=np.uint8)).save(folder / f"{number}.png")
    saved = RunDir(tmp_path / "run")
    saved.path.mkdir()
    saved.best.write_bytes(weights.read_bytes())
    overrides = [
        "data.kind=imagefolder",
        f"data.dir={tmp_path / 'data'}",
        "model.in_chans=1",
        "data.mean=[0.5]",
        "data.std=[0.25]",
    ]
    saved.write_recipe(recipe_io.load("quickstart", [*overrides, "data.num_workers=0", "data.auto_size=false"]))
    return saved.path


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


@pytest.mark.usefixtures("as_traced")
def test_onnx(weights: Path, tmp_path: Path, stvit: Stvit) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "nano.onnx"
    ended = stvit("export", weights, path, "--json", tmp_path / "report.json")
    assert ended.code == 0, ended.err
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["nano.onnx", "report.json"]
    assert "Tracing stvit-nano for classification.\nComparing the file with the model in onnxruntime, at 4 sizes.\n" in ended.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["largest_difference"]) == ["1x65x101", "2x131x70", "3x97x190", "2x64x64"]
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
    assert (metadata["crop_pct"], metadata["crop_pct_is_default"], metadata["precision"]) == ("0.875", "true", "fp32")
    assert json.loads(metadata["preparation"])["resize"] == {"short_side": 73, "antialias": True}
    assert report["num_nodes"] == len(file.graph.node)

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
        (tmp_path / "x.pt", "expected a name ending in .onnx or .xml or .pt2 or .safetensors"),
        (tmp_path / "absent" / "x.onnx", "there is no folder"),
        (weights, "exists"),
    ]:
        ended = stvit("export", weights, target)
        assert ended.code == 2, ended.err
        assert expected in ended.err, ended.err
    ended = stvit("export", weights, tmp_path / "x.safetensors", "--precision", "int8")
    assert ended.code == 2
    assert "int8 is for names that end in .onnx" in ended.err
    ended = stvit("export", weights, tmp_path / "x.onnx", "--calibrate", tmp_path)
    assert ended.code == 2
    assert "only int8 is calibrated on images (--calibrate)" in ended.err
    for name, precision, expected in [
        ("x.pt2", "fp16", "is written in fp32, found fp16"),
        ("x.xml", "bf16", "fp32 or fp16, found"),
    ]:
        ended = stvit("export", weights, tmp_path / name, "--precision", precision)
        assert ended.code == 2
        assert expected in ended.err
    ended = stvit("export", tmp_path, tmp_path / "x.onnx")
    assert ended.code == 2
    assert "a folder without weights" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_missing_onnx_package_is_named(weights: Path, tmp_path: Path, stvit: Stvit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "ONNX", ("a_package_that_is_not_there",))
    ended = stvit("export", weights, tmp_path / "x.onnx")
    assert ended.code == 2
    assert "pip install 'stvit[onnx]'" in ended.err


def test_a_program_needs_no_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules, "onnx", "onnxruntime"]:
        if name.partition(".")[0] in ("onnx", "onnxruntime"):
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(runtimes, "is_installed", lambda name: False)
    save_weights(tmp_path / "small.safetensors", create_model("timm/test_resnet", 3, 1), SMALL)
    stvit_cli.load(tmp_path / "small.safetensors").export(tmp_path / "small.pt2")
    with pytest.raises(UserError, match="ONNX needs onnx, onnxruntime, not installed here"):
        stvit_cli.load(tmp_path / "small.safetensors").export(tmp_path / "small.onnx")


@pytest.mark.usefixtures("as_traced")
def test_onnx_file_with_other_outputs_is_not_kept(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is made on the file: a fault in writing ends without one."""
    monkeypatch.setattr(export, "compare", lambda *_: {"largest_difference": {"1x65x101": 1e-3}})
    with pytest.raises(RuntimeError, match="the outputs of the file differ"):
        export.export_onnx(open_trained(weights), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize(("precision", "difference"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_onnx_in_half_precision(weights: Path, tmp_path: Path, stvit: Stvit, precision: str, difference: float) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "half.onnx"
    ended = stvit("export", weights, path, "--precision", precision, "--json", tmp_path / "report.json")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["precision"] == precision
    assert 1e-5 < max(report["largest_difference"].values()) < difference
    assert path.stat().st_size < 0.55 * weights.stat().st_size + 1_000_000
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {entry.key: entry.value for entry in file.metadata_props}["precision"] == precision
    assert {output.type.tensor_type.elem_type for output in (*file.graph.input, *file.graph.output)} == {onnx.TensorProto.FLOAT}


@pytest.mark.usefixtures("as_traced")
def test_onnx_beyond_the_range_of_fp16_is_refused(
    traced: Path, weights: Path, tmp_path: Path, monkeypatch: Any, stvit: Stvit
) -> None:
    def halve(*_: Any) -> None:
        raise OverflowError("head.weight")

    monkeypatch.setattr(export, "halve_weights", halve)
    ended = stvit("export", weights, tmp_path / "x.onnx", "--precision", "fp16")
    assert ended.code == 2
    assert "head.weight has values beyond the range of fp16. Use precision bf16." in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("as_traced")
def test_int8_is_calibrated_and_measured_on_the_data_of_the_run(
    run: Path, stvit: Stvit, tmp_path: Path, monkeypatch: Any
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(quantize, "LEAST_AGREEMENT", 0)  # of weights that are not trained, which differ by little
    path = tmp_path / "int8.onnx"
    ended = stvit("export", run, path, "--precision", "int8", "--json", tmp_path / "report.json")
    assert ended.code == 0, ended.err
    assert {file.name for file in tmp_path.iterdir()} == {"data", "run", "int8.onnx", "report.json"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["calibrated_on"], report["num_calibration_images"]) == ("training images", 5)
    assert report["snr_db"] > 25
    assert report["float_layers"] == {}
    assert report["num_layers"] == 51
    assert report["metrics"]["int8"]["num_images"] == report["metrics"]["fp32"]["num_images"] == 3
    assert report["metrics"]["int8"]["loss"] == pytest.approx(report["metrics"]["fp32"]["loss"], rel=0.1)
    assert "on 3 validation images" in ended.out
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {opset.domain for opset in file.opset_import} == {""}
    written = {entry.key: entry.value for entry in file.metadata_props}
    assert (written["model"], written["precision"]) == ("stvit-nano", "int8")
    assert json.loads(written["metrics"]) == report["metrics"]
    assert path.stat().st_size < 0.45 * (run / "best.safetensors").stat().st_size
    images = np.random.default_rng(0).standard_normal((2, 1, 97, 131), dtype=np.float32)
    assert quantize.run(path, images).shape == (2, 3)


@pytest.fixture
def calibrated_on(as_traced: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The images of each calibration; nothing is quantized."""
    seen: list[Any] = []

    def quantized(source: Path, target: Path, images: Any, **_: Any) -> quantize.Quantized:
        seen.append(images)
        target.write_bytes(source.read_bytes())
        return quantize.Quantized(51, {"stem.0.conv": 12.5}, quantize.Fidelity(30.0, 1.0))

    monkeypatch.setattr(export_int8, "quantize", quantized)
    monkeypatch.setattr(export, "compare", lambda *_: {"largest_difference": {"1x65x101": 0.0}})
    return seen


def test_int8_without_a_run_is_calibrated_on_a_folder(
    calibrated_on: list[Any], run: Path, weights: Path, stvit: Stvit, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "train"
    (folder / "broken.png").write_bytes(b"no image")
    ended = stvit("export", weights, tmp_path / "int8.onnx", "--precision", "int8", "--calibrate", folder, "--json", "-")
    assert ended.code == 0, ended.err
    assert "1 of 6 images cannot be read and are left out" in ended.err
    assert "In int8: 50 of 51 layers." in ended.err
    assert "stem.0.conv (12.5 dB)" in ended.err
    assert calibrated_on[0].shape == (5, 1, 64, 64)
    expected = eval_transform(64, (0.5,), (0.25,), in_chans=1)(open_image(folder / "ant" / "0.png"))
    np.testing.assert_array_equal(calibrated_on[0][0], expected)
    report = json.loads(ended.out)
    assert (report["calibrated_on"], report["num_calibration_images"], report["metrics"]) == (str(folder), 5, {})


def test_int8_of_a_run_with_a_damaged_validation_image_is_written_without_metrics(
    calibrated_on: list[Any], run: Path, stvit: Stvit, tmp_path: Path
) -> None:
    (tmp_path / "data" / "val" / "bee" / "0.png").write_bytes(b"no image")
    ended = stvit("export", run, tmp_path / "int8.onnx", "--precision", "int8", "--json", "-")
    assert ended.code == 0, ended.err
    assert "The accuracy is not measured: " in ended.err
    assert (json.loads(ended.out)["metrics"], len(calibrated_on[0])) == ({}, 5)


def test_int8_needs_images(run: Path, weights: Path, stvit: Stvit, tmp_path: Path) -> None:
    target, broken = tmp_path / "int8.onnx", tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no image")
    for source, more, expected in [
        (weights, [], "is not in the directory of a run"),
        (weights, ["--calibrate", broken], "None of the 1 images to calibrate int8 on can be read"),
        (weights, ["--calibrate", tmp_path / "none"], "there is no such file or folder"),
    ]:
        ended = stvit("export", source, target, "--precision", "int8", *more)
        assert ended.code == 2
        assert expected in ended.err
    (tmp_path / "data").rename(tmp_path / "moved")
    ended = stvit("export", run, target, "--precision", "int8")
    assert ended.code == 2
    assert "The images of the run cannot be read." in ended.err
    assert "--calibrate FOLDER" in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert {path.name for path in tmp_path.iterdir()} == {"moved", "run", "broken"}


@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device"), 2, "int8.onnx cannot be written: No space left on device"),
        (quantize.TooMuchLossError("9.0 dB with 8 of 9 layers in float32"), 2, "int8 loses too much of this model"),
    ],
)
def test_int8_that_fails_leaves_nothing(
    run: Path, stvit: Stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(export_int8, "quantize", fail)
    monkeypatch.setattr(export, "compare", lambda *_: {"largest_difference": {"1x65x101": 0.0}})
    ended = stvit("export", run, tmp_path / "int8.onnx", "--precision", "int8")
    assert ended.code == code
    assert said in ended.err
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run"}


def test_a_task_without_a_graph_is_refused(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = open_trained(weights)
    without = replace(registry.get("classification"), export_form=None)
    monkeypatch.setattr(export.registry, "get", lambda name: without)
    with pytest.raises(UserError, match="cannot be exported as a graph"):
        export.export_onnx(trained, tmp_path / "x.onnx")


def test_a_bin_file_of_another_model_is_not_overwritten(weights: Path, tmp_path: Path, stvit: Stvit) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "x.bin").write_bytes(b"weights")
    ended = stvit("export", weights, tmp_path / "x.xml")
    assert ended.code == 2
    assert f"{tmp_path / 'x.bin'} exists" in ended.err


def test_what_a_killed_export_for_openvino_has_left_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "is_installed", lambda name: True)
    path = tmp_path / "x.xml"

    def write(folder: Path) -> Path:
        folder.mkdir()
        for name in ("x.xml", "x.bin"):
            (folder / name).write_text(folder.name)
        return folder / "x.xml"

    killed = write(tmp_path / ".x.abc.writing")
    killed.with_suffix(".bin").replace(tmp_path / "x.bin")
    export_target.require_exported_file(path, "fp16")
    _place(write(tmp_path / ".x.new.writing"), path)
    assert (path.read_text(), (tmp_path / "x.bin").read_text()) == (".x.new.writing",) * 2
    assert not killed.parent.exists()

    path.unlink()
    (tmp_path / "x.bin").unlink()
    interrupted = write(tmp_path / "again")
    path.mkdir()  # the second file cannot get its name
    with pytest.raises(OSError, match="directory"):
        _place(interrupted, path)
    assert not (tmp_path / "x.bin").exists()


def test_an_openvino_file_with_other_outputs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenVINO computes of the new file is compared, in both precisions."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    save_weights(tmp_path / "small.safetensors", create_model("timm/test_resnet", 3, 1), SMALL)
    model = stvit_cli.load(tmp_path / "small.safetensors")
    details = model.export(tmp_path / "half.xml", "fp16").details
    assert 1e-6 < max(details["largest_difference"].values()) < 1e-2
    before = [path.name for path in tmp_path.iterdir()]
    convert = export_formats._convert

    def other(graph: Path, target: Path, *more: Any) -> int:
        count = convert(graph, target, *more)
        weights = target.with_suffix(".bin")
        weights.write_bytes(bytes(weights.stat().st_size))
        return count

    monkeypatch.setattr(export_formats, "_convert", other)
    with pytest.raises(RuntimeError, match="the outputs of the file differ"):
        model.export(tmp_path / "x.xml")
    assert [path.name for path in tmp_path.iterdir()] == before
    found = file_hash(*files_of(tmp_path / "half.xml"))
    (tmp_path / "half.bin").write_bytes(b"others")
    assert file_hash(*files_of(tmp_path / "half.xml")) != found


@pytest.mark.usefixtures("run")
def test_a_file_of_a_fixed_size_says_which(tmp_path: Path, stvit: Stvit) -> None:
    pytest.importorskip("onnxruntime")
    save_weights(tmp_path / "small.safetensors", create_model("timm/test_resnet", 3, 1), SMALL)
    stvit_cli.load(tmp_path / "small.safetensors").export(tmp_path / "small.onnx")
    ended = stvit("eval", "--weights", tmp_path / "small.onnx", "--data", tmp_path / "data", "data.image_size=48")
    assert ended.code == 2, ended.err
    assert "takes images of any x 1 x 64 x 64 alone" in ended.err
    assert re.search(r"found \d x 1 x 48 x 48", ended.err)
    assert len(ended.err.splitlines()) <= 6


def test_a_file_whose_crop_is_the_default_has_that_of_another_size(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    for crop_pct in (None, 0.875):
        info = replace(INFO, image_size=224, crop_pct=crop_pct)
        assert info.resolved_crop_pct == 0.875
        assert parsed(tmp_path, onnx_graph.metadata(info)) == info
        before = {key: value for key, value in onnx_graph.metadata(info).items() if key != "crop_pct_is_default"}
        assert parsed(tmp_path, before).crop_pct == 0.875  # a file of an earlier version


def test_detectors_are_not_programs(tmp_path: Path, stvit: Stvit) -> None:
    ended = stvit("export", "stvit-nano.shapes-mask-rcnn", tmp_path / "x.pt2")
    assert ended.code == 2
    assert "torch.export holds no detector" in ended.err
    ended = stvit("export", "stvit-nano.shapes-mask-rcnn", tmp_path / "x.onnx", "--precision", "int8", "--calibrate", tmp_path)
    assert ended.code == 2
    assert "only classifiers are quantized to int8" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(as_traced: None, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.export_onnx(open_trained(weights), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_the_stage_is_beside_a_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    monkeypatch.setattr(output, "open_console", lambda **_: Console(file=shown, force_terminal=True, width=80))
    with output.showing_stages() as say:
        say("Tracing [x].")
    assert "Tracing [x]." in shown.getvalue()
