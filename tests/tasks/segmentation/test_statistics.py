"""Metrics as a function of the images: torchmetrics' figures on the same label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from stvit_cli.tasks.segmentation.metrics import confusion, segmentation_metrics
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions
from stvit_cli.tasks.segmentation.statistics import SegmentationStatistics, image_iou

SIZE = 4


def _maps(num_images: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, SIZE, (num_images, 12, 12), generator=generator)
    predicted = torch.where(torch.rand(target.shape, generator=generator) < 0.6, target, torch.randint(0, SIZE, target.shape))
    target[torch.rand(target.shape, generator=generator) < 0.1] = -1
    return predicted, target


def made_predictions(predicted: torch.Tensor, target: torch.Tensor) -> SegmentationPredictions:
    """Return the predictions of an evaluation of label maps (N, H, W)."""
    matrices = torch.stack([confusion(*maps, SIZE) for maps in zip(predicted, target, strict=True)]).numpy()
    image, true, found = np.nonzero(matrices)
    return SegmentationPredictions(
        images=[f"{index}.png" for index in range(len(target))],
        class_names=[f"class {index}" for index in range(SIZE)],
        image=image.astype(np.int32),
        target=true.astype(np.int16),
        predicted=found.astype(np.int16),
        pixels=matrices[image, true, found],
    )


@pytest.mark.parametrize("counts", [[1] * 6, [0, 2, 1, 3, 0, 0]])
def test_metrics_are_those_of_torchmetrics_on_the_images_as_often_as_they_count(counts: list[int]) -> None:
    predicted, target = _maps()
    statistics = made_predictions(predicted, target).statistics()
    found = dict(zip(statistics.names, statistics(np.array(counts)), strict=True))
    repeated = [maps.repeat_interleave(torch.tensor(counts), dim=0) for maps in (predicted, target)]
    options = {"num_classes": SIZE, "ignore_index": -1}
    expected = {
        "miou": multiclass_jaccard_index(*repeated, **options, average="macro"),
        "pixel_accuracy": multiclass_accuracy(*repeated, **options, average="micro"),
        "class_accuracy": multiclass_accuracy(*repeated, **options, average="macro"),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(100 * float(value), rel=1e-6)  # torchmetrics computes in float32
    exact = dict(segmentation_metrics(confusion(*repeated, SIZE), ["a", "b", "c", "d"]))
    for name, value in found.items():
        assert value == pytest.approx(exact[name], abs=1e-9)


def test_the_iou_of_each_image_is_that_of_torchmetrics_and_none_where_all_is_ignored() -> None:
    predicted, target = _maps()
    predicted[1], target[1] = 2, 2  # an image of one class
    target[4] = -1
    found = image_iou(made_predictions(predicted, target))
    for index in (0, 1, 2, 3, 5):
        expected = dict(segmentation_metrics(confusion(predicted[index], target[index], SIZE), ["a", "b", "c", "d"]))["miou"]
        assert found[index] == pytest.approx(expected, abs=1e-9)
    assert found[1] == 100
    assert np.isnan(found[4])
    assert isinstance(made_predictions(predicted, target).statistics(), SegmentationStatistics)
