"""COCO's annotation file, read once, checked, and kept in little memory: what is in each picture, with our own labels.

COCO's category ids have gaps. Our labels are 1.. in the order of the ids; 0 stays free for the background.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean

MIN_SIDE = 1.0
"""Boxes that are narrower or lower than this within the picture, in pixels, are no objects."""

NUM_NAMED = 3
"""Of what is wrong many times over, so many are named."""


@dataclass(frozen=True)
class Category:
    """One kind of object: its id in the file, and its name."""

    id: int
    name: str


@dataclass(frozen=True)
class CocoIndex:
    """The pictures of one annotation file, in its order.

    Objects are kept as JSON in one block of bytes: a Python object for each of a million annotations would be copied into every
    loader process, bit by bit, as its reference is counted.
    """

    path: Path
    folder: Path
    categories: tuple[Category, ...]
    file_names: tuple[str, ...]
    image_ids: tuple[Any, ...]
    sizes: NDArray[np.int64]
    """(N, 2): height and width."""
    num_objects: NDArray[np.int64]
    """(N,): those that can be trained on."""
    _objects: NDArray[np.uint8]
    _ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file_names)

    def objects(self, index: int) -> list[dict[str, Any]]:
        """Return what can be trained on in a picture: ``box`` (left, top, right, bottom), ``label``, ``segmentation``, ``id``."""
        start = int(self._ends[index - 1]) if index else 0
        objects: list[dict[str, Any]] = json.loads(self._objects[start : int(self._ends[index])].tobytes())
        return objects


def read_coco(path: Path, folder: Path) -> CocoIndex:
    """Read an annotation file and look whether its pictures are in the folder.

    Crowds and boxes without area are left out, and boxes are cut off at the picture's edge.

    Raises:
        UserError: a file or folder is not there, the file is no annotation file or contradicts itself, or a picture is missing.
    """
    content = read_json(path)
    images, annotations = content["images"], content["annotations"]
    categories = _categories(path, content["categories"])
    labels = {category.id: number for number, category in enumerate(categories, start=1)}
    places = _places(path, images)
    _require_pictures(path, folder, [image["file_name"] for image in images])
    by_image: list[list[dict[str, Any]]] = [[] for _ in images]
    for annotation in annotations:
        place = _get(places, annotation.get("image_id"))
        if place is None:
            raise UserError(
                f"{path}: annotation {annotation.get('id')} is of picture {annotation.get('image_id')}, which is not in the file."
            )
        label = _get(labels, annotation.get("category_id"))
        if label is None:
            known = ", ".join(str(category.id) for category in categories[:20])
            raise UserError(
                f"{path}: annotation {annotation.get('id')} is of category {annotation.get('category_id')}, "
                f"which is not in the file.\nCategories: {known}{', ...' if len(categories) > 20 else ''}"
            )
        found = _object(path, annotation, images[place]["height"], images[place]["width"])
        if found is not None:
            by_image[place].append(found | {"label": label})
    packed = [json.dumps(objects, separators=(",", ":")).encode() for objects in by_image]
    return CocoIndex(
        path=path,
        folder=folder,
        categories=categories,
        file_names=tuple(image["file_name"] for image in images),
        image_ids=tuple(image["id"] for image in images),
        sizes=np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2),
        num_objects=np.array([len(objects) for objects in by_image], dtype=np.int64),
        _objects=np.frombuffer(b"".join(packed), dtype=np.uint8),
        _ends=np.cumsum([len(part) for part in packed], dtype=np.int64),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file, a mapping with lists of mappings ``images``, ``annotations``, ``categories``.

    Raises:
        UserError: it is not there, or something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: there is no such annotation file.{did_you_mean(path.name, siblings)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file, or a damaged one: {error}.") from None
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(
                f"{path}: no list of objects '{key}' in it; expected COCO's layout with images, annotations and categories."
            )
    return dict(content)


def _get(known: Mapping[Any, int], key: Any) -> int | None:
    """Return the value of a key that may be anything JSON can hold."""
    return known.get(key) if type(key) in (int, str) else None


def _categories(path: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    for entry in entries:
        if type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise UserError(f"{path}: a category is {entry}; expected an id (a whole number) and a name.")
    if not entries:
        raise UserError(f"{path}: the list of categories is empty.")
    for key in ("id", "name"):
        (value, count), *_ = Counter(entry[key] for entry in entries).most_common(1)
        if count > 1:
            raise UserError(f"{path}: {count} categories have the {key} {value!r}; each needs its own.")
    return tuple(Category(entry["id"], entry["name"]) for entry in sorted(entries, key=lambda entry: int(entry["id"])))


def _places(path: Path, images: Sequence[Mapping[str, Any]]) -> dict[Any, int]:
    """Return the place of every picture by its id."""
    places: dict[Any, int] = {}
    for place, image in enumerate(images):
        sides = (image.get("height"), image.get("width"))
        if not isinstance(image.get("file_name"), str) or not all(type(side) is int and side > 0 for side in sides):
            raise UserError(f"{path}: picture {image.get('id')} needs a file_name, and a height and a width in pixels.")
        if not isinstance(image.get("id"), (int, str)) or image["id"] in places:
            raise UserError(f"{path}: the picture {image['file_name']} has the id {image.get('id')}; each needs one of its own.")
        places[image["id"]] = place
    if not places:
        raise UserError(f"{path}: the list of pictures is empty.")
    return places


def _require_pictures(path: Path, folder: Path, file_names: Sequence[str]) -> None:
    """Raise where a picture is not there. One listing of the folder, not a question for each of a hundred thousand files."""
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}. Expected the folder of the pictures of {path}.") from None
    missing = [name for name in file_names if not (name in present if "/" not in name else (folder / name).is_file())]
    if missing:
        named = ", ".join(missing[:NUM_NAMED]) + (", ..." if len(missing) > NUM_NAMED else "")
        raise UserError(f"{path}: {len(missing)} of its {len(file_names)} pictures are not in {folder}: {named}.")


def _object(path: Path, annotation: Mapping[str, Any], height: int, width: int) -> dict[str, Any] | None:
    """Return what can be trained on, None for a crowd or a box without area; raise where it does not fit its picture."""
    where = f"{path}: annotation {annotation.get('id')}"
    box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    if not (isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)):
        raise UserError(f"{where}: bbox is {box}, expected [left, top, width, height] in pixels.")
    _check_segmentation(where, segmentation, height, width)
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    if annotation.get("iscrowd", 0) or not (right - left > 0 and bottom - top > 0):  # not: of NaN every comparison is false
        return None
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise UserError(f"{where}: the box {box} is outside of its picture, which is {width} wide and {height} high.")
    clipped = [max(left, 0), max(top, 0), min(right, width), min(bottom, height)]
    if clipped[2] - clipped[0] < MIN_SIDE or clipped[3] - clipped[1] < MIN_SIDE:
        return None
    return {"box": clipped, "segmentation": segmentation, "id": annotation.get("id")}


def _check_segmentation(where: str, segmentation: Any, height: int, width: int) -> None:
    """Raise where a mask is neither polygons nor a run-length code, or lies outside of its picture."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width] or not isinstance(segmentation.get("counts"), (str, list)):
            raise UserError(
                f"{where}: its mask has size {segmentation.get('size')}, expected the picture's {[height, width]}, and counts."
            )
        # pycocotools does not look: where runs are missing, a mask would be filled with whatever the memory held.
        runs = _runs(segmentation["counts"])
        if sum(runs) != height * width or min(runs) < 0:
            raise UserError(f"{where}: the runs of its mask come to {sum(runs)} pixels, expected {height * width}.")
        return
    if not isinstance(segmentation, list) or not segmentation or not all(_is_polygon(part) for part in segmentation):
        raise UserError(
            f"{where}: segmentation is {str(segmentation)[:60]}, expected polygons [[x, y, x, y, x, y, ...], ...] "
            "or a run-length code {size, counts}."
        )
    xs = [x for part in segmentation for x in part[0::2]]
    ys = [y for part in segmentation for y in part[1::2]]
    if min(xs) >= width or min(ys) >= height or max(xs) <= 0 or max(ys) <= 0:
        raise UserError(f"{where}: its mask is outside of its picture, which is {width} wide and {height} high.")


def _runs(counts: str | list[Any]) -> list[int]:
    """Return the lengths of the runs of a mask; in text each is written in characters of 5 bits, as a difference from the last
    but one."""
    if isinstance(counts, list):
        return [run if type(run) is int else -1 for run in counts] or [-1]
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value |= -1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs or [-1]


def _is_polygon(part: Any) -> bool:
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(type(x) in (int, float) for x in part)
