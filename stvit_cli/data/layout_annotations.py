"""Annotations of boxes and polygons in other formats than COCO's: YOLO, Pascal VOC, LabelMe, CreateML, CVAT."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from stvit_cli.data.folder_survey import Folder, Survey, parent_of, start_of
from stvit_cli.data.layout import Layout, layout
from stvit_cli.utils.text import printable

NUM_LOOKED_INTO = 3
"""Files of one folder that are looked into."""

_YOLO_LINE = re.compile(rb"\s*\d+((?:[ \t]+-?[0-9.eE+-]+){4,})[ \t]*\r?(?:\n|$)")
_YOLO_NAMES = re.compile(rb"^names\s*:", re.MULTILINE)
_YOLO_OTHER = re.compile(rb"^(train|val|nc|path)\s*:", re.MULTILINE)
_VOC = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<annotation[\s>]")
_CVAT = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<annotations[\s>]")
_LABELME = re.compile(rb'\s*\{[^\[]*?"(version|flags|shapes|imagePath|imageHeight|lineColor)"\s*:')
_SHAPES = re.compile(rb'"shapes"\s*:')
_POLYGON = re.compile(rb'"shape_type"\s*:\s*"(polygon|mask|circle)"')
_CREATEML = re.compile(rb"\s*\[\s*\{")
_COORDINATES = re.compile(rb'"coordinates"\s*:\s*\{')


def find_annotations(survey: Survey) -> list[Layout]:
    """Return the layouts of the formats that a folder holds."""
    return [*_yolo(survey), *_voc(survey), *_labelme(survey), *_createml(survey), *_cvat(survey)]


def is_createml(start: bytes) -> bool:
    """Return whether the beginning of a JSON file is CreateML's."""
    return _CREATEML.match(start) is not None and _COORDINATES.search(start) is not None


def is_labelme(start: bytes) -> bool:
    """Return whether the beginning of a JSON file is LabelMe's."""
    return _SHAPES.search(start) is not None or _LABELME.match(start) is not None


def is_cvat(start: bytes) -> bool:
    """Return whether the beginning of an XML file is CVAT's."""
    return _CVAT.match(start) is not None


def is_voc(start: bytes) -> bool:
    """Return whether the beginning of an XML file is Pascal VOC's."""
    return _VOC.match(start) is not None


def _looked_into(survey: Survey, ending: str, matches: Callable[[bytes], bool], size: int = 4096) -> list[tuple[Folder, bytes]]:
    """Return the folders of which one of the first files with an ending matches, and the beginning of that."""
    found = []
    for folder in survey:
        for name in folder.with_ending(ending)[:NUM_LOOKED_INTO]:
            start = start_of(survey.root / folder.join(name), size)
            if matches(start):
                found.append((folder, start))
                break
    return found


def _common(paths: Iterable[str]) -> str:
    """Return the folder, relative to the root, that all of the paths lie in or below."""
    return os.path.commonpath([f"/{path}" for path in paths]).removeprefix("/")


def _above(path: str, *names: str) -> str:
    """Return the folder above ``path`` where ``path`` has one of the names, otherwise ``path``."""
    return parent_of(path) if os.path.basename(path).lower() in names else path


def _yolo(survey: Survey) -> list[Layout]:
    labels = _looked_into(survey, ".txt", lambda start: _YOLO_LINE.match(start) is not None)
    labels = [(folder, start) for folder, start in labels if _beside_images(survey, folder)]
    configs = [
        folder.join(name)
        for folder in survey
        for name in folder.with_ending(".yaml", ".yml")
        if _is_yolo_config(start_of(survey.root / folder.join(name)))
    ]
    if not labels and not (configs and survey.num_images):
        return []
    root = parent_of(configs[0]) if len(configs) == 1 else _yolo_root(folder.path for folder, _ in labels)
    has_masks = any(_has_polygon(start) for _, start in labels)
    named = printable(configs[0]) if len(configs) == 1 else "label files beside images"
    found = f"YOLO, {named}, {'polygons' if has_masks else 'boxes without masks'}"
    return [layout("detection", "yolo", survey.root / root, found, has_masks=has_masks)]


def _is_yolo_config(start: bytes) -> bool:
    return _YOLO_NAMES.search(start) is not None and _YOLO_OTHER.search(start) is not None


def _yolo_root(label_folders: Iterable[str]) -> str:
    """Return the data set's folder: above labels/, labels/train and train/labels."""
    folders = list(label_folders)
    parts = [path.split("/") for path in folders]
    above = ["/".join(part[: part.index("labels")]) if "labels" in part else "/".join(part) for part in parts]
    return _common(above) if above else ""


def _beside_images(survey: Survey, folder: Folder) -> bool:
    """Whether images lie beside a folder's label files, or in the images/ that belongs to its labels/."""
    if folder.num_images:
        return True
    parts = folder.path.split("/")
    if "labels" not in parts:
        return False
    other = "/".join("images" if part == "labels" else part for part in parts)
    return other in survey.folders and survey.has_images(other)


def _has_polygon(start: bytes) -> bool:
    lines = [line for line in start.splitlines()[:-1] or start.splitlines() if _YOLO_LINE.match(line)]
    return any(len(line.split()) > 6 and len(line.split()) % 2 == 1 for line in lines)


def _voc(survey: Survey) -> list[Layout]:
    folders = [folder.path for folder, _ in _looked_into(survey, ".xml", is_voc)]
    if not folders:
        return []
    root = _common(_above(path, "annotations", "xml", "xmls", "labels") for path in folders)
    return [layout("detection", "voc", survey.root / root, "Pascal VOC, an XML file for each image, boxes without masks")]


def _labelme(survey: Survey) -> list[Layout]:
    found = _looked_into(survey, ".json", is_labelme, size=1 << 16)
    if not found:
        return []
    has_masks = any(_POLYGON.search(start) for _, start in found)
    root = _common(_above(folder.path, "annotations", "labels", "json", "jsons") for folder, _ in found)
    kind = "polygons" if has_masks else "boxes without masks"
    return [
        layout("detection", "labelme", survey.root / root, f"LabelMe, a JSON file for each image, {kind}", has_masks=has_masks)
    ]


def _createml(survey: Survey) -> list[Layout]:
    folders = [folder.path for folder, _ in _looked_into(survey, ".json", is_createml, size=1 << 16)]
    if not folders:
        return []
    root = _common(folders)
    return [layout("detection", "createml", survey.root / root, "CreateML's JSON, boxes without masks")]


def _cvat(survey: Survey) -> list[Layout]:
    found = _looked_into(survey, ".xml", is_cvat, size=1 << 16)
    if not found:
        return []
    has_masks = any(b"<polygon" in start or b"<mask" in start for _, start in found)
    root = _common(folder.path for folder, _ in found)
    kind = "polygons" if has_masks else "boxes without masks"
    return [layout("detection", "cvat", survey.root / root, f"CVAT's XML, {kind}", has_masks=has_masks)]
