"""The classes of label maps where the user names none: the numbers in the maps, and a file of names beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from stvit_cli.data.file_listing import entries
from stvit_cli.data.inspection import evenly_spaced
from stvit_cli.data.label_maps import open_label_map
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

NUM_MAPS = 500
"""Maximum number of label maps that are read, evenly spaced."""

MAX_CLASSES = 255

NAMES_FILES = ("classes.txt", "class_names.txt", "names.txt", "labels.txt", "label_names.txt", "obj.names", "classes.names")

IGNORED = 255
"""The usual number of pixels without a class, where the maps have other numbers that are consecutive."""


def find_map_classes(root: Path, maps: Iterable[Path], *, skip_unreadable: bool = False) -> tuple[dict[str, object], str]:
    """Return the recipe keys of segmentation that name the classes of label maps, and a line that says how they were found.

    Args:
        root: the data set's folder, where a file of names may lie.
        maps: the label maps of the training images.
        skip_unreadable: pass over maps that cannot be read, unless none can.

    Raises:
        UserError: a map cannot be read, or the numbers in the maps are no classes.
    """
    paths = list(maps)
    numbers = numbers_in(paths, skip_unreadable=skip_unreadable)
    names = names_file(root)
    values = sorted(numbers)
    if names is not None:
        return _with_names(root, names[0], names[1], values)
    if set(values) <= {0, 255} or set(values) <= {0, 1}:
        keys: dict[str, object] = {"segmentation.class_names": ["background", "foreground"]}
        if values[-1] == 255:
            keys["segmentation.label_values"] = [0, 255]
        return keys, f"black-and-white masks: classes background (0) and foreground ({values[-1] or 1})"
    without = [value for value in values if value != IGNORED]
    if len(without) > MAX_CLASSES or len(without) < 2:
        raise UserError(
            f"{printable(str(root))}: the label maps hold {len(values)} numbers, {first_few([str(v) for v in values], 6)}; "
            "expected the number of a class in each pixel.\nName the classes: segmentation.class_names=[background, ...]"
        )
    keys = {"segmentation.class_names": [f"class {value}" for value in without]}
    if without != list(range(len(without))):
        keys["segmentation.label_values"] = without
    ignored = f", {IGNORED} is ignored" if IGNORED in values else ""
    shown = first_few([str(value) for value in without], 8)
    return keys, f"the classes are the numbers in the label maps, {shown}{ignored}; name them by segmentation.class_names"


def numbers_in(paths: list[Path], *, skip_unreadable: bool = False) -> Mapping[int, int]:
    """Return the numbers in label maps, and in how many maps each is."""
    found: Counter[int] = Counter()
    first: UserError | None = None
    for index in evenly_spaced(len(paths), NUM_MAPS):
        try:
            found.update(np.unique(open_label_map(paths[index])).tolist())
        except UserError as error:
            first = first or error
            if not skip_unreadable:
                break
    if first is not None and not (skip_unreadable and found):
        raise first
    return found


def names_file(root: Path) -> tuple[str, list[str]] | None:
    """Return the name of a file of class names in a folder, one a line, and the names; None where there is none."""
    for entry in sorted(entries(root), key=lambda entry: entry.name):
        if entry.name.lower() in NAMES_FILES and entry.is_file():
            try:
                lines = Path(entry.path).read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError):
                raise UserError(
                    f"{printable(entry.path)}: cannot be read as UTF-8 text; expected a class name on each line."
                ) from None
            names = [line.strip() for line in lines if line.strip()]
            if names:
                return entry.name, names
    return None


def _with_names(root: Path, file: str, names: list[str], values: list[int]) -> tuple[dict[str, object], str]:
    keys: dict[str, object] = {"segmentation.class_names": names}
    largest = max((value for value in values if value != IGNORED), default=0)
    if len(values) == len(names) and values[-1] >= len(names):
        keys["segmentation.label_values"] = values
    elif largest == len(names):
        keys["segmentation.reduce_zero_label"] = True
    elif largest > len(names):
        raise UserError(
            f"{printable(str(root / file))} names {len(names)} classes, but the label maps hold the number {largest}.\n"
            "Name the classes: segmentation.class_names=[background, ...], or their numbers: segmentation.label_values=[0, ...]"
        )
    return keys, f"{len(names)} classes of {printable(file)}"
