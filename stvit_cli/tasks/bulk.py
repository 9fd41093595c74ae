"""Predictions of many images as columns of a table, batch by batch: what a task offers for `analysis.prediction`.

B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.tasks.base import ImagePrediction

Kind = Literal["text", "int", "float", "score"]
"""What the lists of a column hold; scores and features can be written in half precision."""
NameOf = Callable[[int], str]


@dataclass(frozen=True)
class BatchResult:
    """What is said of the images of a batch.

    Attributes:
        lengths: for each image, the number of its values in every column (B,).
        columns: the values of all images, one after the other.
        errors: for each image, why it has no values; None where it was answered.
        num_damaged: the number of errors that are about what a file holds.
    """

    lengths: NDArray[np.int64]
    columns: Mapping[str, Sequence[Any] | NDArray[Any]]
    errors: Sequence[str | None]
    num_damaged: int = 0


class BulkPredictor(Protocol):
    """Predicts batches of decoded images.

    Attributes:
        columns: the names of the columns, and what their lists hold.
        batch_size: images of a batch, unless another number is asked for.
    """

    @property
    def columns(self) -> Mapping[str, Kind]: ...

    @property
    def batch_size(self) -> int: ...

    def sample(self, image: Image.Image) -> Any:
        """Prepare an image, in a loader process: as few bytes as the device needs."""
        ...

    def collate(self, samples: list[Any]) -> Any:
        """Make a batch, in a loader process."""
        ...

    def start(self, batch: Any) -> Any:
        """Start to compute a batch; a GPU is not waited for."""
        ...

    def finish(self, outputs: Any, name: NameOf) -> BatchResult:
        """Return what came out of a batch; ``name`` returns the name of an image by its position, for messages."""
        ...


class RowsPredictor:
    """A predictor of a task that predicts image by image: a value for each row of `ImagePrediction.to_rows`.

    Args:
        columns: the columns of the rows that are taken.
        predict: predicts some images, in order.
    """

    batch_size = 8

    def __init__(
        self, columns: Mapping[str, Kind], predict: Callable[[Sequence[Image.Image]], Iterator[ImagePrediction]]
    ) -> None:
        self.columns, self._predict = columns, predict

    def sample(self, image: Image.Image) -> Image.Image:
        return image

    def collate(self, samples: list[Image.Image]) -> list[Image.Image]:
        return samples

    def start(self, batch: list[Image.Image]) -> list[ImagePrediction]:
        return list(self._predict(batch))

    def finish(self, outputs: list[ImagePrediction], name: NameOf) -> BatchResult:
        lengths, values = [], {column: list[Any]() for column in self.columns}
        for prediction in outputs:
            rows = [row for row in prediction.to_rows() if any(row[column] is not None for column in self.columns)]
            lengths.append(len(rows))
            for column, cells in values.items():
                cells += [row[column] for row in rows]
        errors = [
            None if found.error is None else f"{name(number)}: {_without_name(found.error)}"
            for number, found in enumerate(outputs)
        ]
        return BatchResult(np.array(lengths, dtype=np.int64), values, errors)


def _without_name(message: str) -> str:
    """Return a message about an image from memory without the size that it is called by."""
    return message.partition(": ")[2] or message


def finite_rows(outputs: torch.Tensor) -> NDArray[np.bool_]:
    """Return for each image of a batch (B, ...) whether its outputs are finite."""
    finite: NDArray[np.bool_] = outputs.isfinite().flatten(1).all(1).cpu().numpy()
    return finite
