"""Predictions image by image: one that fails does not end those of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from stvit_cli.data.images import ImageSource, explain_failure
from stvit_cli.data.prefetch import Opened, decoded_ahead
from stvit_cli.tasks.base import NonFiniteOutputsError

Prediction = TypeVar("Prediction")


def predict_one_by_one(
    images: Sequence[ImageSource],
    predict_one: Callable[[ImageSource, Opened], Prediction],
    failed: Callable[..., Prediction],
) -> Iterator[Prediction]:
    """Yield the prediction of every image, in order; the next images are decoded while the model computes.

    Args:
        images: the images, or paths of their files.
        predict_one: predicts an image; called with it, and a function that returns it decoded.
        failed: makes the prediction of an image that cannot be read or answered: called with the image, ``error`` and, where the
            model's outputs are not finite, ``is_unanswered``.
    """
    for source, opened in decoded_ahead(images):
        try:
            result = predict_one(source, opened)
        except NonFiniteOutputsError:
            result = failed(source, error=NonFiniteOutputsError.of(source), is_unanswered=True)
        except Exception as error:
            result = failed(source, error=explain_failure(source, error))
        yield result
