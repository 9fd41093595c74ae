"""COCO annotation files among the files of a folder: which trains, which validates, and where their images are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from stvit_cli.data.coco_folder import local_tails
from stvit_cli.data.folder_survey import Folder, Survey, parent_of, search_file, split_of, start_of, text_of
from stvit_cli.data.layout import Given, Layout, layout, which
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

MAX_JSON_FILES = 20
"""JSON files of one folder that are looked into: more of them belong to one image each, or to something else."""

NUM_FILE_NAMES = 3

_FIRST_KEYS = re.compile(rb'\s*\{\s*"(images|annotations|categories|info|licen[sc]es)"\s*:')
_IMAGES = re.compile(rb'"images"\s*:\s*\[')
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_MASK = re.compile(rb'"segmentation"\s*:\s*(\[\s*\[|\{)')
_BOX = re.compile(rb'"bbox"\s*:\s*\[')
_LABELME = re.compile(rb'"(shapes|imagePath|imageData)"\s*:')
_NO_OBJECTS = re.compile(r"^(captions|panoptic|stuff|image_info)_")
_SEPARATE = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class CocoFile:
    """A COCO annotation file, by its path relative to ``root``."""

    root: Path
    path: str

    @property
    def split(self) -> Literal["train", "val", "test"] | None:
        return split_of(self.path)

    @cached_property
    def has_masks(self) -> bool:
        return search_file(self.root / self.path, _MASK) is not None

    @cached_property
    def file_name(self) -> str | None:
        """The file name of its first image."""
        found = search_file(self.root / self.path, _FILE_NAME)
        return None if found is None else text_of(found[1])


def is_coco(start: bytes) -> bool:
    """Return whether the beginning of a file is that of a COCO annotation file."""
    if _LABELME.search(start):
        return False
    return _FIRST_KEYS.match(start) is not None or (start.lstrip().startswith(b"{") and _IMAGES.search(start) is not None)


def find_coco(survey: Survey, given: Given) -> list[Layout]:
    """Return the layout of the COCO annotation files in a folder; an empty list where there are none.

    Raises:
        UserError: several files could be the training annotations, or the images of one are not there.
    """
    files = list(_coco_files(survey))
    if not files and not given.get("detection.train_json"):
        return []
    train, val = _train_and_val(survey.root, files, given)
    keys: dict[str, object] = {"detection.train_json": train.path}
    keys["detection.train_images"] = given.get("detection.train_images") or _images_of(survey, train, "train_images")
    if val is not None:
        keys["detection.val_json"] = val.path
        keys["detection.val_images"] = given.get("detection.val_images") or _images_of(survey, val, "val_images")
        found = f"COCO annotations, {printable(train.path)} and {printable(val.path)}"
    else:
        keys["detection.val_json"] = None
        found = f"COCO annotations, {printable(train.path)} without a split, so a part is held out"
    unused = [file.path for file in files if file not in (train, val)]
    found += f" (not used: {first_few(unused, 2)})" if unused else ""
    has_masks = train.has_masks
    found += ", with masks" if has_masks else ", boxes without masks"
    return [layout("detection", "coco", survey.root, found, keys, has_masks=has_masks)]


def _coco_files(survey: Survey) -> Iterator[CocoFile]:
    found = []
    for folder in survey:
        names = folder.with_ending(".json")
        for name in names if len(names) <= MAX_JSON_FILES else _among_many(folder, names):
            if is_coco(start_of(survey.root / folder.join(name))):
                found.append(CocoFile(survey.root, folder.join(name)))
    with_objects = [file for file in found if not _NO_OBJECTS.match(os.path.basename(file.path))]
    instances = [file for file in with_objects if os.path.basename(file.path).startswith("instances_")]
    yield from instances or with_objects


def _among_many(folder: Folder, names: list[str]) -> list[str]:
    """Return the names that are not those of a file for each image."""
    return [name for name in names if "annotation" in name.lower() or "coco" in name.lower() or split_of(name)][:MAX_JSON_FILES]


def _train_and_val(root: Path, files: list[CocoFile], given: Given) -> tuple[CocoFile, CocoFile | None]:
    by_path = {file.path: file for file in files}
    named = {key: given.get(f"detection.{key}") for key in ("train_json", "val_json")}
    chosen = {key: CocoFile(root, str(value)) for key, value in named.items() if value}
    by_split = {split: [file for file in files if file.split == split] for split in ("train", "val", "test", None)}
    train = chosen.get("train_json")
    if train is None:
        trains = by_split["train"] or by_split[None] or list(by_path.values())
        if len(trains) > 1:
            found = f"{len(trains)} COCO annotation files could be the training annotations"
            raise which(root, found, "detection.train_json", [file.path for file in trains])
        train = trains[0]
    if "val_json" in named and "detection.val_json" in given:
        return train, chosen.get("val_json")
    for split in ("val", "test"):
        others = [file for file in by_split[split] if file.path != train.path]
        if len(others) > 1:
            found = f"{len(others)} COCO annotation files could be the validation annotations"
            raise which(root, found, "detection.val_json", [file.path for file in others])
        if others:
            return train, others[0]
    return train, None


def _images_of(survey: Survey, file: CocoFile, key: str) -> str:
    """Return the folder, relative to the root, that the file names of an annotation file are in."""
    name = file.file_name
    where = survey.root / file.path
    if name is None:
        raise UserError(f"{where}: no file_name of an image in it; expected COCO's list of images.")
    tails = list(local_tails(name))
    holding: list[str] = []
    for tail in tails:
        holding = [folder.path for folder in survey if not _leads_out(tail) and _is_file(survey.root / folder.path / tail)]
        if holding:
            break
    if not holding and _leads_out(name):
        raise UserError(
            f"{where}: the file_name of its first image is '{printable(name)[:80]}', expected a path below the images' folder.\n"
            "Write file names relative to it into the annotation file."
        )
    if not holding:
        raise UserError(
            f"{where}: its first image, '{printable(name)[:80]}', is in none of the folders of {printable(str(survey.root))}.\n"
            f"Name the folder of its images: detection.{key}=FOLDER"
        )
    ranks = {path: _rank(path, file) for path in holding}
    best = [path for path in holding if ranks[path] == min(ranks.values())]
    if len(best) > 1 and key == "train_images" and file.split is None:
        raise which(
            survey.root,
            f"the images of {printable(file.path)} are in several folders",
            f"detection.{key}",
            [b or "." for b in best],
        )
    return best[0] or "."


def _leads_out(name: str) -> bool:
    return "\0" in name or ".." in re.split(r"[/\\]", name) or name.startswith(("/", "\\"))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _rank(folder: str, file: CocoFile) -> int:
    """Return how well a folder fits an annotation file by its name; 0 is best."""
    own = parent_of(file.path)
    stem = os.path.basename(file.path).lower().removesuffix(".json").removeprefix("instances_")
    last = os.path.basename(folder).lower()
    if last and _SEPARATE.sub("", last) == _SEPARATE.sub("", stem):
        return 0
    if folder == own or (own and folder.startswith(f"{own}/")):
        return 1
    if file.split is not None and split_of(folder) == file.split:
        return 2
    return 3 if split_of(folder) is None else 4
