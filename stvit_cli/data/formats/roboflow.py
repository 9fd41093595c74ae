"""Exports that are made of other formats: Roboflow's and CVAT's in COCO's, YOLO's, VOC's or CreateML's; and their COCO files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stvit_cli.data.coco_file import comparable_id
from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL, BoxData, BoxSet
from stvit_cli.data.formats.files import ImageFinder, split_of, split_of_path
from stvit_cli.data.formats.labelme import read_json
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few


def read_coco_folder(root: Path, class_names: Sequence[str] | None = None, *, stored_orientation: bool = False) -> BoxData:
    """Read the COCO files of a folder: ``train/_annotations.coco.json`` (Roboflow), ``annotations/instances_train.json`` (CVAT).

    Args:
        root: folder of the data set.
        class_names: not used, as the files have the names.
        stored_orientation: not used, as the files have the sizes.

    Raises:
        UserError: there is no such file, or two have different categories.
    """
    files = {path: content for path in _jsons(root) if is_coco(content := read_json(root / path))}
    if not files:
        raise UserError(f"{root}: no COCO file with images, annotations and categories below it.")
    finder = ImageFinder(root)
    splits: dict[str, BoxSet] = {}
    categories: dict[str, list[Any]] = {}
    for path, content in files.items():
        split = _split(path)
        if split in splits:
            raise UserError(f"{root}: {splits[split].source.name} and {path}: which is of {split}? Remove the other.")
        categories[path] = content["categories"]
        splits[split] = _box_set(root, path, split, content, finder)
    first, *others = categories.values()
    if any(other != first for other in others):
        raise UserError(f"{root}: {first_few(list(categories))} have different categories.")
    names = [str(entry.get("name")) for entry in first if isinstance(entry, dict)]
    return BoxData("coco", splits, tuple(names))


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO's."""
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def _jsons(root: Path) -> list[str]:
    return sorted(list_files(root, endings=(".json",)).paths)


def _split(path: str) -> str:
    """Return the split of a COCO file, by its folder or its name: ``instances_val2017.json``."""
    stem = path.rpartition("/")[2].removesuffix(".json")
    return split_of(stem.rpartition("_")[2]) or split_of(stem) or split_of_path(path)


def _box_set(root: Path, path: str, split: str, content: dict[str, Any], finder: ImageFinder) -> BoxSet:
    """Return a COCO file's content with every file name relative to ``root``."""
    images = []
    for entry in content["images"]:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        place = finder.by_name(name, path, split) if isinstance(name, str) else None
        images.append(entry if place is None else {**entry, "file_name": place})
    annotations = [
        {**entry, "origin": f"{root / path}, annotation {comparable_id(entry.get('id'))}"} if isinstance(entry, dict) else entry
        for entry in content["annotations"]
    ]
    remarks = ("one file without a split",) if split == ALL else ()
    return BoxSet(root / path, root, content["categories"], images, annotations, remarks=remarks)
