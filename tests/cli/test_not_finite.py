"""Weights that are not finite, and finite ones whose outputs overflow: every command says so and ends with code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stvit_cli.models import create_model
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.models.weights.info import DETECTOR_KEYS
from stvit_cli.recipe import DetectionSection, SegmentationSection
from stvit_cli.tasks import create_from

SMALL = {
    "classification": "",
    "detection": DetectionSection(short_sides=(64,), long_side=96, channels=16, fc_dim=16).model_dump_json(
        include=set(DETECTOR_KEYS)
    ),
    "segmentation": SegmentationSection(
        class_names=("red", "blue"), max_size=(64, 64), channels=16, aux_channels=8
    ).model_dump_json(),
}


def overflowing(path: Path, task: str = "classification") -> Path:
    """Write a model with finite weights and outputs that are not."""
    info = WeightsInfo("stvit-nano", task=task, num_classes=2, class_names=("red", "blue"), image_size=32, settings=SMALL[task])
    model = create_from(info)
    with torch.no_grad():
        next(model.parameters())[:] = 1e38
    save_weights(path, model, info)
    return path


@pytest.mark.parametrize("task", SMALL)
def test_predict_answers_nothing(stvit, task: str, image_folder: Path, tmp_path: Path) -> None:
    weights = overflowing(tmp_path / "w.safetensors", task)
    ended = stvit("predict", image_folder / "val" / "red", "--weights", weights, "--json", "-", "--output", tmp_path / "drawn")
    assert ended.code == 2
    assert "nan" not in ended.err.replace("NaN", "")
    first, *lines = ended.err.splitlines()
    assert first == "stvit: 3 of 3 images could not be answered:"
    assert len(lines) == 3
    assert all("0.png: the model's outputs for it are not finite (NaN or infinite)" in line for line in lines[:1])
    results = json.loads(ended.out)
    assert len(results) == 3
    assert all("not finite" in result["error"] and "classes" not in result for result in results)
    assert not (tmp_path / "drawn").exists() or not list((tmp_path / "drawn").iterdir())


def test_eval_gives_no_metrics(stvit, image_folder: Path, tmp_path: Path) -> None:
    weights = overflowing(tmp_path / "w.safetensors")
    ended = stvit("eval", "--weights", weights, "--data", image_folder / "val", "--json", "-", "data.num_workers=0")
    assert ended.code == 2
    assert ended.out == ""
    assert "top1" not in ended.err
    assert "outputs are not finite (NaN or infinite) for 6 images of the validation set" in ended.err
    assert f"Images: {image_folder / 'val' / 'blue' / '0.png'}, " in ended.err
    assert len(ended.err.splitlines()) <= 6


def test_export_and_associations_write_nothing(stvit, image_folder: Path, tmp_path: Path) -> None:
    weights, image = overflowing(tmp_path / "w.safetensors"), image_folder / "val" / "red" / "0.png"
    ended = stvit("visualize-associations", image, "--weights", weights, "--output", tmp_path / "maps")
    assert ended.code == 2
    assert "the model's outputs are not finite" in ended.err
    pytest.importorskip("onnxruntime")
    ended = stvit("export", weights, tmp_path / "w.onnx")
    assert ended.code == 2
    assert "w.safetensors: the model's outputs are not finite" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("command", ["predict", "eval", "export", "convert", "visualize-associations"])
def test_a_file_of_weights_that_are_not_finite_is_refused(stvit, command: str, image_folder: Path, tmp_path: Path) -> None:
    model = create_model("stvit-nano", num_classes=2)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    weights, image = tmp_path / "nan.safetensors", image_folder / "val" / "red" / "0.png"
    save_weights(weights, model, WeightsInfo("stvit-nano", num_classes=2, image_size=32))
    words = {
        "predict": [image, "--weights", weights],
        "eval": ["--weights", weights, "--data", image_folder],
        "export": [weights, tmp_path / "x.safetensors"],
        "convert": [weights, tmp_path / "x.safetensors"],
        "visualize-associations": [image, "--weights", weights, "--output", tmp_path / "maps"],
    }
    ended = stvit(command, *words[command])
    assert ended.code == 2, ended.err
    assert "nan.safetensors: head.weight has values that are not finite" in ended.err, ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["nan.safetensors"]
