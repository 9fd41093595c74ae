"""Images of a segmenter's evaluation: truth beside prediction, with a legend. H W rows and columns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import numpy as np
import torch
from PIL import Image

from stvit_cli.data.drawing import enlarged, side_by_side
from stvit_cli.data.segmentation import SegmentationEvalSet
from stvit_cli.data.segmentation_transforms import IGNORED
from stvit_cli.tasks.segmentation.annotated import LONGEST_NAME, overlay, with_legend
from stvit_cli.tasks.segmentation.predict import predict_again
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions
from stvit_cli.tasks.segmentation.statistics import image_iou
from stvit_cli.tasks.spec import EvalDrawing, ReportInput
from stvit_cli.utils.text import shortened


def draw_evaluation(given: ReportInput) -> Iterator[EvalDrawing]:
    """Yield images by ascending mean IoU; see `tasks.spec.TaskSpec`. Their label maps are computed again."""
    predictions = given.predictions
    assert isinstance(predictions, SegmentationPredictions)
    model = given.trained.prepared(given.device, given.max_images, given.precision)
    iou = image_iou(predictions)
    for index in np.argsort(iou, kind="stable").tolist():  # NaN last: an image without a pixel that counts
        yield EvalDrawing(predictions.images[index], partial(_draw, given, model, index, float(iou[index])))


def _draw(given: ReportInput, model: torch.nn.Module, index: int, iou: float) -> Image.Image:
    val_set, names = cast(SegmentationEvalSet, given.evaluation.val_set), given.predictions.class_names
    image = val_set.images.open(index)
    target = val_set.images.labels(index, image.size)
    predicted = predict_again(given, model, index, image)
    maps = [enlarged(overlay(image, classes)) for classes in (target, predicted)]
    found, counts = np.unique(np.concatenate([target.ravel(), predicted.ravel()]), return_counts=True)
    order = found[np.argsort(-counts, kind="stable")].tolist()
    entries = [(label, "ignored" if label == IGNORED else shortened(names[label], LONGEST_NAME)) for label in order]
    counted = target != IGNORED
    right = 100 * float((predicted == target)[counted].mean()) if counted.any() else float("nan")
    caption = f"mean IoU {iou:.1f} %, pixel accuracy {right:.1f} %" if counted.any() else "no pixel counts"
    return with_legend(side_by_side([("truth", maps[0]), ("prediction", maps[1])], [caption]), entries)
