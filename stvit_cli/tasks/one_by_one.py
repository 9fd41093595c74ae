"""Predictions image by image: one that fails does not end those of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from stvit_cli.data.images import ImageSource, explain_failure
from stvit_cli.tasks.base import NonFiniteOutputsError

Prediction = TypeVar("Prediction")


def predict_one_by_one(
    images: Sequence[ImageSource], predict_one: Callable[[ImageSource], Prediction], failed: Callable[..., Prediction]
) -> Iterator[Prediction]:
    """Yield the prediction of every image, in order.

    Args:
        images: the images, or paths of their files.
        predict_one: predicts an image.
        failed: makes the prediction of an image that cannot be read or answered: called with the image, ``error`` and, where the
            model's outputs are not finite, ``is_unanswered``.
    """
    for source in images:
        try:
            result = predict_one(source)
        except NonFiniteOutputsError:
            result = failed(source, error=NonFiniteOutputsError.of(source), is_unanswered=True)
        except Exception as error:
            result = failed(source, error=explain_failure(source, error))
        yield result
