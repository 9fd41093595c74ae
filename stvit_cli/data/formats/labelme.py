"""LabelMe: a JSON file for each image, with rectangles, polygons and circles in pixels."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL, BoxData, Found, assemble
from stvit_cli.data.formats.files import ImageFinder, read_text, split_of_path
from stvit_cli.data.formats.parsers import labelme_box
from stvit_cli.data.formats.voc import add_unannotated
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

CIRCLE_POINTS = 36
"""Corners of the polygon that stands for a circle."""

_SHAPES = ("rectangle", "polygon", "circle", "mask")


def read_labelme(root: Path, class_names: Sequence[str] | None = None, *, stored_orientation: bool = False) -> BoxData:
    """Read a LabelMe data set: JSON files beside their images, or in folders of the splits.

    Classes are sorted by name. Shapes of one label and group id are one object; a mask counts by its box. Points and lines are
    left out and counted.

    Args:
        root: folder of the data set.
        class_names: the classes in order; None: those that occur.
        stored_orientation: sizes that no JSON file gives are those of the images as stored.

    Raises:
        UserError: a file is damaged.
    """
    finder = ImageFinder(root)
    splits: dict[str, Found] = {}
    used = set()
    for path in sorted(list_files(root, endings=(".json",)).paths):
        content = read_json(root / path)
        split = split_of_path(path)
        if not is_labelme(content):
            splits.setdefault(split, Found(root)).remarks.append(f"{path} is not of LabelMe, and is left out")
            continue
        name = PureWindowsPath(str(content.get("imagePath") or "")).as_posix()
        image = (finder.by_name(name, path, split) if name else None) or finder.by_stem(path, split)
        split = split_of_path(image) if image is not None and split == ALL else split
        found = splits.setdefault(split, Found(root if split == ALL else root / split))
        if image is None:
            found.fault(str(root / path), "on an image that is missing", f"there is no image {printable(name or path)}")
            continue
        used.add(image)
        _read_shapes(content, root / path, found, found.image(root / image, _size(content)))
    add_unannotated(root, finder, used, splits)
    names_from = "data.class_names_file" if class_names else ""
    return assemble("labelme", root, splits, class_names, names_from=names_from, stored_orientation=stored_orientation)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises UserError where it is damaged."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(str(path))}: not a JSON file, or a damaged one: {error}.") from None


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is LabelMe's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _read_shapes(content: Mapping[str, Any], path: Path, found: Found, image: int) -> None:
    objects: dict[Any, list[tuple[int, Mapping[str, Any]]]] = {}
    left_out: Counter[str] = Counter()
    for number, shape in enumerate(content["shapes"], start=1):
        kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else "?"
        if kind not in _SHAPES:
            left_out[printable(str(kind))[:40]] += 1
            continue
        group = shape.get("group_id")
        key = number if group is None else (str(shape.get("label")), str(group))
        objects.setdefault(key, []).append((number, shape))
    for shapes in objects.values():
        origin = f"{path}, shape {shapes[0][0]}"
        try:
            outlines = [_outline(shape) for _, shape in shapes]
            box = labelme_box(outlines)
        except (ValueError, TypeError) as error:
            found.fault(origin, "that cannot be read", printable(str(error))[:200].rstrip("."))
            continue
        polygons = [[float(side) for point in shape["points"] for side in point] for shape in outlines]
        is_polygon = all(shape["shape_type"] == "polygon" for shape in outlines)
        found.add(image, str(shapes[0][1]["label"]), box, origin, **({"polygons": polygons} if is_polygon else {}))
    for kind, count in left_out.items():
        found.fault(f"{path}", f"of shape {kind}", f"{count} of shape {kind}, expected {', '.join(_SHAPES)}")


def _outline(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return a shape as a rectangle or a polygon, which supervision reads. Raises ValueError where it is none."""
    label, points, kind = shape.get("label"), shape.get("points"), shape.get("shape_type", "polygon")
    if not isinstance(label, str):
        raise ValueError(f"label is {label!r}, expected text")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError(f"points of {label!r} are no list of [x, y]")
    if kind == "circle":
        if len(points) != 2:
            raise ValueError(f"the circle {label!r} has {len(points)} points, expected its center and one on it")
        (x, y), edge = points
        radius, angles = math.dist((x, y), edge), [2 * math.pi * i / CIRCLE_POINTS for i in range(CIRCLE_POINTS)]
        points, kind = [[x + radius * math.cos(angle), y + radius * math.sin(angle)] for angle in angles], "polygon"
    return {"label": label, "points": points, "shape_type": "rectangle" if kind == "mask" else kind}


def _size(content: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    return (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None
