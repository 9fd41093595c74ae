"""What of the formats is read by the package supervision: one annotation at a time, into boxes.

Its loaders of entire data sets are not used: they draw every polygon as a mask of the image's size, decode every image (VOC),
pass over label files without an image and shapes that they do not know, and name a file at best. Here every line is read by it,
and who calls knows which. Boxes are (left, top, right, bottom) in pixels from 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any
from xml.etree.ElementTree import Element

from stvit_cli.errors import UserError

Box = list[float]

ROUNDED = 4
"""Decimals of a coordinate that are kept: supervision's floats have some seven digits."""


@cache
def _supervision() -> SimpleNamespace:
    """Import what is used of supervision: it takes more than a second, and warns of OpenCV, which is not needed."""
    with require_formats(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from supervision.dataset.formats.createml import createml_annotations_to_detections
        from supervision.dataset.formats.labelme import labelme_shapes_to_detections
        from supervision.dataset.formats.pascal_voc import detections_from_xml_obj, parse_polygon_points
        from supervision.dataset.formats.yolo import yolo_annotations_to_detections
    return SimpleNamespace(
        createml=createml_annotations_to_detections,
        labelme=labelme_shapes_to_detections,
        voc=detections_from_xml_obj,
        voc_polygon=parse_polygon_points,
        yolo=yolo_annotations_to_detections,
    )


class require_formats:  # noqa: N801  # a context manager
    """Where a package of the extra ``formats`` is not installed, say how to install it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError):
            raise UserError(
                f"YOLO, Pascal VOC, LabelMe, CVAT and CreateML are read by the package supervision, which cannot be imported: "
                f"{error}.\nGet it with: pip install 'stvit[formats]'"
            ) from None


def yolo_boxes(lines: Sequence[str], size: tuple[int, int]) -> list[tuple[int, Box]]:
    """Return class id and box of lines such as ``0 0.5 0.5 0.2 0.1`` or of polygons; raises ValueError for an unreadable one.

    Args:
        lines: of a label file.
        size: width and height of the image.
    """
    found = _supervision().yolo(list(lines), size, with_masks=False)
    return [] if not lines else list(zip(map(int, found.class_id), _boxes(found), strict=True))


def voc_box(element: Element) -> tuple[str, Box]:
    """Return name and box of an ``<object>``; raises ValueError where they cannot be read. Pixels count from 1, as in VOC."""
    alone = Element("object")  # without its polygons, which would be drawn
    alone.extend([child for child in element if child.tag in ("name", "bndbox")])
    root = Element("annotation")
    root.append(alone)
    found, names = _supervision().voc(root, [], (1, 1))
    return str(names[0]), _boxes(found)[0]


def voc_polygon(element: Element) -> list[float]:
    """Return a ``<polygon>`` as [x, y, x, y, ...] from 0; raises ValueError where it cannot be read."""
    try:
        return [round(float(number) - 1, ROUNDED) for number in _supervision().voc_polygon(element).ravel()]
    except IndexError:
        raise ValueError("the polygon has an odd number of coordinates") from None


def labelme_box(shapes: Sequence[Mapping[str, Any]]) -> Box:
    """Return the box around the shapes of one object; raises ValueError where they cannot be read."""
    grouped = [{**shape, "label": "object", "group_id": 0} for shape in shapes]
    return _boxes(_supervision().labelme(grouped, {"object": 0}, (1, 1), with_masks=False))[0]


def createml_box(annotation: Mapping[str, Any]) -> tuple[str, Box]:
    """Return label and box of an annotation; raises ValueError where they cannot be read."""
    label = annotation.get("label")
    if not isinstance(label, str):
        raise ValueError(f"label is {label!r}, expected text")
    return label, _boxes(_supervision().createml([dict(annotation)], {label: 0}))[0]


def _boxes(found: Any) -> list[Box]:
    return [[round(side, ROUNDED) for side in box] for box in found.xyxy.tolist()]
