"""The metadata of a weights file is checked by one schema, and held against the tensors, before a model is built."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from stvit_cli import create_model, open_trained, tasks
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo, load_weights, read_info, read_weights, save_weights
from stvit_cli.models.weights.info import parse

SAVED = Path(__file__).parents[1] / "golden" / "saved_by_0_1"
CLASSIFIER = WeightsInfo("stvit-nano", num_classes=3, class_names=("a", "b", "c"), image_size=32)

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def classifier() -> Tensors:
    return dict(create_model("stvit-nano", 3).state_dict())


@pytest.fixture(scope="module")
def dense() -> dict[str, Tensors]:
    return {name: dict(tasks.create_from(parse(metadata(name))).state_dict()) for name in ("shapes-upernet", "shapes-mask-rcnn")}


def metadata(name: str) -> str:
    return (SAVED / f"{name}.json").read_text().strip()


def write(path: Path, tensors: Tensors, text: str, **changes: Any) -> Path:
    """Write a file without checksum, its metadata changed: ``settings`` by key, the rest as it is given."""
    described = json.loads(text)
    if isinstance(settings := changes.get("settings"), dict):
        changes["settings"] = json.dumps(json.loads(described["settings"]) | settings)
    save_file(tensors, path, metadata={"stvit": json.dumps(described | changes)})
    return path


def assert_refused(call: Callable[[], Any], path: Path, says: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    print(message)
    assert path.name in message
    assert says in message
    assert len(message.splitlines()) <= 6
    assert max(map(len, message.splitlines())) < 300 + len(str(path))


OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"crop_pct": -1}, "crop_pct"),
    ({"crop_pct": 1e-9}, "crop_pct"),
    ({"crop_pct": 2.0}, "crop_pct"),
    ({"crop_pct": float("nan")}, "crop_pct"),
    ({"image_size": 10**9}, "image_size: found 1000000000, expected less than or equal to 16384"),
    ({"image_size": -224}, "image_size"),
    ({"image_size": 224.5}, "image_size"),
    ({"image_size": 10**400}, "image_size"),
    ({"num_classes": 10**12}, "num_classes"),
    ({"num_classes": -1}, "num_classes"),
    ({"num_classes": True}, "num_classes"),
    ({"num_classes": 4}, "class_names: 3 names for 4 classes"),
    ({"class_names": "abc"}, "class_names"),
    ({"class_names": [1, 2, 3]}, "class_names"),
    ({"class_names": ["a", "b"]}, "class_names: 2 names for 3 classes"),
    ({"in_chans": 0}, "in_chans"),
    ({"in_chans": 10**9}, "in_chans"),
    ({"in_chans": 4}, "mean: 3 numbers for 4 channels"),
    ({"std": [1e-320] * 3}, "std.0: found 1e-320"),
    ({"std": [0.0] * 3}, "std.0"),
    ({"std": [0.2, float("nan"), 0.2]}, "std.1: found nan"),
    ({"std": [0.2, 0.2, float("inf")]}, "std.2: found inf"),
    ({"std": [0.2, -0.2, 0.2]}, "std.1"),
    ({"mean": [float("nan")] * 3}, "mean.0: found nan"),
    ({"mean": [None] * 3}, "mean.0"),
    ({"interpolation": "lanczos-or-so"}, "interpolation: found 'lanczos-or-so', expected 'bicubic', 'bilinear' or 'nearest'"),
    ({"grid_sizes": [4, 2, 1]}, "grid_sizes"),
    ({"grid_sizes": [10**9, 2, 1, 1]}, "grid_sizes.0"),
    ({"grid_sizes": [0, 2, 1, 1]}, "grid_sizes.0"),
    ({"task": "pose"}, "task: found 'pose'"),
    ({"model": ""}, "model"),
    ({"model": None}, "model"),
    ({"model": "x" * 10**6}, "model"),
    ({"task": "segmentation", "settings": "[" * 10**5}, "settings"),
    ({"settings": 7}, "settings"),
]


@pytest.mark.parametrize(("change", "says"), OUT_OF_RANGE)
def test_metadata_out_of_range_is_refused(tmp_path: Path, classifier: Tensors, change: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "made-up.safetensors", classifier, CLASSIFIER.to_json(), **change)
    assert_refused(lambda: read_info(path), path, says)
    assert_refused(lambda: open_trained(path), path, says)
    assert_refused(lambda: load_weights(create_model("stvit-nano", 3), path), path, says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "stvit-nanno"}, "no model 'stvit-nanno'. Did you mean 'stvit-nano'?"),
        ({"model": "stvit-s"}, "these are not the weights of this model"),
        ({"model": "custom"}, "no model 'custom'"),
        ({"task": "detection"}, "settings: found none"),
        ({"num_classes": 10**6, "class_names": []}, "head.weight is (3, 256), the model's is (1000000, 256)"),
        ({"in_chans": 1, "mean": [0.5], "std": [0.5]}, "stem.0.conv.weight is"),
        ({"model": "isotropic-mini-swin-12", "grid_sizes": [4, 2, 1, 1]}, "grid_sizes"),
    ],
)
def test_metadata_that_its_tensors_contradict_is_refused(
    tmp_path: Path, classifier: Tensors, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "made-up.safetensors", classifier, CLASSIFIER.to_json(), **change)
    built = []
    normal = torch.nn.Linear.reset_parameters
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: (built.append(layer.weight.device), normal(layer)))
    assert_refused(lambda: open_trained(path), path, says)
    assert all(device.type == "meta" for device in built), "a model was built before the metadata was held against the tensors"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("shapes-mask-rcnn", {"settings": "{"}, "settings: found"),
        ("shapes-mask-rcnn", {"settings": "[]"}, "settings: found"),
        ("shapes-mask-rcnn", {"settings": {"short_sides": []}}, "settings: short_sides"),
        ("shapes-mask-rcnn", {"settings": {"short_sides": [10**9], "long_side": 10**9}}, "settings: short_sides.0"),
        ("shapes-mask-rcnn", {"settings": {"short_sides": [800]}}, "settings: long_side: found 144"),
        ("shapes-mask-rcnn", {"settings": {"channels": 10**9}}, "settings: channels"),
        ("shapes-mask-rcnn", {"settings": {"channels": 128}}, "not the weights of this model"),
        ("shapes-mask-rcnn", {"settings": {"head": "yolo"}}, "settings: head: found 'yolo'"),
        ("shapes-mask-rcnn", {"settings": {"head": "cascade-mask-rcnn"}}, ""),
        ("shapes-mask-rcnn", {"settings": {"score_threshold": float("nan")}}, "settings: score_threshold"),
        ("shapes-mask-rcnn", {"class_names": []}, "class_names: found none"),
        ("shapes-mask-rcnn", {"num_classes": 3, "class_names": ["a", "b", "c"]}, "not the weights of this model"),
        ("shapes-mask-rcnn", {"in_chans": 1, "mean": [0.5], "std": [0.5]}, "in_chans: found 1, expected 3 for detection"),
        ("shapes-mask-rcnn", {"model": "isotropic-mini-stvit-12"}, "no four stages"),
        ("shapes-upernet", {"settings": ""}, "settings: found none"),
        ("shapes-upernet", {"settings": {"class_names": ["a", "b", "c", "d", "e"]}}, "settings: class_names: not those"),
        ("shapes-upernet", {"settings": {"dropout": 1.5}}, "settings: dropout"),
        ("shapes-upernet", {"settings": {"window": 64, "window_stride": 96}}, "settings: window_stride: found 96"),
        ("shapes-upernet", {"settings": {"max_size": [10**9, 10**9]}}, "settings: max_size.0"),
        ("shapes-upernet", {"settings": {"size_divisor": 10**9}}, "settings: size_divisor"),
        ("shapes-upernet", {"settings": {"channels": 32}}, "not the weights of this model"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, dense: dict[str, Tensors], name: str, change: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "made-up.safetensors", dense[name], metadata(name), **change)
    assert_refused(lambda: open_trained(path), path, says)


@pytest.mark.parametrize("name", ["shapes-mask-rcnn", "shapes-upernet"])
def test_unknown_settings_of_a_newer_version_are_ignored_with_one_line(
    stvit, tmp_path: Path, dense: dict[str, Tensors], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    old = write(tmp_path / "old.safetensors", dense[name], metadata(name))
    new = write(tmp_path / "new.safetensors", dense[name], metadata(name), settings={"hue": {"a": [1]}}, calibrated=True)
    with caplog.at_level(logging.WARNING):
        before, trained = open_trained(old), open_trained(new)
    (record,) = caplog.records
    assert "new.safetensors" in record.getMessage()
    assert "calibrated, settings.hue" in record.getMessage()
    assert json.loads(trained.info.settings) == json.loads(before.info.settings)
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    assert stvit("predict", tmp_path / "black.png", "--weights", new).code == 0
    save_weights(tmp_path / "again.safetensors", trained.model, trained.info)
    assert read_info(tmp_path / "again.safetensors") == trained.info


def test_settings_write_nothing_and_read_nothing_outside(tmp_path: Path, dense: dict[str, Tensors]) -> None:
    settings = {"results_json": str(tmp_path / "written.json"), "train_json": "/etc/passwd"}
    path = write(tmp_path / "a.safetensors", dense["shapes-mask-rcnn"], metadata("shapes-mask-rcnn"), settings=settings)
    assert not set(settings) & set(json.loads(read_info(path).settings))
    settings = {"val_images": "../elsewhere", "val_maps": "/etc", "train_images": "C:\\images"}
    path = write(tmp_path / "b.safetensors", dense["shapes-upernet"], metadata("shapes-upernet"), settings=settings)
    assert not set(settings) & set(json.loads(read_info(path).settings))


def changed(tensors: Tensors, **values: Tensor) -> Tensors:
    return tensors | {name.replace("__", "."): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(3, 256).to(torch.float8_e4m3fn), "head.weight holds F8_E4M3"),
        (torch.zeros(3, 256).to(torch.float8_e5m2), "head.weight holds F8_E5M2"),
        (torch.zeros(3, 256, dtype=torch.complex64), "head.weight holds C64"),
        (torch.zeros(3, 256, dtype=torch.int8), "head.weight holds I8"),
        (torch.zeros(3, 256, dtype=torch.bool), "head.weight holds BOOL"),
        (torch.zeros(3, 256, dtype=torch.int64), "head.weight is of type int64, the model's is float32"),
        (torch.zeros(0, 256), "head.weight is empty"),
        (torch.zeros(()), "head.weight is ()"),
        (torch.zeros(256), "head.weight is (256,)"),
        (torch.zeros(3, 256, 1, 1), "head.weight is (3, 256, 1, 1)"),
        (torch.full((3, 256), float("nan")), "head.weight has values that are not finite"),
    ],
)
@pytest.mark.parametrize("described", [True, False])
def test_tensors_that_are_no_weights_are_refused(
    tmp_path: Path, classifier: Tensors, tensor: Tensor, says: str, described: bool
) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(changed(classifier, head__weight=tensor), path, metadata={"stvit": CLASSIFIER.to_json()} if described else None)
    assert_refused(lambda: open_trained(path), path, says if described or "head.weight is" not in says else "")


@pytest.mark.parametrize("name", ["stem.0.conv.weight", "stages.0.blocks.0.cpe.conv.weight", "head.weight", "head.bias"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_tensors_of_too_few_or_many_dimensions_are_refused(
    tmp_path: Path, classifier: Tensors, name: str, shape: tuple[int, ...], ending: str
) -> None:
    from stvit_cli.models.weights.convert import convert

    path = tmp_path / f"odd{ending}"
    tensors = classifier | {name: torch.zeros(shape)}
    save_file(tensors, path) if ending == ".safetensors" else torch.save(tensors, path)
    assert_refused(lambda: open_trained(path), path, "")
    assert_refused(
        lambda: load_weights(create_model("stvit-nano", 5), path, new_head=True), path, ""
    ) if "head" not in name else None
    if name != "head.bias":
        try:  # of whatever widths: but never a traceback
            convert(path, tmp_path / "converted.safetensors")
        except UserError:
            assert not (tmp_path / "converted.safetensors").exists()


@pytest.mark.parametrize("name", ["stages.999999999999.blocks.9999999999999.x", "layers." + "9" * 5000 + ".x", "n" * 100_000])
def test_names_of_tensors_without_end_are_refused(tmp_path: Path, classifier: Tensors, name: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(classifier | {name: torch.zeros(1)}, path)
    assert_refused(lambda: open_trained(path), path, "")


def test_kernels_that_are_scalars_are_not_the_identity(tmp_path: Path, classifier: Tensors) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(classifier | {"layers.0.blocks.0.attn.fold.weights": torch.zeros(())}, path)
    assert_refused(lambda: read_weights(path), path, "is not the identity")


@pytest.mark.parametrize("command", ["predict", "eval", "export"])
@pytest.mark.parametrize("change", [{"crop_pct": 1e-9}, {"num_classes": 10**12, "class_names": []}])
def test_commands_end_with_2_on_metadata_out_of_range(
    stvit, tmp_path: Path, classifier: Tensors, image_folder: Path, command: str, change: dict[str, Any]
) -> None:
    path = write(tmp_path / "made-up.safetensors", classifier, CLASSIFIER.to_json(), **change)
    ended = {
        "predict": lambda: stvit("predict", image_folder / "val" / "red" / "0.png", "--weights", path),
        "eval": lambda: stvit("eval", "--weights", path, "--data", image_folder),
        "export": lambda: stvit("export", path, tmp_path / "half.safetensors"),
    }[command]()
    assert ended.code == 2
    assert next(iter(change)) in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert not (tmp_path / "half.safetensors").exists()


# What other programs write


def test_weights_without_counters_are_taken(tmp_path: Path, classifier: Tensors, dense: dict[str, Tensors]) -> None:
    without = {name: tensor for name, tensor in classifier.items() if not name.endswith(".num_batches_tracked")}
    assert len(without) < len(classifier)
    save_file(without, tmp_path / "a.safetensors", metadata={"stvit": CLASSIFIER.to_json()})
    torch.save(without, tmp_path / "a.pth")
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        assert torch.equal(open_trained(path).model.state_dict()["head.weight"], classifier["head.weight"])
        assert load_weights(create_model("stvit-nano", 3), path).missing == []
    for name, tensors in dense.items():
        kept = {key: value for key, value in tensors.items() if not key.endswith(".num_batches_tracked")}
        assert len(kept) < len(tensors)
        open_trained(write(tmp_path / "dense.safetensors", kept, metadata(name)))


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.", "module.model.", "model._orig_mod.", "model.backbone."])
def test_a_prefix_that_all_weights_have_is_taken_off(tmp_path: Path, classifier: Tensors, prefix: str) -> None:
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in classifier.items()}}, tmp_path / "lightning.ckpt")
    report = load_weights(create_model("stvit-nano", 3), tmp_path / "lightning.ckpt")
    assert (report.missing, report.unexpected) == ([], [])
    assert report.renamed[prefix + "head.weight"] == "head.weight"
    assert torch.equal(open_trained(tmp_path / "lightning.ckpt").model.state_dict()["head.bias"], classifier["head.bias"])


def test_a_prefix_that_some_weights_have_means_something(tmp_path: Path, dense: dict[str, Tensors]) -> None:
    save_file(dense["shapes-upernet"], tmp_path / "a.safetensors")
    assert "backbone.stem.0.conv.weight" in read_weights(tmp_path / "a.safetensors").state_dict


def test_state_dict_ema_of_timm_is_known_and_listed(stvit, tmp_path: Path, classifier: Tensors) -> None:
    averaged = changed(classifier, head__bias=classifier["head.bias"] + 1)
    torch.save({"state_dict": classifier, "state_dict_ema": averaged, "arch": "stvit_nano"}, tmp_path / "timm.pth.tar")
    taken = read_weights(tmp_path / "timm.pth.tar")
    assert (taken.container, taken.others) == ("state_dict", ("state_dict_ema",))
    ended = stvit("convert", tmp_path / "timm.pth.tar", tmp_path / "ema.safetensors", "--from", "state_dict_ema")
    assert ended.code == 0, ended.err
    assert torch.equal(read_weights(tmp_path / "ema.safetensors").state_dict["head.bias"], averaged["head.bias"])
    torch.save({"state_dict_ema": averaged}, tmp_path / "only.pth")
    assert read_weights(tmp_path / "only.pth").container == "state_dict_ema"
