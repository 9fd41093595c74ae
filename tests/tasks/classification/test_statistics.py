"""Metrics of predictions: those of scikit-learn, torchmetrics and the evaluators, of all images and of resampled ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from stvit_cli.data.classification import EvalSet
from stvit_cli.tasks.classification.evaluator import ClassificationEvaluator
from stvit_cli.tasks.classification.multi_label import MultiLabelEvaluator
from stvit_cli.tasks.predictions import Predictions
from tests.helpers.predictions import MadeImages, classification_predictions, multi_label_predictions, probabilities_of


def metrics_of(predictions: Predictions, counts: NDArray[np.int64] | None = None) -> dict[str, float]:
    statistics = predictions.statistics()
    values = statistics(np.ones(len(predictions.images), dtype=np.int64) if counts is None else counts)
    return dict(zip(statistics.names, values.tolist(), strict=True))


def resample(num_images: int) -> NDArray[np.int64]:
    return np.bincount(np.random.default_rng(3).integers(0, num_images, num_images), minlength=num_images)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("drawn", [False, True])
def test_metrics_are_those_of_scikit_learn_and_torchmetrics(drawn: bool) -> None:
    probabilities, target = probabilities_of(200, 7)
    counts = resample(200) if drawn else np.ones(200, dtype=np.int64)
    found = metrics_of(classification_predictions(probabilities, target), counts)
    probabilities, target = np.repeat(probabilities, counts, axis=0), np.repeat(target, counts)
    predicted = probabilities.argmax(1)
    top5 = np.mean([label in row for label, row in zip(target, np.argsort(-probabilities)[:, :5], strict=True)])
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities).double(), torch.from_numpy(target), 7, n_bins=15, norm="l1"
    )
    assert found["top1"] == pytest.approx(100 * np.mean(predicted == target))
    assert found["top5"] == pytest.approx(100 * top5)
    assert found["balanced_accuracy"] == pytest.approx(100 * balanced_accuracy_score(target, predicted))
    assert found["f1_macro"] == pytest.approx(100 * f1_score(target, predicted, average="macro"))
    assert found["ece"] == pytest.approx(100 * float(theirs), abs=1e-4)


def test_calibration_error_of_certain_predictions_is_that_of_torchmetrics() -> None:
    probabilities = np.array([[1, 0, 0], [1, 0, 0], [0.98, 0.02, 0], [0.95, 0.05, 0]], np.float32)
    target = np.array([0, 1, 0, 0])
    theirs = multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(target), 3, n_bins=15)
    assert metrics_of(classification_predictions(probabilities, target))["ece"] == pytest.approx(100 * float(theirs), abs=1e-4)


def test_all_images_once_are_exactly_the_metrics_of_the_evaluation() -> None:
    logits = 3 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    target = torch.arange(300) % 8
    images = MadeImages(target.numpy(), list("abcdefgh"))
    evaluator = ClassificationEvaluator(EvalSet(images, lambda image: torch.zeros(1)))
    evaluator.update(nn.Identity(), {"image": logits, "target": target, "index": torch.arange(300)})
    evaluated = dict(evaluator.compute([evaluator.state()]))
    kept = evaluator.predictions([evaluator.state()])
    assert kept is not None
    assert evaluated == {"num_images": 300} | {name: metrics_of(kept)[name] for name in ("top1", "top5", "loss")}


def test_five_classes_have_no_top5() -> None:
    probabilities, target = probabilities_of(10, 5)
    assert "top5" not in classification_predictions(probabilities, target).statistics().names


def test_two_classes_and_images_of_one_of_them() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    found = metrics_of(classification_predictions(probabilities, np.array([0, 0])))
    assert found["top1"] == found["balanced_accuracy"] == 50
    assert found["f1_macro"] == pytest.approx(100 * f1_score([0, 0], [0, 1], average="macro"))
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("drawn", [False, True])
def test_metrics_of_several_labels_are_those_of_scikit_learn(drawn: bool) -> None:
    predictions = multi_label_predictions(60, 4)
    counts = resample(60) if drawn else np.ones(60, dtype=np.int64)
    found = metrics_of(predictions, counts)
    target, scores = np.repeat(predictions.target, counts, axis=0), np.repeat(predictions.scores, counts, axis=0)
    precisions = [average_precision_score(target[:, label], scores[:, label]) for label in range(3)] + [0.0]
    assert found["map"] == pytest.approx(100 * np.mean(precisions))
    for average in ("micro", "macro"):
        assert found[f"f1_{average}"] == pytest.approx(100 * f1_score(target, scores > 0.5, average=average, zero_division=0))
    assert found["loss"] == pytest.approx(np.repeat(predictions.loss, counts).mean())


def test_all_images_once_are_exactly_the_metrics_of_an_evaluation_with_several_labels() -> None:
    logits = 30 * torch.randn(300, 4, generator=torch.Generator().manual_seed(0))  # many probabilities are 1 in float32
    target = (torch.rand(300, 4, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    images = MadeImages(target.numpy(), list("abcd"))
    evaluator = MultiLabelEvaluator(EvalSet(images, lambda image: torch.zeros(1)))
    evaluator.update(nn.Identity(), {"image": logits, "target": target, "index": torch.arange(300)})
    evaluated = dict(evaluator.compute([evaluator.state()]))
    kept = evaluator.predictions([evaluator.state()])
    assert kept is not None
    assert evaluated == {"num_images": 300} | metrics_of(kept)
