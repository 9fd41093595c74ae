"""Data sets of other tools' formats, read into COCO's terms: YOLO, Pascal VOC, LabelMe, CVAT, CreateML, and Roboflow's exports.

`read_format` gives images, boxes and polygons by split; `coco_index.read_coco` checks them as it checks a COCO file. What cannot
be read is named with its file and line. Images without annotations are images without objects. Classes are in the order of their
ids (YOLO), of the task's labels (CVAT), or of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL, TITLES, BoxData, BoxSet, Fault
from stvit_cli.data.formats.createml import is_createml, read_createml
from stvit_cli.data.formats.cvat import is_cvat, read_cvat
from stvit_cli.data.formats.labelme import is_labelme, read_json, read_labelme
from stvit_cli.data.formats.roboflow import is_coco, read_coco_folder
from stvit_cli.data.formats.voc import read_voc, xml_root
from stvit_cli.data.formats.yolo import read_yolo
from stvit_cli.data.formats.yolo_layout import looks_like_yolo
from stvit_cli.errors import UserError

__all__ = ["ALL", "KINDS", "SOURCES", "TITLES", "BoxData", "BoxSet", "Fault", "find_format", "read_format"]

_READERS: dict[str, Callable[..., BoxData]] = {
    "yolo": read_yolo,
    "voc": read_voc,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "createml": read_createml,
    "coco": read_coco_folder,
}

KINDS = ("yolo", "voc", "labelme", "cvat", "createml")
"""Values of data.kind that are read here."""

SOURCES = ("yolo", "voc", "roboflow", "labelme", "cvat", "createml", "coco")
"""Formats and tools that a data set can be converted from."""


def read_format(kind: str, root: Path, class_names: Sequence[str] | None = None, *, stored_orientation: bool = False) -> BoxData:
    """Read a data set.

    Args:
        kind: one of `SOURCES`. Of ``roboflow`` and ``cvat`` the files tell which of their export formats they are in.
        root: folder of the data set.
        class_names: the classes in order, in place of those that the files name.
        stored_orientation: where an image's size is not in the files: that of the pixels as stored, not of the upright image.

    Raises:
        UserError: the folder holds no such data set, a file is damaged, or what a file names is missing.
    """
    if kind == "roboflow" or (kind == "cvat" and not _has_cvat_xml(root)):
        found = find_format(root)
        if found is None:
            raise UserError(f"{root}: no export of {TITLES[kind]} in it that is known: COCO, YOLO, Pascal VOC or CreateML.")
        kind = found
    return _READERS[kind](root, class_names, stored_orientation=stored_orientation)


def find_format(root: Path) -> str | None:
    """Return the format of a data set of boxes by its files, without reading all of them; None where it is none.

    Raises:
        UserError: a file that decides is damaged.
    """
    names = list_files(root, endings=(".json", ".xml"))
    jsons = sorted(path for path in names.paths if path.lower().endswith(".json"))
    for path in jsons[:20]:
        content = read_json(root / path)
        for kind, is_kind in (("coco", is_coco), ("labelme", is_labelme), ("createml", is_createml)):
            if is_kind(content):
                return kind
    for path in sorted(path for path in names.paths if path.lower().endswith(".xml"))[:20]:
        content = xml_root(root / path)
        if is_cvat(content):
            return "cvat"
        if content.tag == "annotation":
            return "voc"
    return "yolo" if looks_like_yolo(root) else None


def _has_cvat_xml(root: Path) -> bool:
    paths = sorted(list_files(root, endings=(".xml",)).paths)
    return any(is_cvat(xml_root(root / path)) for path in paths[:20])
