"""CreateML: one JSON file for the images of a folder, with the center and the size of each box in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL, BoxData, Found, assemble
from stvit_cli.data.formats.files import ImageFinder, split_of_path
from stvit_cli.data.formats.labelme import read_json
from stvit_cli.data.formats.parsers import createml_box
from stvit_cli.data.formats.voc import add_unannotated
from stvit_cli.utils.text import printable


def read_createml(root: Path, class_names: Sequence[str] | None = None, *, stored_orientation: bool = False) -> BoxData:
    """Read a CreateML data set: a JSON file beside the images, also in each of train/, valid/ and test/.

    Classes are sorted by name.

    Args:
        root: folder of the data set.
        class_names: the classes in order; None: those that occur.
        stored_orientation: take the sizes of the images as stored, not upright.

    Raises:
        UserError: a file is damaged.
    """
    finder = ImageFinder(root)
    splits: dict[str, Found] = {}
    used: dict[str, str] = {}
    for path in sorted(list_files(root, endings=(".json",)).paths):
        content, split = read_json(root / path), split_of_path(path)
        if not is_createml(content):
            splits.setdefault(split, Found(root)).remarks.append(f"{path} is not of CreateML, and is left out")
            continue
        for position, entry in enumerate(content):
            _read_entry(entry, f"{root / path}, entry {position}", path, finder, used, splits)
    add_unannotated(root, finder, set(used), splits)
    names_from = "data.class_names_file" if class_names else ""
    return assemble("createml", root, splits, class_names, names_from=names_from, stored_orientation=stored_orientation)


def is_createml(content: Any) -> bool:
    """Return whether the content of a JSON file is CreateML's."""
    return isinstance(content, list) and bool(content) and all(_image_name(entry) is not None for entry in content[:10])


def _image_name(entry: Any) -> str | None:
    """Return the file name of an entry: ``image``, or ``imagefilename`` as some exports have it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("annotations", entry.get("annotation")), list):
        return None
    name = entry.get("image", entry.get("imagefilename"))
    return name if isinstance(name, str) else None


def _read_entry(entry: Any, origin: str, path: str, finder: ImageFinder, used: dict[str, str], splits: dict[str, Found]) -> None:
    split, name = split_of_path(path), _image_name(entry)
    image = None if name is None else finder.by_name(name, path, split)
    split = split_of_path(image) if image is not None and split == ALL else split
    found = splits.setdefault(split, Found(finder.root / path))
    if name is None:
        found.fault(origin, "that cannot be read", "expected an image and its annotations")
    elif image is None:
        found.fault(origin, "on an image that is missing", f"there is no image {printable(name)}")
    elif image in used:
        found.fault(origin, "of an image that has another entry", f"{printable(name)} is that of {used[image]} too")
    else:
        used[image] = origin
        position = found.image(finder.root / image)
        for number, annotation in enumerate(entry.get("annotations", entry.get("annotation")), start=1):
            _read_box(annotation, f"{origin}, annotation {number}", found, position)


def _read_box(annotation: Mapping[str, Any], origin: str, found: Found, image: int) -> None:
    try:
        label, box = createml_box(annotation)
    except (ValueError, AttributeError) as error:
        found.fault(origin, "that cannot be read", printable(str(error))[:200].rstrip("."))
        return
    found.add(image, label, box, origin)
