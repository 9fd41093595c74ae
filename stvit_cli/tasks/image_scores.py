"""How right a model is about each image: what a comparison of two models on the same images looks at. N images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageScores:
    """Scores of the images of an evaluation.

    Attributes:
        score: of each image, 0 (wrong) to 1 (right), (N,).
        what: it is, such as ``IoU``; empty where an image is either right or wrong.
        certainty: how certain the model is of what it says of an image, (N,): of several images that one model alone gets right,
            those are shown first where the models are most certain.
        truth: a hash of the images and of what is true of them: only with the same are two evaluations of the same data.
        describe_truth: returns what is true of an image; empty where that is no line of text.
        describe: returns what the model said of an image.
    """

    score: NDArray[np.float64]
    what: str
    certainty: NDArray[np.float64]
    truth: str
    describe_truth: Callable[[int], str]
    describe: Callable[[int], str]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether the image is right, (N,), where that is a question."""
        return self.score == 1


def truth_hash(images: Sequence[str], class_names: Sequence[str], *arrays: NDArray[Any]) -> str:
    """Return a hash of names and of arrays.

    >>> truth_hash(["a"], ["x"], np.arange(3)) == truth_hash(["a"], ["x"], np.arange(3, dtype=np.int32))
    True
    """
    found = hashlib.blake2b(repr((list(images), list(class_names))).encode("utf-8", "surrogatepass"), digest_size=16)
    for array in arrays:
        found.update(repr(array.shape).encode() + np.ascontiguousarray(array, dtype=np.float64).tobytes())
    return found.hexdigest()
