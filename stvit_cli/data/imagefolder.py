"""Folders of images by class: ``train/`` and ``val/``, or one folder of which a part is held out for validation."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.file_listing import entries, folders_in, left_out_note, list_files, require_folder, same_name
from stvit_cli.data.folder_index import FolderIndex, index_folder
from stvit_cli.data.held_out import group_images, held_out_note, hold_out_groups
from stvit_cli.data.images import ENDINGS, open_image
from stvit_cli.data.sampling import hold_out
from stvit_cli.data.splits import LAYOUT, SPLIT_OF, Splits, find_splits
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, printable

HASHED_AT_ONCE = 1 << 18
"""Number of paths that are hashed at once, so that the fingerprint of millions takes little memory."""


class FolderImages:
    """Some images of an indexed folder. Targets count along ``class_names``."""

    def __init__(
        self,
        index: FolderIndex,
        class_names: Sequence[str],
        chosen: NDArray[np.bool_] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Take the images where ``chosen`` is true (all without it).

        Args:
            index: the images of the folder, by class.
            class_names: every class of the index that has images must be among them, in any spelling of Unicode.
            chosen: a boolean for each image of the index.
            notes: remarks on the folder for the user.
        """
        self.class_names, self.notes = tuple(class_names), tuple(notes)
        self._root, self._paths = str(index.root), index.paths
        position = {same_name(name): target for target, name in enumerate(class_names)}
        classes = zip(index.class_names, index.counts, strict=True)
        of_class = [position[same_name(name)] if count else 0 for name, count in classes]
        targets = np.repeat(np.array(of_class, dtype=np.int64), index.counts)
        ends = np.flatnonzero(np.frombuffer(index.paths, dtype=np.uint8) == 0)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
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
        """Return the image in mode RGB. Raises UserError as `open_image` does."""
        return open_image(self.path(index))

    def all_targets(self) -> NDArray[np.int64]:
        """Return the class of every image, (N,)."""
        return self._targets

    def with_classes(self, class_names: Sequence[str]) -> FolderImages:
        """Return the same images with targets along ``class_names``. Raises UserError where a folder is none of them."""
        position = {same_name(name): target for target, name in enumerate(class_names)}
        unknown = [name for name in self.class_names if same_name(name) not in position]
        if unknown:
            raise UserError(
                f"data.class_names_file: {printable(self._root)} has class folders that are none of its {len(class_names)} "
                f"names: {first_few(unknown)}.{did_you_mean(unknown[0], class_names)}"
            )
        images = copy.copy(self)
        images.class_names = tuple(class_names)
        table = np.array([position[same_name(name)] for name in self.class_names], dtype=np.int64)
        images._targets = table[self._targets]
        return images

    def fingerprint(self) -> str:
        """Return a hash of the classes, the images' paths, their targets and the order of all; seconds for ten million."""
        total = hashlib.blake2b(json.dumps([same_name(name) for name in self.class_names]).encode(), digest_size=16)
        content = np.frombuffer(self._paths, dtype=np.uint8)
        for first in range(0, len(self), HASHED_AT_ONCE):
            part = slice(first, first + HASHED_AT_ONCE)
            starts, ends = self._starts[part], self._ends[part] + 1  # the zero byte too: it keeps paths apart
            taken = np.zeros(int(ends[-1] - starts[0]) + 1, dtype=np.int8)
            taken[starts - starts[0]] += 1
            taken[ends - starts[0]] -= 1
            total.update(content[starts[0] : ends[-1]][np.cumsum(taken[:-1], dtype=np.int8).astype(np.bool_)].tobytes())
            total.update(self._targets[part].astype("<i8").tobytes())
        return total.hexdigest()


def find_images(
    folder: str | Path | None, val_fraction: float = 0.2, *, group_by: str | None = None, test_split: str | None = None
) -> tuple[FolderImages, FolderImages]:
    """Return the training and the validation images of a folder.

    Without ``train/`` and ``val/`` (see `splits` for their other names) a part of each class is held out for validation: at
    least one image of each class that has two. The choice depends on the file names alone, so every run and every seed holds
    out the same images.

    Args:
        folder: ``data.dir``.
        val_fraction: fraction of each class that is held out where the folder is not split.
        group_by: keeps the images of a group together there, see `held_out.group_images`.
        test_split: a folder whose images are for neither; with it, ``train/`` needs no ``val/``: a part is held out.

    Raises:
        UserError: no such folder, no classes, a class without images, classes of val that train does not have, or nothing
            to evaluate.
    """
    root = require_folder(folder, "images", LAYOUT)
    splits = find_splits(root)
    if test_split is not None:
        test = _test_folder(root, splits, test_split)
        if splits.train is not None and splits.val in (None, test):
            return _one_folder(root / splits.train, val_fraction, group_by)
        splits = replace(splits, left_out=test)
    if splits.train is None and splits.val is None:
        return _one_folder(root, val_fraction, group_by)
    if splits.train is None or splits.val is None:
        here, missing = splits.train or splits.val or "", "val" if splits.val is None else "train"
        others = [name for name in folders_in(root) if name != here]
        found = f" Beside it: {first_few(others)}." if others else ""
        instead = f" To hold out a part of {here}/ instead: data.dir={root / here}" if here == splits.train else ""
        raise UserError(f"{root} has {here}/ but no {missing}/.{found}{instead}\n{LAYOUT}")
    train, val = _index(root / splits.train), _index(root / splits.val, min_classes=1)
    notes = _notes(root / splits.train, train)
    if lacking := _only_in_train(root, (splits.train, train.class_names), (splits.val, val.class_names)):
        notes.append(f"{splits.val}/ has no folder of {first_few(lacking)}: trained on, but the evaluation has none of it.")
    if splits.left_out is not None and test_split is None:
        notes.append(f"{splits.left_out}/ is left out: the evaluation is on {splits.val}/.")
    others = [name for name in folders_in(root) if name not in (splits.train, splits.val, splits.left_out)]
    if others:
        notes.append(f"Beside {splits.train}/ and {splits.val}/, not used: {first_few(others)}.")
    return FolderImages(train, train.class_names, notes=notes), FolderImages(
        val, train.class_names, notes=_notes(root / splits.val, val)
    )


def _one_folder(root: Path, fraction: float, group_by: str | None) -> tuple[FolderImages, FolderImages]:
    """Return the images of an undivided folder, those held out apart."""
    if fraction == 0:
        raise UserError(f"data.val_fraction is 0 and {root} has no train/ and val/: no image is left for the validation.")
    index = _index(root)
    held_out, note = _held_out(index, fraction, group_by)
    notes = [*_notes(root, index), *note]
    alone = [name for name, count in zip(index.class_names, index.counts, strict=True) if count == 1]
    if alone:
        notes.append(f"Of {first_few(alone)} there is only one image: it is trained on, so the evaluation has none of it.")
    return FolderImages(index, index.class_names, ~held_out, notes), FolderImages(index, index.class_names, held_out)


def find_eval_images(
    folder: str | Path | None,
    val_fraction: float = 0.2,
    *,
    class_names: Sequence[str] | None = None,
    all_images: bool = False,
    group_by: str | None = None,
    test_split: str | None = None,
) -> FolderImages:
    """Return the images of a folder to evaluate on: those of ``val/`` or, where the folder is not split, the held-out part.

    Args:
        folder: ``data.dir``.
        val_fraction: as for `find_images`.
        class_names: the model's classes: the folder may lack some of them, but must have no others. None: the folder's own.
        all_images: of a folder that is not split, return all images in place of the held-out part.
        group_by: as for `find_images`.
        test_split: as for `find_images`, but the folder need not be there.

    Raises:
        UserError: as `find_images`; also a class that the model does not have.
    """
    root = require_folder(folder, "images", LAYOUT)
    splits = find_splits(root, class_names or ())
    is_tested = test_split is not None and splits.val is not None and same_name(splits.val) == same_name(test_split)
    if is_tested and splits.train is not None:
        index = _index(root / splits.train, min_classes=1, empty_too=True)
        chosen = _held_out(index, val_fraction, group_by)[0]
    elif splits.val is not None:
        index, chosen = _index(root / splits.val, min_classes=1, empty_too=True), None
    elif splits.train is not None:
        raise UserError(f"{root} has {splits.train}/ but no val/ to evaluate on.\n{LAYOUT}")
    else:
        index = _index(root, min_classes=1, empty_too=True)
        chosen = None if all_images else _held_out(index, val_fraction, group_by)[0]
    return _with_classes(index, class_names, chosen, _notes(index.root, index))


def find_test_images(folder: str | Path | None, test_split: str, class_names: Sequence[str]) -> FolderImages:
    """Return the test images beside those of ``train/``.

    Args:
        folder: ``data.dir``.
        test_split: the folder there, such as ``test``.
        class_names: those that are trained on: the folder may lack some of them, but must have no others.

    Raises:
        UserError: there is no such folder, it is the one to train on or to choose by, or it has another class.
    """
    root = require_folder(folder, "images", LAYOUT)
    index = _index(root / _test_folder(root, find_splits(root), test_split), min_classes=1, empty_too=True)
    return _with_classes(index, class_names, None, _notes(index.root, index))


def _test_folder(root: Path, splits: Splits, test_split: str) -> str:
    """Return the name of the folder of the test images as it is on the disk."""
    found = next((name for name in folders_in(root) if same_name(name).casefold() == same_name(test_split).casefold()), None)
    if splits.train is None or found is None:
        missing = f"no {test_split}/" if found is None else f"{found}/ but no train/ beside it"
        guess = did_you_mean(test_split, folders_in(root)) if found is None else ""
        raise UserError(f"data.test_split: {printable(str(root))} has {printable(missing)}.{guess}")
    if found == splits.train or (found == splits.val and SPLIT_OF.get(found.casefold()) == "val"):
        raise UserError(
            f"data.test_split: {found}/ is trained on or chosen by, so that it is no test set. "
            "Give another folder, or data.test_split=null."
        )
    return found


def _with_classes(
    index: FolderIndex, class_names: Sequence[str] | None, chosen: NDArray[np.bool_] | None, notes: Sequence[str]
) -> FolderImages:
    """Return images of a folder with a model's classes, or with its own; refuse classes that the model does not know."""
    if class_names is None:
        return FolderImages(index, index.class_names, chosen, notes)
    known = {same_name(name) for name in class_names}
    found = [name for name, count in zip(index.class_names, index.counts, strict=True) if count]
    unknown = sorted(name for name in found if same_name(name) not in known)
    if unknown:
        raise UserError(
            f"{index.root} has class folders that the model does not know: {first_few(unknown)}.\n"
            f"It was trained on {len(class_names)} classes: {first_few(class_names)}.{did_you_mean(unknown[0], class_names)}"
        )
    return FolderImages(index, class_names, chosen, notes)


def _notes(folder: Path, index: FolderIndex) -> list[str]:
    """Return remarks on a folder of classes for the user."""
    notes = [f"{folder}: {note}" for note in left_out_note(dict(index.other_endings))]
    empty = [name for name, count in zip(index.class_names, index.counts, strict=True) if not count]
    if empty:
        notes.append(f"{folder}: no images of {first_few(empty)}.")
    flat = [entry.name for entry in entries(folder) if entry.name.lower().endswith(ENDINGS) and not entry.is_dir()]
    if flat:
        images = f"{flat[0]} lies" if len(flat) == 1 else f"{len(flat)} images lie"
        notes.append(f"{folder}: {images} beside the class folders and belongs to no class, so it is left out.")
    return notes


def _held_out(index: FolderIndex, fraction: float, group_by: str | None) -> tuple[NDArray[np.bool_], list[str]]:
    """Choose the held-out share of each class by the hashes of the files' paths, or of groups of them.

    Returns:
        Whether each image is held out, and a note for the user where there are groups.

    Raises:
        UserError: none can be held out.
    """
    if max(index.counts) < 2:
        raise UserError(
            f"{index.root} has one image of each class, so none can be held out to evaluate on.\n"
            "Add images, or give a folder with train/ and val/, whose classes have at least an image each."
        )
    names = [os.fsdecode(path) for path in index.paths.split(b"\0")[:-1]]
    if group_by is not None:
        groups = group_images(names, group_by)
        if len(set(groups)) < 2:
            raise UserError(f"{index.root}: all images are one group by data.group_by, so none can be held out to evaluate on.")
        classes = [{target} for target in np.repeat(np.arange(len(index.counts)), index.counts).tolist()]
        held_out = hold_out_groups(groups, classes, fraction)
        return held_out, [held_out_note(str(index.root), held_out, groups, group_by)]
    chosen, start = [], 0
    for count in index.counts:
        share = max(min(max(round(fraction * count), 1), count - 1), 0)
        chosen.append(hold_out(names[start : start + count], share))
        start += count
    return np.concatenate(chosen), []


def _index(root: Path, min_classes: int = 2, empty_too: bool = False) -> FolderIndex:
    """Index a folder of classes, and refuse one that cannot be learnt from, or evaluated on (``empty_too``)."""
    index = index_folder(root)
    if not index.class_names:
        flat = [entry.name for entry in entries(root) if entry.name.lower().endswith(ENDINGS)]
        found = f"has images ({first_few(sorted(flat))}) but no class folders" if flat else "has no images and no class folders"
        raise UserError(f"{root} {found}.\n{LAYOUT}")
    empty = [name for name, count in zip(index.class_names, index.counts, strict=True) if not count]
    if empty and not (empty_too and len(index.paths)):
        raise UserError(
            f"{root}: class folders without images: {first_few(empty)}.{_other_endings(root, empty[0])}\n"
            f"Images end in {' '.join(ENDINGS)}. Remove a folder that is no class."
        )
    if len(index.class_names) < min_classes:
        only = root / index.class_names[0]
        inner = folders_in(only)
        hint = f" It holds the folders {first_few(inner)}: are these the classes? Then give {only}." if inner else ""
        raise UserError(f"{root} has only one class folder, '{printable(only.name)}'; at least two classes are expected.{hint}")
    return index


def _other_endings(root: Path, folder: str) -> str:
    endings = sorted(ending for ending in list_files(root, folder).other_endings if ending)
    return f" Found there: files ending in {first_few(endings)}." if endings else ""


def _only_in_train(root: Path, train: tuple[str, Sequence[str]], val: tuple[str, Sequence[str]]) -> list[str]:
    """Return the classes that only the first of two splits has, each given by its name and its classes.

    Raises:
        UserError: the second has classes that the first does not have.
    """
    ours, theirs = ({same_name(name): name for name in names} for _, names in (train, val))
    only = {
        split: sorted(mine[name] for name in mine.keys() - others.keys())
        for (split, _), mine, others in ((train, ours, theirs), (val, theirs, ours))
    }
    if not only[val[0]]:
        return only[train[0]]
    lines = [f"only in {split}/: {first_few(names)}" for split, names in only.items() if names]
    if only[train[0]]:
        lines[-1] += f".{did_you_mean(only[val[0]][0], only[train[0]])}".rstrip(".")
    raise UserError(
        f"{root}: {train[0]}/ and {val[0]}/ have different classes.\n"
        + "\n".join(lines)
        + f"\nRename or move the folders that are only in {val[0]}/: what is not trained on cannot be evaluated."
    )
