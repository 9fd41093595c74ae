"""Pictures by class: ``train/`` and ``val/`` with a folder for each class, or one such folder, of which a share is held out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.folder_index import FolderIndex, index_folder
from stvit_cli.data.images import ENDINGS, open_image
from stvit_cli.data.order import hold_out
from stvit_cli.errors import UserError
from stvit_cli.recipe import DataSection
from stvit_cli.utils.text import did_you_mean, first_few

LAYOUT = "Expected a folder for each class, in train/ and val/ or side by side: cat/1.jpg, dog/2.jpg."


class FolderPictures:
    """Some pictures of an indexed folder. Targets count along ``class_names``."""

    def __init__(self, index: FolderIndex, class_names: Sequence[str], chosen: NDArray[np.bool_] | None = None) -> None:
        """Take the pictures where ``chosen`` is true (all without it); every class of the index must be in ``class_names``."""
        self.class_names = tuple(class_names)
        self._root, self._paths = str(index.root), index.paths
        position = {name: target for target, name in enumerate(class_names)}
        targets = np.repeat([position[name] for name in index.class_names], index.counts)
        ends = np.flatnonzero(np.frombuffer(index.paths, dtype=np.uint8) == 0)
        starts = np.concatenate([[0], ends[:-1] + 1])
        if chosen is not None:
            targets, starts, ends = targets[chosen], starts[chosen], ends[chosen]
        self._targets, self._starts, self._ends = targets, starts, ends

    def __len__(self) -> int:
        return len(self._targets)

    def path(self, index: int) -> str:
        return os.path.join(self._root, self.relative_path(index))

    def relative_path(self, index: int) -> str:
        """Return the path below the folder of the data set: class, then file."""
        return os.fsdecode(self._paths[self._starts[index] : self._ends[index]])

    def target(self, index: int) -> int:
        return int(self._targets[index])

    def open(self, index: int) -> Image.Image:
        """Return the picture in mode RGB; raises ``UserError`` where that cannot be."""
        return open_image(self.path(index))


def find_pictures(data: DataSection) -> tuple[FolderPictures, FolderPictures]:
    """Return the training and the validation pictures of ``data.dir``.

    Without ``train/`` and ``val/`` the share ``data.val_fraction`` of each class is held out: at least one picture of a class
    that has two. Which ones depends on the names of the files alone, so every run and every seed leaves out the same pictures.

    Raises:
        UserError: no such folder, no classes, a class without pictures, classes of train and val that differ.
    """
    root = _existing_folder(data.dir)
    parts = [part for part in ("train", "val") if (root / part).is_dir()]
    if len(parts) == 1:
        missing = "val" if parts == ["train"] else "train"
        others = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name not in parts)
        found = f" Beside it: {first_few(others)}." if others else ""
        raise UserError(f"{root} has {parts[0]}/ but no {missing}/.{found}\n{LAYOUT}")
    if parts:
        train, val = _index(root / "train"), _index(root / "val", min_classes=1)
        _refuse_different_classes(root, set(train.class_names), set(val.class_names))
        return FolderPictures(train, train.class_names), FolderPictures(val, train.class_names)
    if data.val_fraction == 0:
        raise UserError(f"data.val_fraction is 0 and {root} has no train/ and val/: no picture is left for the validation.")
    index = _index(root)
    held_out = _held_out(index, data.val_fraction)
    return FolderPictures(index, index.class_names, ~held_out), FolderPictures(index, index.class_names, held_out)


def find_eval_pictures(data: DataSection, class_names: Sequence[str] | None, whole: bool) -> FolderPictures:
    """Return the pictures of ``data.dir`` to evaluate on: those of ``val/``, else the held-out share, or with ``whole`` all.

    ``class_names`` are the model's classes: the folder may lack some of them, but must have no other.
    """
    root = _existing_folder(data.dir)
    if (root / "val").is_dir():
        index, chosen = _index(root / "val", min_classes=1), None
    elif (root / "train").is_dir():
        raise UserError(f"{root} has train/ but no val/ to evaluate on.\n{LAYOUT}")
    else:
        index = _index(root, min_classes=1)
        chosen = None if whole else _held_out(index, data.val_fraction)
    if class_names is None:
        return FolderPictures(index, index.class_names, chosen)
    unknown = sorted(set(index.class_names) - set(class_names))
    if unknown:
        raise UserError(
            f"{index.root} has class folders that the model does not know: {first_few(unknown)}.\n"
            f"It was trained on {len(class_names)} classes: {first_few(class_names)}.{did_you_mean(unknown[0], class_names)}"
        )
    return FolderPictures(index, class_names, chosen)


def _held_out(index: FolderIndex, fraction: float) -> NDArray[np.bool_]:
    """Choose the held-out share of each class by the hashes of the files' paths."""
    names = [os.fsdecode(path) for path in index.paths.split(b"\0")[:-1]]
    chosen, start = [], 0
    for count in index.counts:
        share = min(max(round(fraction * count), 1), count - 1)
        chosen.append(hold_out(names[start : start + count], share))
        start += count
    return np.concatenate(chosen)


def _existing_folder(name: str | None) -> Path:
    if not name:
        raise UserError("data.dir is not set: the folder of the pictures (on the command line: --data DIR).")
    root = Path(name).expanduser()
    if root.is_file():
        raise UserError(f"data.dir is {root}: a file, where a folder is expected.\n{LAYOUT}")
    if not root.is_dir():
        siblings = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"data.dir: there is no folder {root}.{did_you_mean(root.name, siblings)}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"data.dir: the folder {root} cannot be listed: no permission.")
    return root


def _index(root: Path, min_classes: int = 2) -> FolderIndex:
    """Index a folder of classes, and refuse one that nothing can be learnt from."""
    index = index_folder(root)
    if not index.class_names:
        flat = [entry.name for entry in root.iterdir() if entry.name.lower().endswith(ENDINGS)]
        found = (
            f"has pictures ({first_few(sorted(flat))}) but no class folders" if flat else "has no pictures and no class folders"
        )
        raise UserError(f"{root} {found}.\n{LAYOUT}")
    empty = [name for name, count in zip(index.class_names, index.counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"{root}: class folders without pictures: {first_few(empty)}.{_other_endings(root / empty[0])}\n"
            f"Pictures end in {' '.join(ENDINGS)}. Remove a folder that is no class."
        )
    if len(index.class_names) < min_classes:
        only = root / index.class_names[0]
        inner = sorted(entry.name for entry in only.iterdir() if entry.is_dir())
        hint = f" It holds the folders {first_few(inner)}: are these the classes? Then give {only}." if inner else ""
        raise UserError(f"{root} has only one class folder, '{only.name}'; at least two classes are expected.{hint}")
    return index


def _other_endings(folder: Path) -> str:
    endings = sorted({entry.suffix.lower() for entry in folder.rglob("*") if entry.suffix and entry.is_file()})
    return f" Found there: files ending in {first_few(endings)}." if endings else ""


def _refuse_different_classes(root: Path, train: set[str], val: set[str]) -> None:
    if train == val:
        return
    only = [
        f"only in {part}/: {first_few(sorted(names))}" for part, names in (("train", train - val), ("val", val - train)) if names
    ]
    raise UserError(f"{root}: train/ and val/ have different classes.\n" + "\n".join(only))
