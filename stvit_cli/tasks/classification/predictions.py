"""The predictions of a classifier's evaluation. N images, K classes, T = min(5, K) that are kept of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stvit_cli.errors import UserError
from stvit_cli.tasks.classification.statistics import ClassificationStatistics, MultiLabelStatistics
from stvit_cli.tasks.predictions import Statistics
from stvit_cli.tasks.tables import Column, Table, read_table, write_table

KEPT = 5
"""The largest number of classes that are kept of an image: of 50 000 images all logits of 1000 classes would take 200 MB."""
SCORE = "score: "
"""Before the name of a class, in the table of predictions with several labels."""


@dataclass(frozen=True)
class ClassificationPredictions:
    """What a classifier with one class an image said; see `tasks.predictions.Predictions`.

    Attributes:
        images: names, relative to the data set, (N,).
        class_names: of the model, (K,).
        target: the true class, (N,).
        labels: the classes with the highest probabilities in descending order, of equal ones the lower index first, (N, T).
        scores: their probabilities, (N, T).
        target_score: the probability of the true class, (N,).
        target_rank: its rank by probability, (N,); 0: the prediction is right.
        loss: cross-entropy, (N,).
    """

    images: Sequence[str]
    class_names: Sequence[str]
    target: NDArray[np.int32]
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]
    target_score: NDArray[np.float32]
    target_rank: NDArray[np.int32]
    loss: NDArray[np.float64]

    def write(self, path: Path) -> None:
        """Write a table with a row for each image; ``true_rank`` counts from 1. Raises UserError as `write_table` does."""
        columns: dict[str, Column] = {
            "image": self.images,
            "true_class": _names(self.class_names, self.target),
            "right": self.target_rank == 0,
        }
        for rank in range(self.labels.shape[1]):
            columns[f"class_{rank + 1}"] = _names(self.class_names, self.labels[:, rank])
            columns[f"score_{rank + 1}"] = self.scores[:, rank]
        columns |= {
            "true_score": self.target_score,
            "true_rank": self.target_rank + 1,
            "loss": self.loss,
            "true_index": self.target,
        }
        columns |= {f"index_{rank + 1}": self.labels[:, rank] for rank in range(self.labels.shape[1])}
        write_table(path, columns)

    def statistics(self) -> Statistics:
        """Return `ClassificationStatistics`."""
        predicted, confidence = self.labels[:, 0], self.scores[:, 0]
        return ClassificationStatistics(self.target, predicted, confidence, self.target_rank, self.loss, len(self.class_names))


@dataclass(frozen=True)
class MultiLabelPredictions:
    """What a classifier with several labels an image said; see `tasks.predictions.Predictions`.

    Attributes:
        images: names, relative to the data set, (N,).
        class_names: of the model, (K,).
        target: whether an image has a label, (N, K).
        scores: probabilities, (N, K).
        loss: the mean binary cross-entropy, (N,).
    """

    images: Sequence[str]
    class_names: Sequence[str]
    target: NDArray[np.bool_]
    scores: NDArray[np.float32]
    loss: NDArray[np.float64]

    def write(self, path: Path) -> None:
        """Write a table with a row for each image and the scores of all classes. Raises UserError as `write_table` does."""
        indices = [np.flatnonzero(row).tolist() for row in self.target]
        columns: dict[str, Column] = {
            "image": self.images,
            "labels": ["; ".join(self.class_names[index] for index in row) for row in indices],
            "label_indices": [" ".join(map(str, row)) for row in indices],
            "loss": self.loss,
        }
        columns |= {name: self.scores[:, index] for index, name in enumerate(_score_columns(self.class_names))}
        write_table(path, columns)

    def statistics(self) -> Statistics:
        """Return `MultiLabelStatistics`."""
        return MultiLabelStatistics(self.target, self.scores, self.loss)


def read_classification_predictions(path: Path, class_names: Sequence[str]) -> ClassificationPredictions | MultiLabelPredictions:
    """Read what `ClassificationPredictions.write` or `MultiLabelPredictions.write` wrote.

    Args:
        path: of the table.
        class_names: of the model.

    Raises:
        UserError: the file is missing, damaged, or of other classes.
    """
    table = read_table(path)
    found = _read_multi_label(table, class_names) if "label_indices" in table.names else _read_single(table, class_names)
    largest = found.target.max(initial=0) if isinstance(found, ClassificationPredictions) else 0
    if largest >= len(class_names):
        raise UserError(f"{path}: class {largest} is none of the model's {len(class_names)}.")
    return found


def _read_single(table: Table, class_names: Sequence[str]) -> ClassificationPredictions:
    ranks = [name.removeprefix("index_") for name in table.names if name.startswith("index_")]
    empty = np.empty((len(table), 0))
    labels = [table.numbers(f"index_{rank}", np.int32) for rank in ranks]
    scores = [table.numbers(f"score_{rank}", np.float32) for rank in ranks]
    return ClassificationPredictions(
        images=table.texts("image"),
        class_names=tuple(class_names),
        target=table.numbers("true_index", np.int32),
        labels=np.stack(labels, axis=1) if labels else empty.astype(np.int32),
        scores=np.stack(scores, axis=1) if scores else empty.astype(np.float32),
        target_score=table.numbers("true_score", np.float32),
        target_rank=table.numbers("true_rank", np.int32) - 1,
        loss=table.numbers("loss", np.float64),
    )


def _read_multi_label(table: Table, class_names: Sequence[str]) -> MultiLabelPredictions:
    names = [name for name in table.names if name.startswith(SCORE)]
    if len(names) != len(class_names):
        raise UserError(f"{table.path} has scores of {len(names)} classes, the model {len(class_names)}.")
    target = np.zeros((len(table), len(class_names)), dtype=np.bool_)
    for row, indices in zip(target, table.texts("label_indices"), strict=True):
        row[[int(index) for index in indices.split()]] = True
    return MultiLabelPredictions(
        images=table.texts("image"),
        class_names=tuple(class_names),
        target=target,
        scores=np.stack([table.numbers(name, np.float32) for name in names], axis=1),
        loss=table.numbers("loss", np.float64),
    )


def _names(class_names: Sequence[str], indices: NDArray[np.int32]) -> list[str]:
    return [class_names[index] for index in indices.tolist()]


def _score_columns(class_names: Sequence[str]) -> list[str]:
    """Return a name for the column of each class; of equal names all but the first have the index behind them."""
    names: dict[str, None] = {}
    for index, name in enumerate(class_names):
        wanted = f"{SCORE}{name}"
        while wanted in names:
            wanted += f" ({index})"
        names[wanted] = None
    return list(names)
