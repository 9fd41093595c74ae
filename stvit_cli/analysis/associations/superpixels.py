"""An image cut into segments: how well the cut follows a label map, and what other cuts of as many segments do.

A cut and a label map are integers (height, width); neither needs to be counted without gaps, nor to be connected.
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
TOLERANCE = 2  # pixels, as is usual for boundary recall
MOST_LABELS = 4096  # more different values than that are a photograph, or a label map saved as JPEG


@dataclass(frozen=True)
class Cut:
    """A cut of the image and how it does.

    Attributes:
        name: the layer, ``regular grid`` or ``SLIC``.
        labels: (height, width).
        num_segments: different values in ``labels``.
        boundary_share: boundary pixels by all; a ragged cut has more, and so an easier recall.
        boundary_recall, accuracy: see the functions; 0 to 1, more is better.
    """

    name: str
    labels: Labels
    num_segments: int
    boundary_share: float
    boundary_recall: float
    accuracy: float


def measure(name: str, labels: Labels, truth: Labels) -> Cut:
    """Compare a cut with the label map ``truth``."""
    share = float(boundaries(labels).mean())
    return Cut(name, labels, len(np.unique(labels)), share, boundary_recall(labels, truth), achievable_accuracy(labels, truth))


def boundaries(labels: Labels) -> NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbour has another label, (height, width)."""
    result = np.zeros(labels.shape, dtype=bool)
    result[:-1] |= labels[:-1] != labels[1:]
    result[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return result


def boundary_recall(labels: Labels, truth: Labels, tolerance: int = TOLERANCE) -> float:
    """Return the share of the boundary pixels of ``truth`` with one of ``labels`` at most ``tolerance`` rows and columns away.

    It is 1 where ``truth`` has no boundary.
    """
    wanted = boundaries(truth)
    if not wanted.any():
        return 1.0
    found = torch.from_numpy(boundaries(labels)).float()[None]
    near = F.max_pool2d(found, 2 * tolerance + 1, stride=1, padding=tolerance)[0].numpy() > 0
    return float((near & wanted).sum() / wanted.sum())


def achievable_accuracy(labels: Labels, truth: Labels) -> float:
    """Return the share of pixels that are right where every segment takes the one label that suits it best."""
    segments = np.unique(labels, return_inverse=True)[1].ravel()
    kinds, classes = np.unique(truth, return_inverse=True)
    pairs, counts = np.unique(segments * len(kinds) + classes.ravel(), return_counts=True)
    best = np.zeros(segments.max() + 1, dtype=np.int64)
    np.maximum.at(best, pairs // len(kinds), counts)
    return float(best.sum() / truth.size)


def paint(image: NDArray[np.uint8], labels: Labels) -> NDArray[np.uint8]:
    """Return the image (height, width, 3) with every segment in its mean colour."""
    segments = np.unique(labels, return_inverse=True)[1].ravel()
    sizes = np.bincount(segments)
    means = [np.bincount(segments, image[..., channel].ravel()) / sizes for channel in range(3)]
    return np.rint(np.stack(means, -1)).astype(np.uint8)[segments].reshape(image.shape)


def regular_grid(size: tuple[int, int], grid: tuple[int, int]) -> Labels:
    """Return the cut of (height, width) into ``grid`` = (rows, columns) rectangles."""
    rows = np.arange(size[0]) * grid[0] // size[0]
    columns = np.arange(size[1]) * grid[1] // size[1]
    return rows[:, None] * grid[1] + columns


def slic(image: NDArray[np.uint8], num_segments: int) -> Labels:
    """Return the cut by SLIC (scikit-image's, compactness 10) into about ``num_segments`` segments.

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
    """Read a label map for an image of ``size`` (height, width): grey, palette or 16-bit values, or a colour for each label.

    Raises:
        UserError: missing, no image, of another size, or with too many different values to be a label map.
    """
    try:
        with Image.open(path, formats=("PNG", "TIFF", "BMP", "GIF", "PPM")) as image:
            values = np.asarray(image if image.mode in ("1", "L", "P") or image.mode.startswith("I") else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        problem = (
            "is not an image that keeps its values (PNG, TIFF, BMP, GIF, PPM)" if path.is_file() else "there is no such file"
        )
        raise UserError(f"--labels {path}: {problem}.") from None
    if values.ndim == 3:
        values = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    if values.shape != size:
        raise UserError(f"--labels {path}: {values.shape[1]} x {values.shape[0]} pixels, the image has {size[1]} x {size[0]}.")
    found = len(np.unique(values))
    if found > MOST_LABELS:
        raise UserError(f"--labels {path}: {found} different values; a label map has at most {MOST_LABELS}. Is it a photograph?")
    return values.astype(np.int64)
