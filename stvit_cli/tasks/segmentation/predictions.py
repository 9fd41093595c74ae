"""The predictions of a segmenter's evaluation: the confusion matrix of each image. N images, K classes, M non-zero entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.errors import UserError
from stvit_cli.tasks.predictions import Statistics
from stvit_cli.tasks.segmentation.statistics import SegmentationStatistics
from stvit_cli.tasks.tables import Column, read_table, write_table


@dataclass(frozen=True)
class SegmentationPredictions:
    """What a segmenter said of the pixels of each image; see `tasks.predictions.Predictions`.

    Pixels that the label map leaves out are not counted. Entries are in the order of image, true class and predicted class.

    Attributes:
        images: names, relative to the data set, (N,).
        class_names: of the model, (K,).
        image: index of the image, (M,).
        target: true class, 0 to K - 1, (M,).
        predicted: predicted class, (M,).
        pixels: the number of pixels, (M,).
    """

    images: Sequence[str]
    class_names: Sequence[str]
    image: NDArray[np.int32]
    target: NDArray[np.int16]
    predicted: NDArray[np.int16]
    pixels: NDArray[np.int64]

    def write(self, path: Path) -> None:
        """Write a table with a row for each pair of classes in an image. Raises UserError as `write_table` does.

        An image without a pixel that counts has a row of empty cells.
        """
        empty = np.setdiff1d(np.arange(len(self.images), dtype=np.int32), self.image)
        image = np.concatenate([self.image, empty])
        order = np.argsort(image, kind="stable")
        image, is_empty = image[order], (np.arange(len(order)) >= len(self.image))[order]

        def cells(values: NDArray[Any]) -> NDArray[Any]:
            filled = np.concatenate([values, np.zeros(len(empty), values.dtype)])[order]
            masked: NDArray[Any] = np.ma.masked_array(filled, mask=is_empty)
            return masked

        def names(values: NDArray[Any]) -> list[str | None]:
            return [None if index is None else self.class_names[index] for index in cells(values).tolist()]

        columns: dict[str, Column] = {
            "image": [self.images[index] for index in image.tolist()],
            "true_class": names(self.target),
            "predicted_class": names(self.predicted),
            "pixels": cells(self.pixels),
            "image_index": image,
            "true_index": cells(self.target),
            "predicted_index": cells(self.predicted),
        }
        write_table(path, columns)

    def statistics(self) -> Statistics:
        """Return the metrics as a function of the images."""
        return SegmentationStatistics(self)


def read_segmentation_predictions(path: Path, class_names: Sequence[str]) -> SegmentationPredictions:
    """Read what `SegmentationPredictions.write` wrote.

    Args:
        path: of the table.
        class_names: of the model.

    Raises:
        UserError: the file is missing, damaged, or of other classes.
    """
    table = read_table(path)
    image, pixels = table.numbers("image_index", np.int32), table.numbers("pixels", np.int64)
    target, predicted = (table.numbers(f"{name}_index", np.int16) for name in ("true", "predicted"))
    largest = max(target.max(initial=0), predicted.max(initial=0))
    if largest >= max(len(class_names), 1):
        raise UserError(f"{path}: class {largest} is none of the model's {len(class_names)}.")
    names = dict(zip(image.tolist(), table.texts("image"), strict=True))
    counted = pixels > 0
    return SegmentationPredictions(
        images=list(names.values()),
        class_names=tuple(class_names),
        image=image[counted],
        target=target[counted],
        predicted=predicted[counted],
        pixels=pixels[counted],
    )
