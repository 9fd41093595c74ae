"""The annotations of a recipe in another format than COCO's: data.kind yolo, voc, labelme, cvat or createml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stvit_cli.data.class_names import read_class_names
from stvit_cli.data.coco_index import CocoIndex, read_boxes
from stvit_cli.data.file_listing import require_folder
from stvit_cli.data.formats import ALL, KINDS, TITLES, read_format
from stvit_cli.errors import UserError
from stvit_cli.recipe import DataSection, DetectionSection

__all__ = ["KINDS", "Splits", "forget", "read_splits"]


class Splits(NamedTuple):
    """The checked annotations of a data set.

    Attributes:
        train: of the images to train on; of all images where the data set has no split.
        val: of those to evaluate on; None where a part of ``train`` is to be held out.
        notes: lines for the user.
    """

    train: CocoIndex | None
    val: CocoIndex | None
    notes: tuple[str, ...] = ()


_last: dict[tuple[object, ...], Splits] = {}
"""What was read last, until a run's sets are built of it: its head is chosen by its annotations before."""


def forget() -> None:
    """Forget what was read last."""
    _last.clear()


def read_splits(data: DataSection, detection: DetectionSection, class_names: Sequence[str] | None = None) -> Splits:
    """Read the data set of a recipe.

    Args:
        data: of the recipe.
        detection: of the recipe.
        class_names: those of a model to evaluate; None: the data set's own, or those of data.class_names_file. YOLO's ids mean
            what these say, whatever the model.

    Raises:
        UserError: see `formats.read_format` and `coco_index.read_coco`; also where there is a val split and none to train on.
    """
    root = require_folder(data.dir, "images and their annotations")
    names = None if data.kind == "yolo" or class_names is None else tuple(class_names)
    if names is None and data.class_names_file is not None:
        names = read_class_names(data.class_names_file, root)
    key = (data.kind, str(root), names, detection.invalid_annotations, detection.exif_orientation)
    if key not in _last:
        _last.clear()
        boxes = read_format(data.kind, root, names, stored_orientation=detection.exif_orientation == "ignore")
        read = {name: read_boxes(split, invalid=detection.invalid_annotations) for name, split in boxes.splits.items()}
        train = read.get("train", read.get(ALL))
        val = read.get("val", read.get("test"))
        notes = ("test/ is not used, as there is val/.",) if "val" in read and "test" in read else ()
        _last[key] = Splits(train, val, notes)
    splits = _last[key]
    if splits.train is None and class_names is None:
        raise UserError(f"{root}: {TITLES[data.kind]} data to evaluate on, but none to train on: there is no train/ or its like.")
    return splits
