"""Outputs of a model that are infinite or not a number are an error, wherever a model is evaluated or asked for a prediction.

A comparison with NaN is false, so such outputs would be ranked, thresholded and dropped like sound ones, without a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stvit_cli.tasks.base import NonFiniteOutputsError


def require_finite(*outputs: Tensor, counts: Sequence[int] | None = None) -> None:
    """Raise where a model's outputs for a batch are not finite.

    Args:
        outputs: (B, ...), a row for each image; with ``counts``, rows of the first image, then of the second, and so on.
        counts: rows of each image.

    Raises:
        NonFiniteOutputsError: they are infinite or not a number.
    """
    # A sum is finite only where all of its terms are. It is forty times as fast as asking each of them (150 x 512 x 683 values
    # on a CPU: 15 ms and 585 ms), which is left to the sums of large values that overflow by themselves.
    if bool(torch.stack([output.sum(dtype=torch.float32) for output in outputs]).isfinite().all()):
        return
    rows = torch.stack([output.isfinite().flatten(1).all(1) for output in outputs]).all(0)
    finite = [bool(part.all()) for part in rows.split(list(counts) if counts is not None else 1)]
    if not all(finite):
        raise NonFiniteOutputsError(finite)
