"""``--precision bf16`` of `predict` and `eval`: the same answers, boxes in float32, and a record that says so."""

from __future__ import annotations

import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.simulated_gpu import simulated_gpu
from torch import Tensor, nn

import stvit_cli
from stvit_cli import WeightsInfo, create_model, save_weights, tasks
from stvit_cli.models import kernels
from stvit_cli.models.kernels import choice
from stvit_cli.models.weights.info import parse
from stvit_cli.tasks import spec
from stvit_cli.tasks.spec import FEW_IMAGES, Trained

SAVED = Path(__file__).parents[1] / "golden" / "saved_by_0_1"
CPU = torch.device("cpu")
BF16_ERROR = 0.05
"""Largest difference from float32, relative to the largest value, after the many layers of a model with random weights."""


def created(name: str) -> Trained:
    """A model of a task with random weights: the metadata are those of version 0.1."""
    torch.manual_seed(0)
    if name == "classifier":
        info = WeightsInfo("stvit-nano", num_classes=5, image_size=48, class_names=list("abcde"))
    elif name.startswith("timm/"):
        info = WeightsInfo(name, num_classes=5, image_size=48, class_names=list("abcde"))
    else:
        info = parse((SAVED / f"{name}.json").read_text().strip())
    return Trained(tasks.create_from(info).eval(), info, Path("none.safetensors"))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["classifier", "timm/resnet10t", "shapes-upernet"])
def test_bf16_outputs_are_float32_and_within_its_own_error(name: str) -> None:
    trained, images = created(name), torch.rand(2, 3, 65, 70)
    with torch.inference_mode():
        expected = trained.prepared(CPU)(images)
        found = trained.prepared(CPU, precision="bf16")(images)
    assert found.dtype == torch.float32
    assert 1e-5 < relative_difference(found, expected) < BF16_ERROR  # not zero: it did run in bf16


@pytest.mark.parametrize("name", ["shapes-mask-rcnn", "shapes-cascade-mask-rcnn"])
def test_boxes_of_a_detector_stay_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, images = created(name), [torch.rand(3, 70, 90)]
    seen: list[torch.dtype] = []
    nms, roi_align = torch.ops.torchvision.nms, torch.ops.torchvision.roi_align
    monkeypatch.setattr(torch.ops.torchvision, "nms", lambda *args: seen.extend(_dtypes(args)) or nms(*args))
    monkeypatch.setattr(torch.ops.torchvision, "roi_align", lambda *args: seen.extend(_dtypes(args)) or roi_align(*args))
    maps: dict[str, dict[str, Tensor]] = {}
    for precision in ("fp32", "bf16"):
        model = trained.prepared(CPU, precision=precision)
        backbone: nn.Module = model.get_submodule("backbone")
        backbone.register_forward_hook(lambda *call, precision=precision: maps.update({precision: call[-1]}))
        with torch.inference_mode():
            (found,) = model(images)
        assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    assert len(seen) >= 8
    assert set(seen) == {torch.float32}
    for level, expected in maps["fp32"].items():
        assert maps["bf16"][level].dtype == torch.float32
        assert 1e-5 < relative_difference(maps["bf16"][level], expected) < BF16_ERROR


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["classifier", "timm/resnet10t", "shapes-upernet", "shapes-mask-rcnn", "shapes-cascade-mask-rcnn"]
)
def test_bf16_on_a_gpu(name: str) -> None:
    trained, cuda = created(name), torch.device("cuda")
    image = torch.rand(3, 70, 90, device=cuda)
    with torch.inference_mode():
        if "rcnn" in name:
            (found,) = trained.prepared(cuda, precision="bf16")([image])
            assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
            return
        expected = trained.prepared(cuda)(image[None])
        logits = trained.prepared(cuda, precision="bf16")(image[None])
    assert (logits.dtype, logits.device.type) == (torch.float32, "cuda")
    assert 1e-5 < relative_difference(logits, expected) < BF16_ERROR


def test_predictions_on_a_gpu_take_the_kernels_that_are_faster_in_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a few images none: the compiler takes longer than they do."""
    asked: list[choice.Setting] = []

    def chosen(model: nn.Module, setting: choice.Setting, used: object) -> tuple[str, ...]:
        asked.append(setting)
        return tuple({choice.kind_of(layer) for layer in choice.served(model)})

    monkeypatch.setattr(choice, "choose", chosen)
    monkeypatch.setattr(kernels, "is_available", lambda device_type: True)
    trained = created("classifier")
    with simulated_gpu() as gpu:
        few = trained.prepared(gpu, 1, "bf16")
        many = trained.prepared(gpu, precision="bf16")
        assert trained.prepared(gpu, precision="bf16") is many
    assert asked == [choice.Setting(gpu, torch.bfloat16, train=False)]
    assert choice.kinds_with_kernels(few) == ()
    assert choice.kinds_with_kernels(many) != ()


def _dtypes(args: tuple[Any, ...]) -> list[torch.dtype]:
    return [arg.dtype for arg in args if isinstance(arg, Tensor)]


@pytest.mark.parametrize("name", ["classifier", "shapes-mask-rcnn", "shapes-upernet"])
def test_every_task_predicts_in_the_precision_that_is_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = created(name)
    asked: list[str] = []
    for_inference = spec.for_inference
    monkeypatch.setattr(
        spec,
        "for_inference",
        lambda model, device, precision, **more: asked.append(precision) or for_inference(model, device, precision, **more),
    )
    image = np.random.default_rng(0).integers(0, 255, (60, 64, 3), dtype=np.uint8)
    model = stvit_cli.TrainedModel(trained, "cpu")
    few = model.predict(image)
    assert asked == []  # in fp32 a few images take the model itself; in bf16 that would be another precision
    in_bf16 = model.predict(image, precision="bf16")
    assert asked == ["bf16"]
    assert type(in_bf16) is type(few)
    assert in_bf16.error is None
    model.predict([image] * (FEW_IMAGES + 1))
    model.predict([image], precision="bf16")
    assert asked == ["bf16", "fp32"]  # a copy for each precision


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear probe on the digits: a real, if small, trained model."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    with tarfile.open(SAVED / "run.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_digits_have_the_same_top1_in_bf16(stvit, digits_run: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        ended = stvit("eval", digits_run, "--precision", precision, "--json", "-")
        assert ended.code == 0, ended.err
        found[precision] = json.loads(ended.out)
        assert found[precision]["precision"] == precision
        assert ("360 images, in bf16" in ended.err) == (precision == "bf16")
    one_image = 100 / found["fp32"]["num_images"]
    assert found["fp32"]["top1"] > 90
    assert abs(found["bf16"]["top1"] - found["fp32"]["top1"]) < 1.5 * one_image
    assert found["bf16"]["loss"] == pytest.approx(found["fp32"]["loss"], abs=0.01)
    assert found["bf16"]["loss"] != found["fp32"]["loss"]


@pytest.mark.parametrize(("is_native", "num_warnings"), [(True, 0), (False, 1)])
def test_a_cpu_without_bf16_is_said_once(
    is_native: bool, num_warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spec, "bf16_is_native", lambda device: is_native)
    spec._warn_without_bf16.cache_clear()
    trained = created("classifier")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            trained.prepared(CPU, 1)
            trained.prepared(CPU, 1, "bf16")
    spec._warn_without_bf16.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "This CPU has no bf16 instructions: fp32 is faster here."
    ] * num_warnings


def test_an_unknown_precision(stvit, tmp_path: Path) -> None:
    weights = tmp_path / "nano.safetensors"
    save_weights(weights, create_model("stvit-nano", 3), WeightsInfo("stvit-nano", num_classes=3, image_size=32))
    with pytest.raises(stvit_cli.UserError, match="precision: found 'fp8', expected fp32 or bf16"):
        stvit_cli.load(weights).predict([], precision="fp8")  # type: ignore[call-overload]
    with pytest.raises(stvit_cli.UserError, match="precision: found 'int8', expected fp32 or bf16"):
        stvit_cli.evaluate(tmp_path, precision="int8")  # type: ignore[arg-type]
    ended = stvit("predict", tmp_path, "--weights", weights, "--precision", "fp8")
    assert ended.code == 2
    assert "fp32" in ended.err
