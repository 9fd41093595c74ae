"""Pascal VOC: an XML file for each image, with boxes that count pixels from 1, and lists of images for the splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL, BoxData, Found, assemble, counted
from stvit_cli.data.formats.files import ImageFinder, read_text, require_one_kind, split_of_path
from stvit_cli.data.formats.parsers import require_formats, voc_box, voc_polygon
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable


def read_voc(root: Path, class_names: Sequence[str] | None = None, *, stored_orientation: bool = False) -> BoxData:
    """Read a Pascal VOC data set: VOCdevkit/, Annotations/ and JPEGImages/, or XML files beside their images.

    Classes are sorted by name. Objects marked difficult are ignored in training and evaluation, as a crowd of COCO is.

    Args:
        root: folder of the data set.
        class_names: the classes in order; None: those that occur.
        stored_orientation: sizes that no XML file gives are those of the images as stored.

    Raises:
        UserError: a file is damaged, or a list names what is missing.
    """
    root = _devkit(root)
    annotation_files = list_files(root, endings=(".xml",)).paths
    finder = ImageFinder(root)
    by_stem = {os.path.splitext(os.path.basename(path))[0]: path for path in sorted(annotation_files)}
    splits: dict[str, Found] = {}
    lists = _image_sets(root)
    if lists:
        _read_lists(root, lists, by_stem, finder, splits)
    else:
        _read_folders(root, sorted(annotation_files), finder, splits)
    for found in splits.values():
        _count_from_0(found)
    return assemble("voc", root, splits, class_names, names_from=_given(class_names), stored_orientation=stored_orientation)


def _given(class_names: Sequence[str] | None) -> str:
    return "data.class_names_file" if class_names else ""


def _devkit(root: Path) -> Path:
    """Return the folder with Annotations/ in it: ``root``, or the only one below VOCdevkit/."""
    found = root
    for _ in range(3):
        if (found / "Annotations").is_dir():
            return found
        below = [entry for entry in sorted(found.iterdir()) if entry.is_dir() and entry.name.upper().startswith("VOC")]
        if len(below) > 1:
            raise UserError(
                f"{found}: {first_few([entry.name for entry in below])}: which one? Set data.dir to one of them, or merge them."
            )
        if not below:
            break
        found = below[0]
    return found if (found / "Annotations").is_dir() else root


def _image_sets(root: Path) -> dict[str, Path]:
    """Return the lists of ImageSets/Main by split; trainval where there is no train and val."""
    main = root / "ImageSets" / "Main"
    files = {split: main / f"{split}.txt" for split in ("train", "val", "trainval", "test")}
    found = {split: file for split, file in files.items() if file.is_file()}
    whole = found.pop("trainval", None)
    if whole is not None and "train" not in found:
        found = {"train": whole, **found} if "test" in found or "val" in found else {ALL: whole}
    return found if len(found) > 1 or ALL in found else {}


def _read_lists(
    root: Path, lists: dict[str, Path], by_stem: dict[str, str], finder: ImageFinder, splits: dict[str, Found]
) -> None:
    listed = set()
    for split, file in lists.items():
        found = splits[split] = Found(file)
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if not (words := line.split()):
                continue
            stem, origin = words[0], f"{file}, line {number}"
            listed.add(stem)
            path = by_stem.get(stem)
            image = finder.by_stem(path or f"JPEGImages/{stem}.jpg", ALL)
            if image is None:
                found.fault(origin, "on an image that is missing", f"there is no image {printable(stem)}")
            elif path is None:
                found.image(root / image)
            else:
                _read_file(root, path, root / image, found)
    left = sorted(set(by_stem) - listed)
    first = next(iter(splits.values()))
    what = "in no list of ImageSets/Main, and left out"
    first.remarks += counted(len(left), f"annotation file is {what}", f"annotation files are {what}", left)


def _read_folders(root: Path, paths: list[str], finder: ImageFinder, splits: dict[str, Found]) -> None:
    used = set()
    for path in paths:
        split = split_of_path(path)
        content = xml_root(root / path)
        if content.tag != "annotation":
            splits.setdefault(split, Found(root)).remarks.append(f"{path} is not of Pascal VOC, and is left out")
            continue
        name = _text(content, "filename")
        image = finder.by_stem(path, split) or (finder.by_name(name, path, split) if name else None)
        split = split_of_path(image) if image is not None and split == ALL else split
        found = splits.setdefault(split, Found(root if split == ALL else root / split))
        if image is None:
            found.fault(str(root / path), "on an image that is missing", f"there is no image {printable(name or path)}")
            continue
        used.add(image)
        _read_content(content, path=root / path, image=root / image, found=found)
    add_unannotated(root, finder, used, splits)


def add_unannotated(root: Path, finder: ImageFinder, used: set[str], splits: dict[str, Found]) -> None:
    """Add the images without an annotation file to their splits, as images without objects."""
    left: dict[str, list[str]] = {}
    for path in finder.paths:
        if path not in used:
            left.setdefault(split_of_path(path), []).append(path)
    for split, paths in left.items():
        found = splits.setdefault(split, Found(root if split == ALL else root / split))
        for path in paths:
            found.image(root / path)
        what = "no annotation file: no objects"
        found.remarks += counted(len(paths), f"image has {what}", f"images have {what}", paths)
    require_one_kind(root, {split: [str(image["path"]) for image in found.images] for split, found in splits.items()}, "images")


def xml_root(path: Path) -> Element:
    """Return the root of an XML file, read by defusedxml. Raises UserError where it is damaged or made to exhaust the memory."""
    with require_formats():
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import fromstring
    try:
        return fromstring(path.read_bytes())  # type: ignore[no-any-return]
    except ParseError as error:
        raise UserError(f"{printable(str(path))}: a damaged XML file: {error}.") from None
    except DefusedXmlException:
        raise UserError(f"{printable(str(path))}: an XML file that defines entities, which are not read.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _read_file(root: Path, path: str, image: Path, found: Found) -> None:
    _read_content(xml_root(root / path), path=root / path, image=image, found=found)


def _read_content(content: Element, *, path: Path, image: Path, found: Found) -> None:
    position = found.image(image, _size(content))
    for number, element in enumerate(content.findall("object"), start=1):
        origin = f"{path}, object {number}"
        try:
            name, box = voc_box(element)
            polygons = [voc_polygon(polygon) for polygon in element.findall("polygon")]
        except ValueError as error:
            found.fault(origin, "that cannot be read", str(error)[:1].lower() + str(error)[1:].rstrip("."))
            continue
        more: dict[str, Any] = {"polygons": polygons} if polygons else {}
        if _text(element, "difficult") == "1":
            more["crowd"] = True
        found.add(position, name.strip(), box, origin, **more)


def _size(content: Element) -> tuple[int, int] | None:
    """Return width and height; some tools write 0, and the image has to tell."""
    size = content.find("size")
    try:
        width, height = (int(float(_text(size, side) or 0)) for side in ("width", "height")) if size is not None else (0, 0)
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _count_from_0(found: Found) -> None:
    """Undo the shift by a pixel in a split whose files count pixels from 0, as a coordinate of 0 tells."""
    first = next((entry for entry in found.annotations if -1 in entry["box"][:2]), None)
    if first is not None:
        for entry in found.annotations:
            entry["box"][:2] = [side + 1 for side in entry["box"][:2]]
            entry["polygons"] = [[number + 1 for number in polygon] for polygon in entry.get("polygons", ())]
        found.remarks.append(f"pixels count from 0, not from 1 as in VOC, as {first['origin']} shows")
    difficult = sum(1 for entry in found.annotations if entry.get("crowd"))
    text = "difficult and ignored in training and evaluation, as in VOC's own"
    found.remarks += counted(difficult, f"object is {text}", f"objects are {text}")


def _text(element: Element | None, tag: str) -> str:
    child = None if element is None else element.find(tag)
    return (child.text or "").strip() if child is not None else ""
