"""CVAT's own XML, "CVAT for images 1.1": all images of a task in one file, with boxes, polygons, ellipses and masks in pixels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL, BoxData, Found, assemble
from stvit_cli.data.formats.files import ImageFinder, split_of, split_of_path
from stvit_cli.data.formats.voc import add_unannotated, xml_root
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

ELLIPSE_POINTS = 36
"""Corners of the polygon that stands for an ellipse."""

_SHAPES = ("box", "polygon", "ellipse", "mask")


def read_cvat(root: Path, class_names: Sequence[str] | None = None, *, stored_orientation: bool = False) -> BoxData:
    """Read CVAT's XML files with the images below the same folder. Classes are in the order of the task's labels.

    Points, polylines, skeletons and tags are left out and counted.

    Args:
        root: folder of the data set.
        class_names: the classes in order; None: the labels of the files.
        stored_orientation: not used, as the files have the sizes.

    Raises:
        UserError: a file is damaged, or of a video.
    """
    finder = ImageFinder(root)
    splits: dict[str, Found] = {}
    used: set[str] = set()
    labels: dict[str, None] = {}
    for path in sorted(list_files(root, endings=(".xml",)).paths):
        content = xml_root(root / path)
        if not is_cvat(content):
            continue
        if content.find("track") is not None:
            raise UserError(
                f"{root / path}: of a video. Export the task as 'CVAT for images 1.1' with its images, or in COCO's format."
            )
        labels |= dict.fromkeys(name.text or "" for name in content.iterfind("meta//labels/label/name"))
        for element in content.findall("image"):
            _read_image(element, root / path, path, finder, used, splits)
    add_unannotated(root, finder, used, splits)
    names = class_names or list(labels) or None
    names_from = "data.class_names_file" if class_names else "the labels of the task"
    return assemble("cvat", root, splits, names, names_from=names_from, stored_orientation=stored_orientation)


def is_cvat(content: Element) -> bool:
    """Return whether the root of an XML file is CVAT's."""
    return content.tag == "annotations"


def _read_image(element: Element, file: Path, path: str, finder: ImageFinder, used: set[str], splits: dict[str, Found]) -> None:
    name = element.get("name", "")
    split = split_of(element.get("subset", "")) or split_of_path(path)
    image = finder.by_name(name, path, split) or finder.by_name(f"images/{name}", path, split)
    split = split_of_path(image) if image is not None and split == ALL else split
    found = splits.setdefault(split, Found(file))
    origin = f"{file}, image {printable(name)}"
    if image is None:
        found.fault(origin, "on an image that is missing", "there is no such image")
        return
    if image in used:
        found.fault(origin, "of an image that has another entry", "it is annotated twice")
        return
    used.add(image)
    try:
        size = (int(element.get("width", "0")), int(element.get("height", "0")))
    except ValueError:
        size = (0, 0)
    position = found.image(finder.root / image, size if min(size) > 0 else None)
    left_out: Counter[str] = Counter()
    for number, shape in enumerate(element, start=1):
        if shape.tag not in _SHAPES:
            left_out[shape.tag] += 1
            continue
        try:
            box, more = _shape(shape, size)
        except (ValueError, OverflowError) as error:
            found.fault(f"{origin}, {shape.tag} {number}", "that cannot be read", printable(str(error)).rstrip("."))
            continue
        found.add(position, shape.get("label", ""), box, f"{origin}, {shape.tag} {number}", **more)
    for kind, count in left_out.items():
        found.fault(origin, f"of shape {kind}", f"{count} of shape {kind}, expected {', '.join(_SHAPES)}")


def _shape(shape: Element, size: tuple[int, int]) -> tuple[list[float], dict[str, Any]]:
    """Return the box of a shape and its polygon or mask. Raises ValueError where it cannot be read."""
    if shape.tag == "mask":
        return _mask(shape, size)
    if shape.tag == "polygon":
        points = [[float(side) for side in point.split(",")] for point in shape.get("points", "").split(";") if point]
        if len(points) < 3 or any(len(point) != 2 for point in points):
            raise ValueError(f"points is {shape.get('points', '')[:60]!r}, expected x,y;x,y;x,y")
    elif shape.tag == "ellipse":
        x, y, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
        angles = [2 * math.pi * i / ELLIPSE_POINTS for i in range(ELLIPSE_POINTS)]
        points = _rotated([[x + rx * math.cos(angle), y + ry * math.sin(angle)] for angle in angles], shape, (x, y))
    else:
        left, top, right, bottom = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
        if not float(shape.get("rotation", "0")):
            return [left, top, right, bottom], {}
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        points = _rotated(corners, shape, ((left + right) / 2, (top + bottom) / 2))
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)], {"polygons": [[round(side, 2) for point in points for side in point]]}


def _numbers(shape: Element, *names: str) -> list[float]:
    found = []
    for name in names:
        try:
            found.append(float(shape.get(name, "")))
        except ValueError:
            raise ValueError(f"{name} is {shape.get(name)!r}, expected a number") from None
    return found


def _rotated(points: list[list[float]], shape: Element, center: tuple[float, float]) -> list[list[float]]:
    """Return points turned clockwise by the shape's rotation, in degrees, about a center."""
    angle = math.radians(float(shape.get("rotation", "0")))
    (x0, y0), sine, cosine = center, math.sin(angle), math.cos(angle)
    return [[x0 + (x - x0) * cosine - (y - y0) * sine, y0 + (x - x0) * sine + (y - y0) * cosine] for x, y in points]


def _mask(shape: Element, size: tuple[int, int]) -> tuple[list[float], dict[str, Any]]:
    """Return the box and COCO's run lengths, by columns of the image, of runs by rows of the box."""
    left, top, width, height = (int(number) for number in _numbers(shape, "left", "top", "width", "height"))
    runs = np.array([int(run) for run in shape.get("rle", "").split(",") if run.strip()], dtype=np.int64)
    image_width, image_height = size
    inside = left >= 0 and top >= 0 and width > 0 and height > 0 and left + width <= image_width and top + height <= image_height
    if not inside or (runs < 0).any() or runs.sum() != width * height or image_width * image_height > 2**28:
        raise ValueError(f"its runs come to {runs.sum()} pixels, expected the {width * height} of a box within the image")
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(height, width)
    mask = np.zeros((image_height, image_width), dtype=np.uint8)
    mask[top : top + height, left : left + width] = pixels
    columns = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(columns, prepend=columns[:1])).tolist()
    counts = np.diff([0, *ends, len(columns)]).tolist()
    code = {"size": [image_height, image_width], "counts": [0, *counts] if columns[0] else counts}
    return [left, top, left + width, top + height], {"mask": code}
