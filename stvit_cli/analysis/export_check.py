"""Whether an exported file computes what the model computes.

Shapes: B batch, H W pixels, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stvit_cli.errors import UserError
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.exported import ExportForm
from stvit_cli.tasks.exported_file import open_runner
from stvit_cli.tasks.finite import require_finite
from stvit_cli.tasks.loading import Trained

CHECKED_SIZES = ((1, 65, 101), (2, 131, 70), (3, 97, 190))  # B, H, W; not multiples of any grid size
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
"""The largest difference of a file's outputs from the model's, relative to the largest, by precision of the weights."""
MOST_UNMATCHED = {"fp32": 0.02, "fp16": 0.2, "bf16": 0.4}
"""The largest share of a detector's detections without a counterpart. Rounding decides at a threshold: a score just above it or
not, two boxes that overlap by just more than NMS allows."""
NUM_SCENES = 12
"""How many images are tried until a detector finds something in one."""


@dataclass
class Counts:
    """Detections of the model and of the file, each counted once.

    Attributes:
        matched: found by both, and compared.
        unmatched: found by one of both.
    """

    matched: int = 0
    unmatched: int = 0


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
    """Compare an exported file with the model on random images, in the runtime that the file is for.

    A detector finds little or nothing in noise; its images are scenes of random shapes in which the model finds objects.

    Args:
        form: the model; see `ExportForm.reference`.
        path: an ``.onnx`` file, or the ``.xml`` of OpenVINO.
        in_chans: channels of the images.
        sizes: B, H and W of the images.
        tolerance: of a detector: how far box and score of the same detection may be from another, relative to the largest.

    Returns:
        ``largest_difference``: by size ``BxHxW``, the largest difference of an output, relative to the largest value; of a
        detector among the detections that both find: ``num_compared`` is their number, and ``unmatched`` the share of the others
        in all detections, 0 to 1, each counted once.

    Raises:
        RuntimeError: the file does not run.
    """
    run_file, _ = open_runner(path)
    counts = Counts()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        try:
            found = run_file(images.numpy())
        except UserError as error:  # a fault of the export, not of the user
            raise RuntimeError(str(error)) from error
        return tuple(torch.from_numpy(np.array(found[name])) for name in form.outputs)

    found: dict[str, Any] = {"largest_difference": differences_of(form, run, in_chans, sizes, tolerance, counts)}
    if form.is_detector:
        found["num_compared"] = counts.matched
        found["unmatched"] = counts.unmatched / max(counts.matched + counts.unmatched, 1)
    return found


@torch.no_grad()
def differences_of(
    form: ExportForm,
    run: Callable[[Tensor], tuple[Tensor, ...]],
    in_chans: int,
    sizes: Sequence[tuple[int, int, int]],
    tolerance: float = TOLERANCES["fp32"],
    counts: Counts | None = None,
) -> dict[str, float]:
    """Return by size ``BxHxW`` the largest difference of the outputs of ``run`` from the model's; see `compare`.

    ``counts``: where a detector's detections are counted.
    """
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch, height, width in sizes:
        if form.is_detector:
            images, expected = _with_objects(form, (batch, in_chans, height, width), generator)
            found, expected, unmatched = _matched(run(images), expected, tolerance)
            if counts is not None:
                counts.matched += len(expected[0])
                counts.unmatched += unmatched
        else:
            images = torch.randn(batch, in_chans, height, width, generator=generator)
            expected, found = form.reference(images), run(images)
        differences[f"{batch}x{height}x{width}"] = max(map(_difference, found, expected), default=0.0)
    return differences


def _with_objects(
    form: ExportForm, shape: tuple[int, int, int, int], generator: torch.Generator
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return an image in which a detector finds objects, and what it finds: the last of `NUM_SCENES` where it finds none."""
    for _ in range(NUM_SCENES):
        images = _scene(shape, generator)
        expected = form.reference(images)
        if len(expected[0]):
            break
    return images, expected


def _scene(shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Draw rectangles and ellipses of random colours over noise, as normalized images (B, C, H, W)."""
    channels, height, width = shape[1:]

    def uniform(least: float, most: float) -> float:
        return least + (most - least) * torch.rand((), generator=generator).item()

    images = torch.randn(shape, generator=generator) * uniform(0.05, 0.5) + uniform(-1, 1)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    for number in range(4):
        y, x = rows - uniform(0.2, 0.8) * height, columns - uniform(0.2, 0.8) * width
        half = uniform(0.1, 0.3) * min(height, width)
        inside = (y.abs().expand(height, width) <= half) & (x.abs() <= half) if number % 2 else (y**2 + x**2 <= half**2)
        images = torch.where(inside, 2 * torch.randn(channels, 1, 1, generator=generator), images)
    return images


def require_same(found: Mapping[str, Any], precision: str, *, say: Callable[[str], None] = lambda line: None) -> None:
    """Raise RuntimeError where what `compare` returns exceeds what rounding explains.

    ``say`` is told where a detector's boxes and scores are not compared, as there were none.
    """
    differences, unmatched = found["largest_difference"], found.get("unmatched", 0.0)
    if not all(difference <= TOLERANCES[precision] for difference in differences.values()):
        raise RuntimeError(f"the outputs of the file differ from the model's, relative to the largest output: {differences}")
    if unmatched > MOST_UNMATCHED[precision]:
        raise RuntimeError(f"the file finds other objects than the model: {unmatched:.1%} of them have no counterpart")
    if found.get("num_compared") == 0:
        say("Neither finds an object in the images of the check, so boxes and scores are not compared. Check it on your images.")


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinity for arrays of other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def _matched(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], int]:
    """Return the detections that both have, in the same order, and the number of the others.

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
    return tuple(part[rows] for part in found), tuple(part[columns] for part in expected), others
