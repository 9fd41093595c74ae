"""Images of a detector's evaluation: truth beside prediction. N images, K classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.coco import CocoImages, DetectionEvalSet
from stvit_cli.data.drawing import side_by_side
from stvit_cli.tasks.detection.analysis import DetectionAnalysis
from stvit_cli.tasks.detection.annotated import Annotation, annotated, object_text
from stvit_cli.tasks.detection.errors import ERROR_TYPES, NO_ERROR, Errors
from stvit_cli.tasks.detection.predictions import Boxes, DetectionPredictions
from stvit_cli.tasks.detection.shown_images import MOST_DRAWN, SHOWN_SCORE
from stvit_cli.tasks.spec import EvalDrawing, ReportInput


def draw_evaluation(given: ReportInput) -> Iterator[EvalDrawing]:
    """Yield images by descending number of errors; see `tasks.spec.TaskSpec`.

    Detections count from the score with the largest F1 of the evaluation.
    """
    predictions = given.predictions
    assert isinstance(predictions, DetectionPredictions)
    images = cast(DetectionEvalSet, given.evaluation.val_set).images
    drawn = _Drawn(predictions)
    for index in drawn.order().tolist():
        yield EvalDrawing(predictions.images[index], partial(drawn.draw, images, index))


class _Drawn:
    """The predictions as they are drawn."""

    def __init__(self, predictions: DetectionPredictions) -> None:
        self.predictions = predictions
        self.errors: Errors | None = None
        self.score, self.num_errors = SHOWN_SCORE, np.zeros(len(predictions.images), dtype=np.int64)
        if len(predictions.objects):
            analysis = DetectionAnalysis(predictions)
            self.errors, self.score, self.num_errors = analysis.errors, analysis.score_threshold, analysis.errors_of_images

    def order(self) -> NDArray[np.intp]:
        """Return the images with the most errors first."""
        return np.argsort(-self.num_errors, kind="stable")

    def draw(self, images: CocoImages, index: int) -> Image.Image:
        """Return an image with what was found and, where anything is annotated, the truth on its left."""
        image = images.open(index)
        true = np.flatnonzero(self.predictions.objects.image == index)
        found = np.flatnonzero(self.predictions.detections.image == index)
        found = found[self.predictions.detections.score[found] >= np.float32(self.score)]
        prediction = (f"prediction, score at least {self.score:.2f}", annotated(image, self._found(found)))
        if self.errors is None:
            return side_by_side([prediction])
        return side_by_side([("truth", annotated(image, self._true(true))), prediction], self._caption(self.errors, true, found))

    def _true(self, chosen: NDArray[np.intp]) -> list[Annotation]:
        objects = self.predictions.objects
        chosen = chosen[np.argsort(objects.area[chosen], kind="stable")]  # the smallest on top
        return [self._annotation(objects, number, self._kind(number)) for number in chosen[:MOST_DRAWN].tolist()]

    def _kind(self, number: int) -> str:
        assert self.errors is not None
        return "crowd" if self.predictions.objects.is_crowd[number] else "missed" if self.errors.missed[number] else ""

    def _found(self, chosen: NDArray[np.intp]) -> list[Annotation]:
        detections = self.predictions.detections
        chosen = chosen[np.argsort(-detections.score[chosen], kind="stable")][:MOST_DRAWN]
        kinds = [NO_ERROR if self.errors is None else int(self.errors.kind[number]) for number in chosen.tolist()]
        return [
            self._annotation(detections, number, "" if kind == NO_ERROR else ERROR_TYPES[kind].label, with_score=True)
            for number, kind in zip(chosen.tolist(), kinds, strict=True)
        ]

    def _annotation(self, boxes: Boxes, number: int, remark: str, *, with_score: bool = False) -> Annotation:
        left, top, width, height = boxes.box[number].tolist()
        label = int(boxes.label[number])
        text = object_text(self.predictions.class_names[label], float(boxes.score[number]) if with_score else None)
        text += f" ({remark})" if remark else ""
        return Annotation(label, (left, top, left + width, top + height), text, boxes.masks[number])

    def _caption(self, errors: Errors, true: NDArray[np.intp], found: NDArray[np.intp]) -> Sequence[str]:
        num_objects = int((~self.predictions.objects.is_crowd[true]).sum())
        noun = "object" if num_objects == 1 else "objects"
        texts = ", ".join(errors.texts(true, found)) or "none"
        return [f"{num_objects} {noun}, {int(errors.found[true].sum())} found; errors: {texts}"]
