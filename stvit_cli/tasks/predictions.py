"""The predictions of an evaluation: what a model said of every image, with the truth. N images.

They are the source of everything that is computed after an evaluation: intervals, reports, comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Statistics(Protocol):
    """Metrics of predictions as a function of how often each image counts: what a bootstrap over images resamples.

    Attributes:
        names: of the metrics, as the evaluation names them.
    """

    names: Sequence[str]

    def __call__(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the metrics, in the order of ``names``; NaN where one is not defined.

        Args:
            counts: how often each image counts, (N,); all ones give the metrics of the evaluation.
        """
        ...


class Predictions(Protocol):
    """What a model predicted for the images of an evaluation, in the order of the data set. Each task has its own class."""

    @property
    def images(self) -> Sequence[str]:
        """The names of the images, relative to the data set, (N,)."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the model's classes, (K,)."""
        ...

    def write(self, path: Path) -> None:
        """Write a table, atomically: CSV or, by the ending ``.parquet``, Parquet. Raises UserError."""
        ...

    def statistics(self) -> Statistics:
        """Return the metrics as a function of the images."""
        ...
