"""Whether an exported file computes what the model computes.

Shapes: B batch, H W pixels, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stvit_cli.errors import UserError
from stvit_cli.models.optimize.quantize import open_session
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.exported import ExportForm
from stvit_cli.tasks.finite import require_finite
from stvit_cli.tasks.loading import Trained

CHECKED_SIZES = ((1, 65, 101), (2, 131, 70), (3, 97, 190))  # B, H, W; not multiples of any grid size
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""The largest difference of a file's outputs from the model's, relative to the largest, by precision of the weights."""
MOST_UNMATCHED = {"fp32": 0.02, "fp16": 0.2, "bf16": 0.4}
"""The largest share of a detector's detections without a counterpart. Rounding decides at a threshold: a score just above it or
not, two boxes that overlap by just more than NMS allows."""


@torch.no_grad()
def require_finite_outputs(trained: Trained, form: ExportForm, size: tuple[int, int, int]) -> None:
    """Run the model on random images before the export. Raises UserError where its outputs are not finite."""
    images = torch.randn(1, trained.info.in_chans, *size[1:], generator=torch.Generator().manual_seed(0))
    try:
        outputs = form.reference(images)
        if not form.is_detector:  # which asks itself
            require_finite(*outputs)
    except NonFiniteOutputsError as error:
        raise UserError(f"{trained.path}: {error}; use other weights. Nothing was written.") from None


def compare(
    form: ExportForm,
    path: Path,
    in_chans: int,
    sizes: Sequence[tuple[int, int, int]] = CHECKED_SIZES,
    tolerance: float = TOLERANCES["fp32"],
) -> dict[str, Any]:
    """Compare an ONNX file with the model on random images.

    Args:
        form: the model; see `ExportForm.reference`.
        path: the ONNX file.
        in_chans: channels of the images.
        sizes: B, H and W of the images.
        tolerance: of a detector: how far box and score of the same detection may be from another, relative to the largest.

    Returns:
        ``largest_difference``: by size ``BxHxW``, the largest difference of an output, relative to the largest value; of a
        detector among the detections that both find, ``unmatched`` being the share of the others.
    """
    session = open_session(path)
    counts = [0, 0]

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(list(form.outputs), {"images": images.numpy()})))

    differences = differences_of(form, run, in_chans, sizes, tolerance, counts)
    return {"largest_difference": differences} | ({"unmatched": counts[0] / max(counts[1], 1)} if form.is_detector else {})


@torch.no_grad()
def differences_of(
    form: ExportForm,
    run: Callable[[Tensor], tuple[Tensor, ...]],
    in_chans: int,
    sizes: Sequence[tuple[int, int, int]],
    tolerance: float = TOLERANCES["fp32"],
    counts: list[int] | None = None,
) -> dict[str, float]:
    """Return by size ``BxHxW`` the largest difference of the outputs of ``run`` from the model's; see `compare`.

    ``counts``: where a detector's detections without a counterpart, and all of them, are counted.
    """
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch, height, width in sizes:
        images = torch.randn(batch, in_chans, height, width, generator=generator)
        expected, found = form.reference(images), run(images)
        if form.is_detector:
            found, expected, *counted = _matched(found, expected, tolerance)
            if counts is not None:
                counts[:] = [counts[0] + counted[0], counts[1] + counted[1]]
        differences[f"{batch}x{height}x{width}"] = max(map(_difference, found, expected), default=0.0)
    return differences


def require_same(found: Mapping[str, Any], precision: str) -> None:
    """Raise RuntimeError where what `compare` returns exceeds what rounding explains."""
    differences, unmatched = found["largest_difference"], found.get("unmatched", 0.0)
    if not all(difference <= TOLERANCES[precision] for difference in differences.values()):
        raise RuntimeError(f"the outputs of the ONNX file differ from the model's, relative to the largest output: {differences}")
    if unmatched > MOST_UNMATCHED[precision]:
        raise RuntimeError(f"the ONNX file finds other objects than the model: {unmatched:.1%} of them have no counterpart")


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinity for arrays of other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def _matched(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], int, int]:
    """Return the detections that both have, in the same order, the number of the others, and the number of all expected.

    A detection is one of both where class, box and score are the same but for ``tolerance``.
    """
    (boxes, scores, labels), (own_boxes, own_scores, own_labels) = expected[:3], found[:3]
    far = (own_boxes[:, None] - boxes[None]).abs().amax(2) / boxes.max().clamp(min=1.0) if len(boxes) else boxes.new_zeros(0, 0)
    rows: list[int] = []
    columns: list[int] = []
    if len(own_boxes) and len(boxes):
        far = torch.maximum(far, (own_scores[:, None] - scores[None]).abs())
        far = torch.where(own_labels[:, None] == labels[None], far, torch.inf)
        nearest = far.argmin(0).tolist()
        columns = [column for column, row in enumerate(nearest) if far[row, column] <= tolerance]
        rows = [nearest[column] for column in columns]
    others = len(boxes) - len(columns) + len(own_boxes) - len(set(rows))
    return tuple(part[rows] for part in found), tuple(part[columns] for part in expected), others, len(boxes)
