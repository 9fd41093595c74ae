"""Exported detectors and segmenters: the same objects and labels as PyTorch, at any size, in files that tell nothing else."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import stvit_cli
from stvit_cli.analysis import export_check
from stvit_cli.analysis.export_check import compare, require_same
from stvit_cli.analysis.onnx_graph import metadata
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.quantize import open_session
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.tasks import registry
from stvit_cli.tasks.detection.detector import create_detector
from stvit_cli.tasks.detection.export import ExportedDetector, _reference
from stvit_cli.tasks.exported import ExportForm
from stvit_cli.tasks.exported_file import open_exported
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.segmentation.export import ExportedAdaptivePool

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Exported = Callable[[str], Path]
Stvit = Callable[..., Any]
NAMES = ("digits", "shapes-mask-rcnn", "shapes-upernet")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_computes_what_the_model_does_at_three_sizes(exported: Exported, name: str) -> None:
    trained = open_trained(f"stvit-nano.{name}")
    form = registry.get(trained.info.task).export_form(trained)  # type: ignore[misc]
    batch = 3 if form.batch else 1
    found = compare(form, exported(name), trained.info.in_chans, [(1, 64, 64), (batch, 70, 161), (batch, 129, 96)])
    assert max(found["largest_difference"].values()) < 1e-4
    assert not found.get("unmatched")
    assert not form.is_detector or found["num_compared"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_file_tells_nothing_of_the_machine_that_made_it(exported: Exported, name: str) -> None:
    content = exported(name).read_bytes()
    sources = {path.name.encode() for path in Path(stvit_cli.__file__).parent.rglob("*.py") if len(path.name) > 6}
    homes = {str(Path.home()), str(Path(stvit_cli.__file__).parents[1]), str(exported(name).parent), getpass.getuser() + "/"}
    traces = [*sources, *(text.encode() for text in homes if len(text) > 4), b"site-packages", b"Traceback"]
    assert [trace for trace in traces if trace in content] == []
    model = onnx.load(exported(name))
    onnx.checker.check_model(model, full_check=True)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # of bytes that look like anything
    texts = re.findall(rb"[\x20-\x7e]{6,}", model.SerializeToString())
    assert [text for text in texts if re.search(rb"/(home|root|usr|tmp|work|opt|var|private|Users)/|[A-Z]:\\", text)] == []
    assert {opset.domain for opset in model.opset_import} == {""}


@pytest.mark.parametrize("name", NAMES)
def test_predict_runs_a_file_as_it_runs_the_weights(
    exported: Exported, stvit: Stvit, coco_tree: Path, tmp_path: Path, name: str
) -> None:
    images = sorted(coco_tree.glob("*2017/*.png"))[:2]
    found: list[Any] = []
    for label, weights in (("weights", f"stvit-nano.{name}"), ("file", exported(name))):
        ended = stvit("predict", *images, "--weights", weights, "--json", "-", "--output", tmp_path / label)
        assert ended.code == 0, ended.err
        found.append(json.loads(ended.out))
    assert numbers(found[1]) == pytest.approx(numbers(found[0]), rel=1e-4, abs=1e-3)
    assert len(numbers(found[0])) >= 4
    assert texts(found[1]) == texts(found[0])
    drawn = [sorted(path.name for path in (tmp_path / label).iterdir()) for label in ("weights", "file")]
    assert drawn[0] == drawn[1] != []


def numbers(value: Any) -> list[float]:
    """Return the numbers in JSON, in order; of objects without their masks, whose border may differ by a pixel."""
    if isinstance(value, dict):
        return [number for key, part in value.items() if key != "mask" for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [] if isinstance(value, str) else [value]


def texts(value: Any) -> list[str]:
    if isinstance(value, (dict, list)):
        parts = [part for key, part in value.items() if key != "mask"] if isinstance(value, dict) else value
        return [text for part in parts for text in texts(part)]
    return [value] if isinstance(value, str) else []


def test_eval_runs_a_file(exported: Exported, stvit: Stvit, coco_tree: Path) -> None:
    found = []
    for weights in ("stvit-nano.shapes-mask-rcnn", exported("shapes-mask-rcnn")):
        ended = stvit("eval", "--weights", weights, "--data", coco_tree, "--json", "-")
        assert ended.code == 0, ended.err
        found.append({key: value for key, value in json.loads(ended.out).items() if key in ("box_ap", "mask_ap")})
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert len(found[0]) == 2


def test_metadata_say_how_an_image_is_prepared(exported: Exported) -> None:
    for name, keys in (("shapes-mask-rcnn", {"resize", "padding", "boxes", "labels", "masks"}), ("shapes-upernet", {"resize"})):
        found = {entry.key: entry.value for entry in onnx.load(exported(name)).metadata_props}
        preparation = json.loads(found["preparation"])
        assert keys < set(preparation)
        assert preparation["channels"] == "RGB"
        assert len(json.loads(found["class_names"])) == int(found["num_classes"])
        assert {"mean", "std", "interpolation", "stvit_version", "precision"} < set(found)
        assert preparation["resize"]["antialias"] is (name == "shapes-upernet")


def test_an_image_without_objects_has_none(exported: Exported) -> None:
    session = open_session(exported("shapes-mask-rcnn"))
    boxes, scores, labels, masks = session.run(None, {"images": np.zeros((1, 3, 64, 64), dtype=np.float32)})
    count = len(scores)
    assert (boxes.shape, labels.shape, masks.shape) == ((count, 4), (count,), (count, 28, 28))
    detector = open_exported(exported("shapes-mask-rcnn")).model
    grey = torch.full((3, 40, 60), 0.5)
    assert all(len(value) == len(detector([grey])[0]["scores"]) for value in detector([grey])[0].values())


@pytest.mark.parametrize("head", ["mask-rcnn", "faster-rcnn", "cascade-mask-rcnn", "cascade-rcnn"])
@torch.no_grad()
def test_the_graph_of_a_detector_finds_what_the_detector_does(head: Any) -> None:
    torch.manual_seed(0)
    detector = create_detector("stvit-nano", 3, head=head, channels=16, fc_dim=16, score_threshold=0.2).eval()
    for size in ((64, 64), (90, 133)):
        images = torch.randn(1, 3, *size)
        expected, found = _reference(detector, images), ExportedDetector(detector)(images)
        assert len(found) == len(expected) == (4 if "mask" in head else 3)
        assert len(expected[0]) > 10
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["faster-rcnn", "cascade-mask-rcnn", "cascade-rcnn"])
def test_every_head_is_exported(head: Any, tmp_path: Path) -> None:
    from stvit_cli.analysis.export import export_onnx
    from stvit_cli.recipe import DetectionSection
    from stvit_cli.tasks.spec import Trained

    settings = DetectionSection(head=head, channels=16, fc_dim=16, score_threshold=0.2)
    torch.manual_seed(0)
    detector = create_detector("stvit-nano", 3, head=head, channels=16, fc_dim=16, score_threshold=0.2).eval()
    info = WeightsInfo(
        "stvit-nano", task="detection", num_classes=3, class_names=("a", "b", "c"), settings=settings.model_dump_json()
    )
    found = export_onnx(Trained(detector, info, tmp_path), tmp_path / "x.onnx")
    assert found["unmatched"] == 0
    assert found["num_compared"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["fpn", "unet", "segformer", "deeplabv3plus"])
def test_every_decoder_is_exported(decoder: Any, tmp_path: Path) -> None:
    from stvit_cli.analysis.export import export_onnx
    from stvit_cli.recipe import SegmentationSection
    from stvit_cli.tasks.segmentation.upernet import create_segmenter
    from stvit_cli.tasks.spec import Trained

    settings = SegmentationSection(decoder=decoder, channels=32, class_names=("a", "b", "c"))
    model = create_segmenter("stvit-nano", 3, decoder=decoder, channels=32, aux_channels=16).eval()
    info = WeightsInfo(
        "stvit-nano", task="segmentation", num_classes=3, class_names=("a", "b", "c"), settings=settings.model_dump_json()
    )
    export_onnx(Trained(model, info, tmp_path), tmp_path / "x.onnx")


@pytest.mark.parametrize("side", [2, 3, 6])
def test_pooling_as_a_product_of_matrices(side: int) -> None:
    for size in ((1, 1), (2, 7), (13, 6), (25, 42)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(ExportedAdaptivePool(side)(x), nn.AdaptiveAvgPool2d(side)(x), atol=1e-5, rtol=1e-5)


def test_other_objects_than_the_models_are_found_out() -> None:
    require_same({"largest_difference": {"1x64x64": 1e-5}, "unmatched": 0.01}, "fp32")
    with pytest.raises(RuntimeError, match="no counterpart"):
        require_same({"largest_difference": {"1x64x64": 1e-5}, "unmatched": 0.1}, "fp32")
    with pytest.raises(RuntimeError, match="differ"):
        require_same({"largest_difference": {"1x64x64": float("nan")}}, "fp32")
    said: list[str] = []
    require_same({"largest_difference": {"1x64x64": 0.0}, "unmatched": 0.0, "num_compared": 0}, "fp32", say=said.append)
    assert "boxes and scores are not compared" in said[0]


@pytest.mark.parametrize(("own", "unmatched", "num_compared"), [((0, 1), 0, 2), ((0,), 1 / 2, 1), ((2, 3, 4), 1, 0), ((), 1, 0)])
def test_the_unmatched_are_a_share_of_all(own: tuple[int, ...], unmatched: float, num_compared: int, monkeypatch: Any) -> None:
    """Of a model that finds objects 0 and 1, and a file that finds ``own``."""

    def detections(numbers: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        corners = torch.tensor(numbers, dtype=torch.float32)[:, None] * 10
        return torch.cat([corners, corners, corners + 5, corners + 5], dim=1), torch.ones(len(numbers)), torch.ones(len(numbers))

    names = ("boxes", "scores", "labels")
    form = ExportForm(nn.Identity(), lambda images: detections((0, 1)), names, batch=False)
    found = {name: value.numpy() for name, value in zip(names, detections(own), strict=True)}
    monkeypatch.setattr(export_check, "open_runner", lambda path: (lambda images: found, {}))
    report = compare(form, Path("x.onnx"), 3, [(1, 64, 64)])
    assert (report["unmatched"], report["num_compared"]) == (unmatched, num_compared)


def small_file(path: Path, **properties: str) -> Path:
    """Write an ONNX file that averages the pixels of an image: three logits."""
    value = onnx.helper.make_tensor_value_info
    given = value("images", onnx.TensorProto.FLOAT, ["batch", 3, "height", "width"])
    result = value("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        onnx.helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "tiny", [given], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.onnx", None, "there is no such file"),
        ("broken.onnx", b"no model", "onnxruntime cannot read it"),
        ("program.pt2", b"PK", "run by torch.export.load alone"),
        ("other.onnx", {}, "not a file of `stvit export`: its metadata lack model, task"),
        ("odd.onnx", {"mean": "[0.1"}, "its metadata cannot be read"),
        ("unknown.onnx", {"task": "pose"}, "its metadata cannot be read: task"),
    ],
)
def test_files_that_cannot_be_run_are_refused(name: str, content: Any, says: str, tmp_path: Path, stvit: Stvit) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        small_file(path, **(metadata(WeightsInfo("stvit-nano", num_classes=3)) | content if content else {}))
    elif content is not None:
        path.write_bytes(content)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    ended = stvit("predict", tmp_path / "a.png", "--weights", path)
    assert ended.code == 2, ended.err
    assert says in ended.err
    assert len(ended.err.splitlines()) <= 6


def test_a_runtime_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.utils.runtimes.is_installed", lambda name: False)
    for ending, extra in ((".onnx", "onnx"), (".xml", "openvino")):
        path = small_file(tmp_path / f"a{ending}")
        with pytest.raises(UserError, match=rf"pip install 'stvit\[{extra}\]'"):
            open_exported(path)


def test_what_needs_weights_refuses_a_file(tmp_path: Path, stvit: Stvit) -> None:
    path = small_file(tmp_path / "a.onnx", **metadata(WeightsInfo("stvit-nano", num_classes=3, image_size=32)))
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    model = stvit_cli.load(path)
    assert len(model.predict(tmp_path / "a.png", top=3).to_dict()["classes"]) == 3
    for work in (
        lambda: model.export(tmp_path / "b.onnx"),
        lambda: model.embed([tmp_path / "a.png"]),
        lambda: model.visualize_associations(tmp_path / "a.png", tmp_path / "out"),
        lambda: open_trained(path),
    ):
        with pytest.raises(UserError, match="weights"):
            work()
    with pytest.raises(UserError, match="leave out precision bf16"):
        model.predict(tmp_path / "a.png", precision="bf16")
    with pytest.raises(UserError, match="stvit-s was asked for"):
        stvit_cli.load(path, "stvit-s")
