"""Superpixel metrics: how well a segmentation follows a label map, and two baselines (regular grid, SLIC) to compare with.

Segmentations and label maps are integer arrays (height, width). Their labels need not be consecutive, nor segments connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.errors import UserError

Labels = NDArray[np.integer[Any]]
TOLERANCE = 2  # pixels, the usual value for boundary recall
MAX_LABELS = 4096  # more distinct values mean a photograph, or a label map saved as JPEG


@dataclass(frozen=True)
class Segmentation:
    """A segmentation of the image and its metrics.

    Attributes:
        name: the layer, ``regular grid`` or ``SLIC``.
        labels: (height, width).
        num_segments: number of distinct values in ``labels``.
        boundary_share: fraction of pixels on a segment boundary; a ragged segmentation has more, and so a higher recall.
        boundary_recall: see `boundary_recall`; 0 to 1, higher is better.
        accuracy: see `achievable_accuracy`; 0 to 1, higher is better.
    """

    name: str
    labels: Labels
    num_segments: int
    boundary_share: float
    boundary_recall: float
    accuracy: float


def measure(name: str, labels: Labels, truth: Labels) -> Segmentation:
    """Compute the metrics of the segmentation ``labels`` against the label map ``truth``, both (height, width)."""
    share = float(boundaries(labels).mean())
    recall, accuracy = boundary_recall(labels, truth), achievable_accuracy(labels, truth)
    return Segmentation(name, labels, len(np.unique(labels)), share, recall, accuracy)


def boundaries(labels: Labels) -> NDArray[np.bool_]:
    """Mark the pixels whose right or lower neighbour has another label, (height, width)."""
    result = np.zeros(labels.shape, dtype=bool)
    result[:-1] |= labels[:-1] != labels[1:]
    result[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return result


def boundary_recall(labels: Labels, truth: Labels, tolerance: int = TOLERANCE) -> float:
    """Return the fraction of boundary pixels of ``truth`` with a boundary pixel of ``labels`` within ``tolerance`` pixels.

    The distance is the larger one of rows and columns. The recall is 1 if ``truth`` has no boundary.
    """
    expected = boundaries(truth)
    if not expected.any():
        return 1.0
    found = torch.from_numpy(boundaries(labels)).float()[None]
    near = F.max_pool2d(found, 2 * tolerance + 1, stride=1, padding=tolerance)[0].numpy() > 0
    return float((near & expected).sum() / expected.sum())


def achievable_accuracy(labels: Labels, truth: Labels) -> float:
    """Return the achievable segmentation accuracy: pixel accuracy when each segment gets the majority class of its pixels."""
    segments = np.unique(labels, return_inverse=True)[1].ravel()
    kinds, classes = np.unique(truth, return_inverse=True)
    pairs, counts = np.unique(segments * len(kinds) + classes.ravel(), return_counts=True)
    best = np.zeros(segments.max() + 1, dtype=np.int64)
    np.maximum.at(best, pairs // len(kinds), counts)
    return float(best.sum() / truth.size)


def paint(image: NDArray[np.uint8], labels: Labels) -> NDArray[np.uint8]:
    """Return the image (height, width, 3) with each segment filled with its mean colour."""
    segments = np.unique(labels, return_inverse=True)[1].ravel()
    sizes = np.bincount(segments)
    means = [np.bincount(segments, image[..., channel].ravel()) / sizes for channel in range(3)]
    return np.rint(np.stack(means, -1)).astype(np.uint8)[segments].reshape(image.shape)


def regular_grid(size: tuple[int, int], grid: tuple[int, int]) -> Labels:
    """Segment (height, width) pixels into ``grid`` = (rows, columns) rectangles."""
    rows = np.arange(size[0]) * grid[0] // size[0]
    columns = np.arange(size[1]) * grid[1] // size[1]
    return rows[:, None] * grid[1] + columns


def slic(image: NDArray[np.uint8], num_segments: int) -> Labels:
    """Segment an image (height, width, 3) into about ``num_segments`` superpixels by scikit-image's SLIC, compactness 10.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        from skimage import segmentation
    except ImportError:
        raise UserError("SLIC needs scikit-image, which is not installed: pip install 'stvit[superpixels]'") from None
    labels: Labels = segmentation.slic(image, n_segments=num_segments, compactness=10, start_label=0)
    return labels


def read_labels(path: Path, size: tuple[int, int]) -> Labels:
    """Read the label map of an image: grey, palette or 16-bit values, or one colour per label.

    Args:
        path: PNG, TIFF, BMP, GIF or PPM.
        size: height and width of the image in pixels.

    Raises:
        UserError: the file is missing, is no image, has another size, or has too many distinct values for a label map.
    """
    try:
        with Image.open(path, formats=("PNG", "TIFF", "BMP", "GIF", "PPM")) as image:
            values = np.asarray(image if image.mode in ("1", "L", "P") or image.mode.startswith("I") else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        problem = "is not an image in a lossless format (PNG, TIFF, BMP, GIF, PPM)" if path.is_file() else "there is no such file"
        raise UserError(f"label map {path}: {problem}.") from None
    if values.ndim == 3:
        values = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    if values.shape != size:
        raise UserError(
            f"label map {path}: {values.shape[1]} x {values.shape[0]} pixels, but the image has {size[1]} x {size[0]}."
        )
    found = len(np.unique(values))
    if found > MAX_LABELS:
        raise UserError(f"label map {path}: {found} distinct values, expected at most {MAX_LABELS}. Is it a photograph?")
    return values.astype(np.int64)
