"""The images of a detector's report: truth beside what was found. An image is opened when it is shown, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.coco import CocoImages, DetectionEvalSet
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.errors import UserError
from stvit_cli.tasks.detection.analysis import DetectionAnalysis
from stvit_cli.tasks.detection.drawing import SIDE, DrawnObject, draw_objects
from stvit_cli.tasks.detection.errors import ERROR_TYPES, NO_ERROR, Errors
from stvit_cli.tasks.detection.predictions import Boxes, DetectionPredictions
from stvit_cli.tasks.report_parts import ShownImage, Thumbnail
from stvit_cli.tasks.report_texts import failure_lines
from stvit_cli.tasks.spec import ReportInput
from stvit_cli.utils.text import shortened

MOST_DRAWN = 100
"""Objects of an image that are drawn."""
LONGEST_NAME = 14
"""Of a class, beside an object: the score and the error have room on a small image too."""
SHOWN_SCORE = 0.5
"""The score of detections that are drawn where none can be recommended."""


class DetectionImages:
    """Draws images of a validation set with their objects and detections.

    Args:
        images: the validation set.
        predictions: of the same images.
        score_threshold: detections with a lower score are not drawn.
        errors: from that score on; None: nothing is known to be right or wrong.
        marks_missed: write beside an object of the truth that it was missed.

    Attributes:
        failures: why images cannot be shown, by index.
    """

    def __init__(
        self,
        images: CocoImages,
        predictions: DetectionPredictions,
        score_threshold: float,
        errors: Errors | None = None,
        *,
        marks_missed: bool = True,
    ) -> None:
        self._images, self._predictions, self._errors, self._marks_missed = images, predictions, errors, marks_missed
        self._threshold = np.float32(score_threshold)
        self._shown: dict[int, ShownImage | None] = {}
        self.failures: dict[int, str] = {}

    @cached_property
    def has_changed(self) -> bool:
        """Whether the images are no longer those that were predicted."""
        names = [self._images.index.file_names[index] for index in self._images.indices.tolist()]
        return names != list(self._predictions.images)

    def show(self, index: int) -> ShownImage | None:
        """Return an image; None where it cannot be opened."""
        if index not in self._shown:
            try:
                self._shown[index] = None if self.has_changed else self._draw(index, self._images.open(index))
            except (UserError, OSError) as error:
                self.failures[index], self._shown[index] = str(error), None
        return self._shown[index]

    def first(self, order: Iterable[int], limit: int) -> list[ShownImage]:
        """Return the first ``limit`` images of an order that can be opened; as many that cannot be are tried."""
        shown: list[ShownImage] = []
        for tried, index in enumerate(order):
            if len(shown) == limit or tried == 2 * limit:
                break
            image = self.show(index)
            if image is not None:
                shown.append(image)
        return shown

    def cells(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], images: NDArray[np.int64], limit: int
    ) -> dict[tuple[int, int], list[ShownImage]]:
        """Return images for the cells of a matrix: of the fullest cells off the diagonal first, up to three each.

        Args:
            rows: of what is counted, by descending interest.
            columns: of the same.
            images: their images.
            limit: the number of images that are opened for it.
        """
        off = rows != columns
        cells = list(zip(rows[off].tolist(), columns[off].tolist(), strict=True))
        of_cell: dict[tuple[int, int], list[int]] = {}
        for cell, image in zip(cells, images[off].tolist(), strict=True):
            of_cell.setdefault(cell, []).append(image)
        found: dict[tuple[int, int], list[ShownImage]] = {}
        opened: set[int] = set()
        for cell, _ in Counter(cells).most_common():
            for index in list(dict.fromkeys(of_cell[cell]))[:3]:
                if index not in opened and len(opened) == limit:
                    continue
                opened.add(index)
                image = self.show(index)
                if image is not None:
                    found.setdefault(cell, []).append(image)
        return found

    def problems(self) -> list[str]:
        """Return lines on what could not be shown."""
        if self.has_changed:
            return [
                f"No image is shown: the data set has {len(self._images)} images now, not the {len(self._predictions.images)} "
                "that were predicted, or in another order. `stvit report RUN` after a new evaluation shows them."
            ]
        return failure_lines(self._predictions.images, self.failures)

    def _draw(self, index: int, image: Image.Image) -> ShownImage:
        predictions, errors = self._predictions, self._errors
        true = _of_image(predictions.objects, index)
        found = _of_image(predictions.detections, index)
        found = found[predictions.detections.score[found] >= self._threshold]
        found = found[np.argsort(predictions.detections.score[found], kind="stable")]  # the most confident are drawn last
        drawn = [draw_objects(image, objects) for objects in (self._truth(true), self._found(found))]
        thumbnails = [
            Thumbnail(thumbnail(drawing, SIDE), label) for drawing, label in zip(drawn, ("truth", "prediction"), strict=True)
        ]
        if errors is None:
            return ShownImage(predictions.images[index], thumbnails[1:], [_number(len(found), "object")])
        texts = errors.texts(true, found)
        counted = int((~predictions.objects.is_crowd[true]).sum())
        caption = [f"{_number(counted, 'object')}, {int(errors.found[true].sum())} found", ", ".join(texts) or "no error"]
        return ShownImage(predictions.images[index], thumbnails, caption, bool(texts))

    def _truth(self, chosen: NDArray[np.intp]) -> list[DrawnObject]:
        objects, names = self._predictions.objects, self._predictions.class_names
        areas = -objects.area[chosen]
        drawn = []
        for number in chosen[np.argsort(areas, kind="stable")][:MOST_DRAWN].tolist():
            label, crowd = int(objects.label[number]), bool(objects.is_crowd[number])
            missed = self._marks_missed and self._errors is not None and self._errors.missed[number]
            text = shortened(names[label], LONGEST_NAME) + (" (crowd)" if crowd else " (missed)" if missed else "")
            drawn.append(DrawnObject(label, objects.box[number].tolist(), text, objects.masks[number], crowd))
        return drawn

    def _found(self, chosen: NDArray[np.intp]) -> list[DrawnObject]:
        detections, names = self._predictions.detections, self._predictions.class_names
        drawn = []
        for number in chosen[-MOST_DRAWN:].tolist():
            label = int(detections.label[number])
            kind = NO_ERROR if self._errors is None else int(self._errors.kind[number])
            text = f"{shortened(names[label], LONGEST_NAME)} {detections.score[number]:.2f}"
            text += "" if kind == NO_ERROR else f" ({ERROR_TYPES[kind].label})"
            drawn.append(DrawnObject(label, detections.box[number].tolist(), text, detections.masks[number]))
        return drawn


def compared_image(given: ReportInput) -> Callable[[int], ShownImage | None]:
    """Return what draws an image by its index; see `tasks.spec.TaskSpec`.

    Detections are drawn from the score with the largest F1 of the evaluation on; where nothing is annotated, from `SHOWN_SCORE`.
    """
    predictions = given.predictions
    assert isinstance(predictions, DetectionPredictions)
    images, analysis = cast(DetectionEvalSet, given.evaluation.val_set).images, DetectionAnalysis(predictions)
    if not analysis.kinds:
        return DetectionImages(images, predictions, SHOWN_SCORE).show
    return DetectionImages(images, predictions, analysis.score_threshold, analysis.errors, marks_missed=False).show


def _of_image(boxes: Boxes, index: int) -> NDArray[np.intp]:
    """Return the positions of the boxes of an image."""
    return np.flatnonzero(boxes.image == index)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def caption_classes(labels: Sequence[int], class_names: Sequence[str]) -> str:
    """Return the number of objects of each class, such as ``2 cat, 1 dog``.

    >>> caption_classes([1, 0, 1], ["cat", "dog"])
    '2 dog, 1 cat'
    """
    return ", ".join(f"{count} {class_names[label]}" for label, count in Counter(labels).most_common()) or "no object"
