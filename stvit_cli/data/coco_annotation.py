"""One annotation of a COCO file, checked and brought into one form, from which training and evaluation are both made.

pycocotools looks at nothing: it fills a mask with whatever memory held where runs are missing, and ends the process where a
polygon has a coordinate that is NaN or far from the image. So nothing reaches it that has not been through here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stvit_cli.data.coco_file import shown, whole_number

MIN_SIDE = 1.0
"""Boxes that are narrower or lower than this within the image, in pixels, are no objects to train on."""

MAX_OUTLINE = 2_000_000
"""Length of a polygon's outline, in pixels: to fill it pycocotools takes some 100 bytes for each of them."""

_NUMBERS = frozenset((int, float))
_MAX_RUN_CHARACTERS = 7  # of 5 bits each: more than 2**32 pixels


class InvalidAnnotationError(Exception):
    """An annotation that contradicts itself, its image or the format.

    Attributes:
        reason: the kind of fault, for a count: ``N`` annotations "without a usable mask".
        joint: what stands between the annotation's name and the message.
    """

    joint = ": "

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnknownReferenceError(InvalidAnnotationError):
    """An annotation of an image or a category that is not in the file."""

    joint = " "


class UnusableBoxError(InvalidAnnotationError):
    """A box that is no box. Such annotations count for nothing, in training and in evaluation, but do not end the reading."""


def normalized(annotation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return ``box`` (left, top, width, height, as in the file), and where given ``segmentation``, ``area`` and ``crowd`` (1).

    A segmentation that is missing, null or empty is none: such an object has a box alone.

    Args:
        annotation: an entry of the file's list.
        height: of its image, as ``width`` is.
        width: of its image, in pixels.

    Raises:
        InvalidAnnotationError: it cannot be used.
    """
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4):
        raise InvalidAnnotationError(
            "with a malformed bbox", f"bbox is {shown(box)}, expected [left, top, width, height] in pixels."
        )
    for position, side in enumerate(box):
        if type(side) not in _NUMBERS:
            text = f"bbox[{position}] is {shown(side)}, expected a number of pixels: [left, top, width, height]."
            raise InvalidAnnotationError("with a malformed bbox", text)
    found: dict[str, Any] = {"box": box}
    if not _is_absent(segmentation := annotation.get("segmentation")):
        found["segmentation"] = _segmentation(segmentation, height, width)
    crowd, area = annotation.get("iscrowd"), annotation.get("area")
    if crowd is not None and crowd != 0:
        found["crowd"] = _crowd(crowd)
    if area is not None:
        if type(area) not in _NUMBERS or not 0 <= area <= 1e15:
            text = f"area is {shown(area)}, expected a number of pixels; without one that of the mask or box is taken."
            raise InvalidAnnotationError("with a malformed area", text)
        found["area"] = area
    _require_box(box, height, width, is_crowd="crowd" in found)
    return found


def box_within(box: Sequence[float], height: int, width: int) -> list[float] | None:
    """Return the part of (left, top, width, height) within the image as (left, top, right, bottom), None of less than a pixel."""
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
        return None
    return [left, top, right, bottom]


def _crowd(crowd: Any) -> int:
    if type(crowd) not in (int, float, bool) or crowd != 1:
        raise InvalidAnnotationError("with a malformed iscrowd", f"iscrowd is {shown(crowd)}, expected the number 0 or 1.")
    return 1


def _require_box(box: Sequence[float], height: int, width: int, *, is_crowd: bool) -> None:
    left, top, across, down = box
    if not all(abs(side) < 1e15 for side in box):  # of NaN every comparison is false
        raise UnusableBoxError("with NaN or Infinity in the box", f"bbox is {shown(box)}, expected finite numbers.")
    if across < 0 or down < 0:
        raise UnusableBoxError("with a box of negative size", f"bbox is {shown(box)}, expected width and height of 0 or more.")
    has_area = across > 0 and down > 0
    if has_area and not is_crowd and (left >= width or top >= height or left + across <= 0 or top + down <= 0):
        size = f"which is {width} wide and {height} high"
        raise InvalidAnnotationError("outside of the image", f"the box {box} is outside of its image, {size}.")


def _is_absent(segmentation: Any) -> bool:
    """Whether an annotation has a box alone: tools write null, [], [[]] or nothing at all."""
    return segmentation in (None, {}) or (isinstance(segmentation, list) and all(part == [] for part in segmentation))


def _segmentation(segmentation: Any, height: int, width: int) -> Any:
    """Return a mask that pycocotools can be given."""
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, height, width)
    if not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)):
        raise InvalidAnnotationError(
            "without a usable mask",
            f"segmentation is {shown(segmentation)}, expected polygons [[x, y, x, y, x, y, ...], ...] "
            "or a run-length code {size, counts}.",
        )
    if (
        min(min(part[0::2]) for part in segmentation) >= width
        or min(min(part[1::2]) for part in segmentation) >= height
        or max(max(part[0::2]) for part in segmentation) <= 0
        or max(max(part[1::2]) for part in segmentation) <= 0
    ):
        size = f"which is {width} wide and {height} high"
        raise InvalidAnnotationError("outside of the image", f"its mask is outside of its image, {size}.")
    for part in segmentation:
        _require_near(part, height, width)
    return segmentation


def _is_polygon(part: Any) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and _NUMBERS.issuperset(map(type, part))


def _require_near(polygon: list[float], height: int, width: int) -> None:
    """Raise where a coordinate is not finite or further from the image than its longer side, or the outline is too long."""
    reach = max(height, width)
    xs, ys = polygon[0::2], polygon[1::2]
    near = min(polygon) >= -reach and max(xs) <= width + reach and max(ys) <= height + reach
    if not near or not math.isfinite(sum(polygon)):  # min and max pass over NaN, a sum does not
        far = next(
            (x for i, x in enumerate(polygon) if not -reach <= x <= (height if i % 2 else width) + reach), "not a finite number"
        )
        raise InvalidAnnotationError(
            "without a usable mask",
            f"its polygon has the coordinate {str(far)[:40]}, expected finite ones within or near its image, which is {width} "
            f"wide and {height} high.",
        )
    if len(xs) * max(max(xs) - min(xs), max(ys) - min(ys)) > MAX_OUTLINE:
        length = sum(
            max(abs(xs[i] - xs[i - 1]), abs(ys[i] - ys[i - 1]))  # from the last point to the first too
            for i in range(len(xs))
        )
        if length > MAX_OUTLINE:
            raise InvalidAnnotationError(
                "without a usable mask",
                f"its polygon of {len(xs)} points is {length:.0f} pixels long, expected at most {MAX_OUTLINE}.",
            )


def _run_lengths(segmentation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return a run-length code whose runs fill the image."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width] or not isinstance(counts, (str, list)):
        raise InvalidAnnotationError(
            "without a usable mask",
            f"its mask has size {size if isinstance(size, list) and len(size) < 9 else shown(size)}, expected the image's "
            f"{[height, width]}, and counts.",
        )
    runs = _decoded(counts) if isinstance(counts, str) else [_count(run) for run in counts] or [-1]
    if sum(runs) != height * width or min(runs) < 0:
        raise InvalidAnnotationError(
            "without a usable mask", f"the runs of its mask come to {sum(runs)} pixels, expected {height * width}."
        )
    return {"size": [height, width], "counts": counts if isinstance(counts, str) else runs}


def _count(run: Any) -> int:
    number = whole_number(run)
    return -1 if number is None else number


def _decoded(counts: str) -> list[int]:
    """Return the runs of a code in text: characters of 5 bits, each run as a difference from the last but one; [-1] of none."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= 5 * _MAX_RUN_CHARACTERS:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value |= -1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if runs and not shift else [-1]
