"""`stvit eval RUN --output DIR`: the validation images with truth and prediction, the worst first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.detections import made_coco, made_predictions
from helpers.predictions import MadeImages
from PIL import Image

from stvit_cli.analysis.eval_drawings import write_drawings
from stvit_cli.data.coco import CocoImages
from stvit_cli.data.coco_index import read_coco
from stvit_cli.data.palette import class_colour
from stvit_cli.tasks.classification.eval_drawings import _texts
from stvit_cli.tasks.classification.predictions import ClassificationPredictions, MultiLabelPredictions
from stvit_cli.tasks.detection.analysis import DetectionAnalysis
from stvit_cli.tasks.detection.eval_drawings import draw_evaluation
from stvit_cli.tasks.detection.predictions import DetectionPredictions
from stvit_cli.tasks.spec import ReportInput


@dataclass
class MadeEvaluation:
    """An evaluation of images of a task."""

    name: str
    val_set: Any


def given(task: str, images: Any, predictions: Any, max_images: int = 50) -> ReportInput:
    evaluation = cast(Any, MadeEvaluation(task, SimpleNamespace(images=images)))
    nothing = cast(Any, None)
    return ReportInput(nothing, evaluation, predictions, nothing, torch.device("cpu"), max_images)


def classified() -> tuple[MadeImages, ClassificationPredictions]:
    target = np.array([0, 1, 1, 0], dtype=np.int32)
    return MadeImages(target, ["cat", "dog"], unreadable=[2]), ClassificationPredictions(
        images=[f"a/{index}.png" for index in range(4)],
        class_names=["cat", "dog"],
        target=target,
        labels=np.array([[0, 1], [0, 1], [0, 1], [0, 1]], dtype=np.int32),
        scores=np.array([[0.9, 0.1], [0.8, 0.2], [0.99, 0.01], [0.6, 0.4]], dtype=np.float32),
        target_score=np.array([0.9, 0.2, 0.01, 0.6], dtype=np.float32),
        target_rank=np.array([0, 1, 1, 0], dtype=np.int32),
        loss=np.array([0.1, 1.6, 4.6, 0.5]),
    )


def detected(tmp_path: Path, *, annotated: bool = True) -> tuple[CocoImages, DetectionPredictions]:
    results = made_coco(tmp_path / "shapes.json", 6, size=64, seed=2)
    for number in range(6):
        Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / f"{number}.png")
    index = read_coco(tmp_path / "shapes.json", tmp_path)
    predictions = made_predictions(index, results)
    if not annotated:
        empty = made_predictions(index, []).detections
        predictions = DetectionPredictions(**{**vars(predictions), "objects": empty})
    return CocoImages(index), predictions


def test_a_classifiers_images_are_drawn_by_descending_loss_and_at_most_so_many(tmp_path: Path) -> None:
    images, predictions = classified()
    said: list[str] = []
    assert write_drawings(given("classification", images, predictions, 2), tmp_path / "drawn", said.append) == 2
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["00000-1.png", "00001-3.png"]
    assert said == ["Not drawn: a/2.png: /data/2.png: not an image."]
    with Image.open(tmp_path / "drawn" / "00000-1.png") as drawn:
        assert drawn.width >= 200
        assert drawn.height > 100  # lines below the image


def test_a_classifiers_truth_and_prediction_are_named() -> None:
    _, predictions = classified()
    assert _texts(predictions, 1) == ("dog (20%)", "cat 80%, dog 20% (wrong)")
    assert _texts(predictions, 0) == ("cat (90%)", "cat 90%, dog 10% (right)")
    several = MultiLabelPredictions(
        images=["x"],
        class_names=["cat", "dog", "n" * 60],
        target=np.array([[True, False, True]]),
        scores=np.array([[0.7, 0.8, 0.1]], dtype=np.float32),
        loss=np.array([1.0]),
    )
    assert _texts(several, 0) == (f"cat, {'n' * 37}...", "dog 80%, cat 70%")
    none = MultiLabelPredictions(**{**vars(several), "target": np.zeros((1, 3), bool), "scores": np.zeros((1, 3), np.float32)})
    assert _texts(none, 0) == ("no class", "no class")


def test_a_detectors_images_are_drawn_with_the_truth_on_the_left_by_errors(tmp_path: Path) -> None:
    images, predictions = detected(tmp_path)
    drawings = list(draw_evaluation(given("detection", images, predictions)))
    errors = dict(zip(predictions.images, DetectionAnalysis(predictions).errors_of_images.tolist(), strict=True))
    assert sorted((errors[drawing.name] for drawing in drawings), reverse=True) == [errors[drawing.name] for drawing in drawings]
    assert sorted(drawing.name for drawing in drawings) == sorted(predictions.images)
    worst = drawings[0].draw()
    assert worst.width > 2 * 320  # 64 pixels, enlarged five times, twice
    assert worst.height > 320
    index = list(predictions.images).index(drawings[0].name)
    true = set(predictions.objects.label[predictions.objects.image == index].tolist())
    left = {tuple(colour) for colour in np.asarray(worst)[30:350, :320].reshape(-1, 3).tolist()}
    assert {class_colour(label) for label in true} <= left


def test_a_detectors_images_without_annotations_have_predictions_alone(tmp_path: Path) -> None:
    images, predictions = detected(tmp_path, annotated=False)
    drawings = list(draw_evaluation(given("detection", images, predictions)))
    assert [drawing.name for drawing in drawings] == list(predictions.images)
    assert drawings[0].draw().width == pytest.approx(320, abs=60)
