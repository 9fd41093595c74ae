"""YOLO: a text file for each image, a line for each object: class id, and a box or a polygon in fractions of the image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from stvit_cli.data.file_listing import is_left_out
from stvit_cli.data.formats.collection import ALL, BoxData, Found, assemble, counted
from stvit_cli.data.formats.files import read_text
from stvit_cli.data.formats.parsers import ROUNDED, yolo_boxes
from stvit_cli.data.formats.yolo_layout import YoloLayout, find_yolo, is_label_file
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

FAR = 2.0
"""Coordinates beyond this are pixels, where fractions of the image are expected; slightly beyond 1 are rounding and drawing."""


def read_yolo(root: Path, class_names: Sequence[str] | None = None, *, stored_orientation: bool = False) -> BoxData:
    """Read a YOLO data set. Category ids are YOLO's plus 1.

    Args:
        root: folder of the data set.
        class_names: in place of those that a file names.
        stored_orientation: fractions are of the image as stored; otherwise of the upright one, as Ultralytics takes them.

    Raises:
        UserError: what data.yaml or a list names is missing, or there is no image.
    """
    layout = find_yolo(root)
    reader = _Reader(layout.num_keypoint_values, stored=stored_orientation)
    for split, paths in layout.images.items():
        reader.read(paths, layout.splits[split], must_be_labelled=split != "test")
    orphans = reader.orphans()
    for found in list(layout.splits.values())[:1]:
        text = "and left out"
        found.remarks += counted(len(orphans), f"label file has no image, {text}", f"label files have no image, {text}", orphans)
    names, source = (list(class_names), "data.class_names_file") if class_names else (layout.names, layout.names_from)
    if names is None:
        ids = {entry["category"] for found in layout.splits.values() for entry in found.annotations}
        names = [str(number) for number in range(max(ids, default=-1) + 1)]
        first = next(iter(layout.splits.values()), None)
        if first is not None:
            first.remarks.append("no file names the classes, so their ids are their names; data.class_names_file=FILE names them")
    return assemble("yolo", root, _twice_named(layout), names, names_from=source)


def _twice_named(layout: YoloLayout) -> dict[str, Found]:
    """Return the splits, with a warning where an image is to train on and to evaluate on, as in Ultralytics' small examples."""
    both = set(layout.images.get("train", ())) & set(layout.images.get("val", ()))
    if both:
        text = f"Warning: {len(both)} images are in train and in val, so the evaluation says little about other images"
        layout.splits["train"].remarks.append(text)
    return {split: layout.splits[split] for split in ("train", "val", "test", ALL) if split in layout.images}


class _Reader:
    """Reads the label files of the images, split by split."""

    def __init__(self, num_keypoint_values: int, *, stored: bool) -> None:
        self.num_keypoint_values, self.stored = num_keypoint_values, stored
        self.folders: dict[str, set[str]] = {}
        self.used: set[str] = set()

    def read(self, paths: Sequence[Path], found: Found, *, must_be_labelled: bool) -> None:
        unlabelled: list[str] = []
        self.found, self.left_out = found, Counter[str]()
        for path, size in zip(paths, found.measure(paths, stored=self.stored), strict=True):
            label_file = self._label_file(path)
            if label_file is None:
                unlabelled.append(path.name)
            else:
                self.used.add(label_file)
            if isinstance(size, str):
                self.found.fault(str(path), "on an image that cannot be read", size)
            elif label_file is None:
                self.found.image(path, size)
            else:
                self._lines(Path(label_file), self.found.image(path, size), size)
        if must_be_labelled and paths and len(unlabelled) == len(paths):
            raise UserError(
                f"{self.found.source}: none of the {len(paths)} images has a label file, such as {self._expected(paths[0])}\n"
                "Expected a text file of the same name, in labels/ in place of images/, or beside the image."
            )
        none = "no label file: no objects"
        self.found.remarks += counted(len(unlabelled), f"image has {none}", f"images have {none}", unlabelled)
        self.found.remarks += [f"{count} {what}" for what, count in self.left_out.items()]

    def orphans(self) -> list[str]:
        """Return the label files, in the folders that were looked into, that are no image's."""
        return [
            name
            for folder, names in sorted(self.folders.items())
            for name in sorted(names)
            if os.path.join(folder, name) not in self.used and is_label_file(name)
        ]

    def _label_file(self, image: Path) -> str | None:
        name = f"{image.stem}.txt"
        for folder in _label_folders(image):
            if folder not in self.folders:
                there = [entry.name for entry in Path(folder).iterdir()] if Path(folder).is_dir() else []
                self.folders[folder] = {entry for entry in there if entry.endswith(".txt") and not is_left_out(entry)}
            if name in self.folders[folder]:
                return os.path.join(folder, name)
        return None

    def _expected(self, image: Path) -> str:
        return printable(os.path.join(_label_folders(image)[0], f"{image.stem}.txt"))

    def _lines(self, path: Path, image: int, size: tuple[int, int]) -> None:
        try:
            numbered = [
                (number, line.split()) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()
            ]
        except UserError as error:
            self.found.fault(str(path), "that cannot be read", str(error).partition(": ")[2])
            return
        readable = [(number, values) for number, values in numbered if self._is_usable(path, number, values)]
        try:
            boxes = yolo_boxes([" ".join(self._box_part(values)) for _, values in readable], size)
        except ValueError:
            boxes = None
        for position, (number, values) in enumerate(readable):
            try:
                category, box = (boxes or yolo_boxes([" ".join(self._box_part(values))], size))[position if boxes else 0]
            except ValueError as error:
                self.found.fault(f"{path}, line {number}", "that cannot be read", _lower(str(error)))
                continue
            polygon = _polygon(self._box_part(values), size)
            self.found.add(image, category, box, f"{path}, line {number}", **({"polygons": [polygon]} if polygon else {}))

    def _is_usable(self, path: Path, number: int, values: list[str]) -> bool:
        """Note what supervision would read as something else: pixels, and an odd number of coordinates."""
        count = len(values)
        part = self._box_part(values)
        if len(part) > 6 and len(part) % 2 == 0:
            text = f"{count - 1} numbers after the class, expected 4 of a box, or x and y of each point of a polygon"
            self.found.fault(f"{path}, line {number}", "that cannot be read", text)
            return False
        try:
            far = next((value for value in part[1:5] if float(value) > FAR or float(value) < -FAR), None)
        except ValueError:
            far = None  # supervision says what is wrong
        if far is not None:
            text = f"found the coordinate {printable(far)[:20]}, expected fractions of the image's width and height: 0 to 1"
            self.found.fault(f"{path}, line {number}", "not in fractions of the image", text)
            return False
        if count == 6:
            self.left_out["lines have a sixth number, such as a confidence, which is not used"] += 1
        return True

    def _box_part(self, values: list[str]) -> list[str]:
        """Return the values without the keypoints of a pose data set."""
        keypoints = self.num_keypoint_values
        return values[:5] if keypoints and len(values) == 5 + keypoints else values


def _label_folders(image: Path) -> list[str]:
    """Return where an image's label file may be: in labels/ in place of the last images/ of its path, or beside it."""
    folder, parts = str(image.parent), image.parent.parts
    last = next((i for i in range(len(parts) - 1, -1, -1) if parts[i].casefold() == "images"), None)
    return [folder] if last is None else [os.path.join(*parts[:last], "labels", *parts[last + 1 :]), folder]


def _polygon(values: Sequence[str], size: tuple[int, int]) -> list[float] | None:
    if len(values) <= 6:
        return None
    return [round(float(value) * size[i % 2], ROUNDED) for i, value in enumerate(values[1:])]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
