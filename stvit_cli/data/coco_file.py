"""A COCO annotation file up to its annotations: the JSON, its categories and its images, with ids and file names checked.

Ids are compared as numbers wherever they can be: 640, 640.0 and "640" are one id. As they are written they go into results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling
from stvit_cli.utils.text import printable

NUM_NAMED = 3
"""Number of examples that a message names of a repeated problem."""

MAX_SIDE = 1_000_000
"""Height and width of an image, in pixels: pycocotools multiplies coordinates by five in 32 bits."""

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)
"""Of an image, which Pillow does not open beyond that; run-length codes have room for 2**32."""

_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Category:
    """One kind of object: its id in the file, and its name."""

    id: int
    name: str
    written_id: Any = field(default=None, compare=False)
    """The id as the file writes it, which may be text."""


@dataclass(frozen=True)
class ImageEntry:
    """An image of the file; ``id`` is as the file writes it."""

    id: Any
    file_name: str
    height: int
    width: int


def shown(value: Any) -> str:
    """Return a value of the file and its type, for a message: ``'0' (text)``."""
    if value is None:
        return "None (null or missing)"
    text = printable(repr(value))
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({_TYPES.get(type(value), type(value).__name__)})"


def whole_number(value: Any) -> int | None:
    """Return 640 of 640 and 640.0, None of anything else."""
    if type(value) is int:
        return value
    return int(value) if type(value) is float and value.is_integer() else None


def comparable_id(value: Any) -> int | str | None:
    """Return an id in the form in which ids are compared, None of what can be no id."""
    if type(value) is str:
        return int(value) if _WHOLE.fullmatch(value) else value
    return whole_number(value)


def read_json(path: Path, *, annotated: bool = True) -> dict[str, Any]:
    """Return the content of an annotation file, a mapping with lists of mappings ``images``, ``annotations``, ``categories``.

    Args:
        path: the annotation file.
        annotated: whether there have to be annotations; where they need not, a missing list is taken as an empty one.

    Raises:
        UserError: it is not there, or something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such annotation file.{nearest_sibling(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file, or a damaged one: {error}.") from None
    if isinstance(content, dict) and not annotated and content.get("annotations") is None:
        content["annotations"] = []
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(
                f"{path}: no list of objects '{key}' in it; expected COCO's layout with images, annotations and categories."
            )
    return dict(content)


def read_categories(path: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    """Return the categories in the order of their ids. Raises UserError where they are not as they should be."""
    categories = []
    for entry in entries:
        number, name = comparable_id(entry.get("id")), entry.get("name")
        if not isinstance(number, int):
            raise UserError(
                f"{path}: a category's id is {shown(entry.get('id'))}, its name {shown(name)}; "
                "expected an id (a whole number) and a name."
            )
        if not isinstance(name, str):
            raise UserError(
                f"{path}: the name of category {number} is {shown(name)}; expected an id (a whole number) and a name."
            )
        categories.append(Category(number, name, entry["id"]))
    if not categories:
        raise UserError(f"{path}: the list of categories is empty.")
    for key in ("id", "name"):
        values = [getattr(category, key) for category in categories]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UserError(
                f"{path}: {values.count(twice)} categories have the {key} {printable(repr(twice))}; each needs its own."
            )
    return tuple(sorted(categories, key=lambda category: category.id))


def read_images(path: Path, entries: Sequence[Mapping[str, Any]]) -> dict[int | str, ImageEntry]:
    """Return the images by comparable id, in the order of the file.

    Args:
        path: the annotation file, for messages.
        entries: the file's list ``images``.

    Raises:
        UserError: an entry is not as it should be, or a name leads out of its folder.
    """
    images: dict[int | str, ImageEntry] = {}
    for entry in entries:
        image = _image(path, entry)
        number = comparable_id(image.id)
        if number is None or number in images:
            same = f", as {printable(images[number].file_name)} has" if number is not None else ""
            name = printable(image.file_name)
            raise UserError(f"{path}: the image {name} has the id {shown(image.id)}{same}; each needs one of its own.")
        images[number] = image
    if not images:
        raise UserError(f"{path}: the list of images is empty.")
    return images


def _image(path: Path, entry: Mapping[str, Any]) -> ImageEntry:
    name, sides = entry.get("file_name"), (entry.get("height"), entry.get("width"))
    height, width = map(whole_number, sides)
    if not isinstance(name, str) or height is None or width is None or height < 1 or width < 1:
        found = {"file_name": name, "height": sides[0], "width": sides[1]}
        raise UserError(
            f"{path}: image {_named(entry.get('id'))} needs a file_name, and a height and a width in pixels;\n"
            + "; ".join(f"its {key} is {shown(value)}" for key, value in found.items())
        )
    if _leads_out(name):
        raise UserError(
            f"{path}: the file_name of image {_named(entry.get('id'))} is {shown(name)};\n"
            "expected a path below the folder of the images: not absolute, without '..' and without control characters."
        )
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise UserError(
            f"{path}: image {_named(entry.get('id'))} is {width} wide and {height} high; expected at most {MAX_SIDE} pixels a "
            f"side and {MAX_PIXELS // 10**6} million in all, which is what can be opened."
        )
    return ImageEntry(entry.get("id"), name, height, width)


def _named(value: Any) -> str:
    return str(value) if type(value) is int else shown(value)


def _leads_out(name: str) -> bool:
    """Whether a path leads out of the folder it is joined to, on any system, or cannot be one."""
    return "\0" in name or name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or bool(PureWindowsPath(name).drive)
