"""Superpixel metrics: how well a segmentation follows a label map, and two baselines (regular grid, SLIC) to compare with.

The metrics are those of Neubert and Protzel, Superpixel Benchmark and Comparison, 2012, and Liu et al., Entropy Rate Superpixel
Segmentation, CVPR 2011 (achievable accuracy). Segmentations and label maps are integer arrays (height, width). Their labels need
not be consecutive, nor segments connected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        undersegmentation_error: see `undersegmentation_error`; lower is better.
    """

    name: str
    labels: Labels
    num_segments: int
    boundary_share: float
    boundary_recall: float
    accuracy: float
    undersegmentation_error: float


def measure(name: str, labels: Labels, truth: Labels) -> Segmentation:
    """Compute the metrics of the segmentation ``labels`` against the label map ``truth``, both (height, width)."""
    counts = overlaps(labels, truth)
    return Segmentation(
        name,
        labels,
        num_segments=len(counts),
        boundary_share=float(boundaries(labels).mean()),
        boundary_recall=boundary_recall(labels, truth),
        accuracy=_accuracy(counts),
        undersegmentation_error=_undersegmentation_error(counts),
    )


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


def overlaps(labels: Labels, truth: Labels) -> NDArray[np.int64]:
    """Return the number of pixels that each segment shares with each class, (segments, classes), in the order of their labels."""
    segments, segment_of = np.unique(labels, return_inverse=True)
    classes, class_of = np.unique(truth, return_inverse=True)
    pairs = segment_of.ravel() * len(classes) + class_of.ravel()
    return np.bincount(pairs, minlength=len(segments) * len(classes)).reshape(len(segments), len(classes))


def achievable_accuracy(labels: Labels, truth: Labels) -> float:
    """Return the achievable segmentation accuracy: pixel accuracy when each segment gets the majority class of its pixels."""
    return _accuracy(overlaps(labels, truth))


def _accuracy(counts: NDArray[np.int64]) -> float:
    return float(counts.max(1).sum() / counts.sum())


def undersegmentation_error(labels: Labels, truth: Labels) -> float:
    """Return the undersegmentation error: how far segments reach over the borders of the classes, as a fraction of the pixels.

    Neubert and Protzel's definition: each class adds, for each segment that it meets, the smaller one of the segment's parts
    inside and outside of it. It is 0 where every segment lies in one class. A segment of two classes counts for both, so that the
    error is about twice ``1 - achievable_accuracy``, and more where a segment has more classes.

    Example:
        >>> truth = np.array([[0, 0, 0, 1]])
        >>> undersegmentation_error(np.array([[0, 0, 5, 5]]), truth), undersegmentation_error(np.array([[0, 0, 1, 2]]), truth)
        (0.5, 0.0)
    """
    return _undersegmentation_error(overlaps(labels, truth))


def _undersegmentation_error(counts: NDArray[np.int64]) -> float:
    sizes = counts.sum(1, keepdims=True)
    return float(np.minimum(counts, sizes - counts).sum() / sizes.sum())


def num_components(labels: Labels) -> int:
    """Return the number of parts, connected by edges, of all segments together: the number of segments, if all are connected.

    Raises:
        UserError: scikit-image is not installed.
    """
    with _scikit_image("Counting connected parts"):
        from skimage.measure import label
    return int(label(labels, background=-1, connectivity=1).max())  # type: ignore[no-untyped-call]


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


def nearest_grid(num_segments: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the regular grid whose number of rectangles is nearest to ``num_segments``.

    Only grids of rectangles of at most 3 to 2 are considered; of equally near ones that with the squarest.

    Args:
        num_segments: wanted number of rectangles.
        size: height and width in pixels.

    Example:
        >>> nearest_grid(80, (128, 160)), nearest_grid(77, (128, 160))
        ((8, 10), (7, 11))
    """
    height, width = size
    found = []
    for rows in range(1, min(num_segments, height) + 1):
        for columns in {max(1, num_segments // rows), -(-num_segments // rows)}:
            stretched = max(height * columns / (width * rows), width * rows / (height * columns))
            found.append((stretched > 1.5, abs(rows * columns - num_segments), stretched, (rows, columns)))
    return min(found)[-1]


def slic(image: NDArray[np.uint8], num_segments: int, compactness: float = 10) -> Labels:
    """Segment an image into about ``num_segments`` superpixels by scikit-image's SLIC.

    Args:
        image: (height, width, 3).
        num_segments: what SLIC is told.
        compactness: weight of the distance in the image against that in color; 10 is scikit-image's default.

    Raises:
        UserError: scikit-image is not installed.
    """
    with _scikit_image("SLIC"):
        from skimage import segmentation
    labels: Labels = segmentation.slic(image, n_segments=num_segments, compactness=compactness, start_label=0)
    return labels


class SlicSearch:
    """SLIC segmentations of one image with a wanted number of segments.

    SLIC gives more or fewer segments than it is told, so it is told another number until the result fits. All results are kept:
    the next search starts from them.

    Args:
        image: (height, width, 3).
        compactness: see `slic`.
        tries: the largest number of runs of SLIC in one search.
    """

    def __init__(self, image: NDArray[np.uint8], compactness: float = 10, tries: int = 5) -> None:
        self.image, self.compactness, self.tries = image, compactness, tries
        self._found: dict[int, tuple[int, Labels]] = {}  # by the number that SLIC was told: that of the result, and its labels

    def nearest(self, num_segments: int) -> Labels:
        """Return a segmentation with ``num_segments`` segments, or 2 % or one more or fewer; the nearest found, if there is none.

        Raises:
            UserError: scikit-image is not installed.
        """
        for _ in range(self.tries):
            told = self._next(num_segments)
            if told in self._found:
                break
            labels = slic(self.image, told, self.compactness)
            self._found[told] = len(np.unique(labels)), labels
        return self._found[self._nearest_told(num_segments)][1]

    def _nearest_told(self, num_segments: int) -> int:
        return min(self._found, key=lambda told: (abs(self._found[told][0] - num_segments), told))

    def _next(self, num_segments: int) -> int:
        """Return what SLIC is told next: one of the numbers before, if its result fits or nothing nearer is left to try."""
        if not self._found:
            return num_segments
        told = self._nearest_told(num_segments)
        missing = num_segments - self._found[told][0]
        if abs(missing) <= max(1, round(0.02 * num_segments)):
            return told
        step = 1 if missing > 0 else -1
        by_proportion = min(round(told * num_segments / self._found[told][0]), 4 * num_segments)
        following = by_proportion if by_proportion not in self._found else told + step
        while following in self._found:
            following += step
        return following if following > 0 else told


@contextmanager
def _scikit_image(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise UserError(f"{what} needs scikit-image, which is not installed: pip install 'stvit[superpixels]'") from None


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
