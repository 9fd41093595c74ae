"""The training, validation and test images of a data set in shards. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.class_names import read_class_names, require_model_names
from stvit_cli.data.held_out import group_images, held_out_note, hold_out_groups
from stvit_cli.data.sampling import derive_seed
from stvit_cli.data.shards.images import ShardImages
from stvit_cli.data.shards.index import ShardIndex, open_shards
from stvit_cli.data.shards.index_builder import Advance
from stvit_cli.data.shards.index_file import require_same_names
from stvit_cli.data.shards.splits import EXPECTED, Described, described, shards_of, split_of
from stvit_cli.data.shards.storage import ShardFile, common_root, is_remote, list_shards
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable


@dataclass(frozen=True)
class ShardOptions:
    """How a data set in shards is read; the names are those of the recipe's keys.

    Attributes:
        dir: a folder, a URL or a pattern of shards.
        train_split: the shards to train on: a split by its name, or a pattern of file names.
        val_split: the shards to evaluate on. None: those of val, else a part of the training shards' images.
        test_split: test shards, of which nothing is read but in `find_shard_test_images`.
        label_column: field of ``.json``, or column of Parquet, with the label.
        path_column: column of Parquet with the image.
        class_names: in the order of their numbers.
        class_names_file: with these names.
        val_fraction: part of each class that is held out where there are no shards of val.
        group_by: as for `imagefolder.find_images`, searched in the shard's name and the file in it.
        unreadable: skip uses of damaged shards what can be read.
    """

    dir: str | None
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = None
    label_column: str | None = None
    path_column: str | None = None
    class_names: tuple[str, ...] = ()
    class_names_file: str | None = None
    val_fraction: float = 0.2
    group_by: str | None = None
    unreadable: Literal["stop", "skip"] = "stop"


class _Source:
    """The shards of a data set, and what is said about them."""

    def __init__(self, options: ShardOptions, advance: Advance = lambda done, total: None) -> None:
        if not options.dir:
            raise UserError("data.dir is not set. Set it to the folder, the URL or the pattern of the shards: data.dir=DIR.")
        self.options, self.advance = options, advance
        self.files = list_shards(options.dir)
        self.about: Described = described(self.files)
        self.notes: list[str] = []

    def shards(self, split: str, key: str) -> list[ShardFile]:
        return shards_of(self.files, split, self.about, key)

    def train_shards(self) -> list[ShardFile]:
        split = self.options.train_split
        found = self.shards(split, "data.train_split")
        if found:
            return found
        if split == "train" and not any(split_of(file.name) for file in self.files) and not self.about.splits:
            return self.files  # not divided
        example = EXPECTED.format("data.train_split", "'*-{0000..0099}.tar'")
        raise UserError(
            f"data.train_split: {printable(str(self.options.dir))} has no shards of {printable(split)}: "
            f"{first_few([file.name for file in self.files], 3)}.\n{example}"
        )

    def val_shards(self) -> list[ShardFile]:
        split = self.options.val_split
        found = self.shards(split or "val", "data.val_split")
        if split is not None and not found:
            raise UserError(
                f"data.val_split: {printable(str(self.options.dir))} has no shards of {printable(split)}: "
                f"{first_few([file.name for file in self.files], 3)}."
            )
        return found

    def open(self, files: Sequence[ShardFile], split: str, class_names: Sequence[str] = ()) -> ShardIndex:
        options = self.options
        return open_shards(
            files,
            label_column=options.label_column or self.about.label_field(split),
            image_column=options.path_column,
            class_names=class_names,
            damaged=options.unreadable,
            advance=self.advance,
        )

    def names(self) -> tuple[str, ...]:
        """Return the class names that the recipe or a file beside the shards gives."""
        options = self.options
        if options.class_names:
            return options.class_names
        if options.class_names_file is not None:
            root = common_root(self.files)
            folder = None if is_remote(root) or Path(options.class_names_file).is_absolute() else root
            return read_class_names(options.class_names_file, folder)
        return ()

    def open_train(self) -> ShardIndex:
        """Open the training shards, with the names of the recipe, or else of a file beside the shards where these fit."""
        return self.with_found_names(self.open(self.train_shards(), self.options.train_split, self.names()), say=True)

    def with_found_names(self, index: ShardIndex, *, say: bool = False) -> ShardIndex:
        """Return an index with the names of a file beside the shards: where the recipe gives none, and they fit its labels."""
        found = self.about.class_names
        if self.names() or not found:
            return index
        if _named(index.class_names):
            return index.with_class_names(found) if set(index.class_names) <= set(found) else index
        if len(found) < len(index.class_names):
            return index
        if say:
            self.notes.append(f"names of the classes: {printable(self.about.names_file)}, in its order.")
        return index.with_class_names(found)


def _named(names: Sequence[str]) -> bool:
    return tuple(names) != tuple(str(number) for number in range(len(names)))


def find_shard_images(options: ShardOptions, advance: Advance = lambda done, total: None) -> tuple[ShardImages, ShardImages]:
    """Return the training and the validation images of a data set in shards.

    Without shards of val, a part of each class of the training images is held out; test shards are never used for it.

    Args:
        options: how to read it.
        advance: called with the number of shards whose headers are read, and of all.

    Raises:
        UserError: there are no such shards, one is damaged, or there are no labels.
    """
    source = _Source(options, advance)
    index = source.open_train()
    val_files = source.val_shards()
    test = [file.name for file in source.files if split_of(file.name) == "test"]
    if test and options.test_split is None:
        source.notes.append(f"{len(test)} shards of test are left out; data.test_split=test evaluates the best weights on them.")
    overlap = {file.path for file in index.files} & {file.path for file in val_files}
    if overlap:
        raise UserError(f"data.val_split: {printable(min(overlap))} is trained on too. Give other shards.")
    if not val_files:
        return _held_out(source, index)
    val_index = source.open(val_files, options.val_split or "val", index.class_names if _named(index.class_names) else ())
    _require_same_classes(index, val_index)
    names = max(index.class_names, val_index.class_names, key=len)
    train = _labelled(index, names, [*source.notes, *index.notes])
    return train, _labelled(val_index, names, val_index.notes)


def _require_same_classes(index: ShardIndex, other: ShardIndex) -> None:
    """Raise UserError where the files themselves number other classes in two splits."""
    if index.content.names and other.content.names:
        require_same_names(index.files[0].name, index.content.names, other.files[0].name, other.content.names)


def _labelled(index: ShardIndex, names: Sequence[str], notes: Sequence[str]) -> ShardImages:
    """Return the images with a label. Raises UserError where there are none, or all are of one class."""
    images = ShardImages(index, class_names=names, notes=notes)
    missing = len(index) - len(images)
    where = printable(index.files[0].path)
    if not len(images):
        raise UserError(
            f"{where}: none of {len(index)} images has a label. Expected .cls or .json beside each image, or a column of Parquet;"
            " data.label_column names the field or the column."
        )
    if missing:
        images.notes += (f"{where} and others: {missing} images without a label are left out.",)
    if len(names) < 2:
        raise UserError(f"{where}: all images are of one class, {printable(str(names[0]))}; expected two or more.")
    return images


def _held_out(source: _Source, index: ShardIndex) -> tuple[ShardImages, ShardImages]:
    options, where = source.options, printable(str(source.options.dir))
    images = _labelled(index, index.class_names, [*source.notes, *index.notes])
    if options.val_fraction == 0:
        raise UserError(
            f"data.val_fraction is 0 and {where} has no shards of val: no image is left for the validation. Give data.val_split."
        )
    positions = np.flatnonzero(index.labels() >= 0)
    if options.group_by is not None:
        groups = group_images([images.relative_path(number) for number in range(len(images))], options.group_by)
        held_out = hold_out_groups(groups, [{target} for target in images.all_targets().tolist()], options.val_fraction)
        note = held_out_note(where, held_out, groups, options.group_by)
    else:
        held_out = hold_out_positions(index, positions, images.all_targets(), options.val_fraction)
        note = f"{where} has no shards of val: {int(held_out.sum())} of {len(images)} images are held out for validation."
    if not held_out.any() or held_out.all():
        raise UserError(f"{where}: no image can be held out for validation; give shards of val, or data.val_split.")
    train = ShardImages(index, positions[~held_out], notes=(*images.notes, note))
    return train, ShardImages(index, positions[held_out])


def hold_out_positions(
    index: ShardIndex, positions: NDArray[np.int64], targets: NDArray[np.int64], fraction: float
) -> NDArray[np.bool_]:
    """Choose a fraction of each class by hashes of the shard's name and the position in it; at least one, and not all.

    Args:
        index: of the shards.
        positions: of the images to choose from, (N,), ascending.
        targets: their classes, (N,).
        fraction: of the images of a class.

    Returns:
        A mask of shape (N,). The same for every run, seed and folder; seconds for ten million images.
    """
    shards = np.searchsorted(index.shard_starts, positions, side="right") - 1
    seeds = np.array([derive_seed("held out", file.name.rpartition("/")[2]) for file in index.files], dtype=np.uint64)
    hashes = mixed(seeds[shards] + (positions - index.shard_starts[shards]).astype(np.uint64))
    order = np.lexsort((hashes, targets))
    counts = np.bincount(targets)
    shares = np.maximum(np.minimum(np.maximum(np.rint(fraction * counts).astype(np.int64), 1), counts - 1), 0)
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(order), dtype=np.bool_)
    chosen[order] = ranks < np.repeat(shares, counts)
    return chosen


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of each number: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

    >>> mixed(np.array([1, 2], dtype=np.uint64)) % np.uint64(1000)
    array([465, 110], dtype=uint64)
    """
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def find_shard_eval_images(
    options: ShardOptions, class_names: Sequence[str] | None = None, *, all_images: bool = False
) -> ShardImages:
    """Return the images to evaluate on: those of the shards of val, else the held-out part.

    Args:
        options: how to read the data set.
        class_names: the model's classes, which must be those of the data. None: the data's own.
        all_images: without shards of val, return all images in place of the held-out part.
    """
    source = _Source(options)
    val_files = source.val_shards()
    if val_files or all_images:
        split = options.val_split or "val"
        names = source.names()
        index = source.with_found_names(source.open(val_files or source.train_shards(), split, names))
        if not names and class_names is not None and _named(index.class_names) and set(index.class_names) <= set(class_names):
            index = index.with_class_names(class_names)
        images = ShardImages(index, notes=[*source.notes, *index.notes])
    else:
        images = _held_out(source, source.open_train())[1]
    if class_names is not None:
        images.class_names = require_model_names(images.class_names, class_names, printable(str(options.dir)))
    return images


def find_shard_test_images(options: ShardOptions, class_names: Sequence[str], used: Sequence[ShardImages]) -> ShardImages:
    """Return the test images beside those of a run.

    Args:
        options: how to read the data set; ``test_split`` names the shards.
        class_names: of the training images.
        used: the images that are trained on or chosen by.

    Raises:
        UserError: there are no such shards, they are used already, or they have no labels or other classes.
    """
    source, split = _Source(options), options.test_split or "test"
    files = source.shards(split, "data.test_split")
    if not files:
        names = first_few([file.name for file in source.files], 3)
        raise UserError(f"data.test_split: {printable(str(options.dir))} has no shards of {printable(split)}: {names}.")
    known = {file.path for images in used for file in images.index.files}
    if not used:
        known = {file.path for file in [*source.train_shards(), *source.val_shards()]}
    if known & {file.path for file in files}:
        raise UserError(
            f"data.test_split: {printable(split)} is trained on or chosen by, so that it is no test set. "
            "Give other shards, or data.test_split=null."
        )
    index = source.open(files, split, class_names if _named(class_names) else ())
    for images in used:
        _require_same_classes(images.index, index)
    if len(index.class_names) > len(class_names):
        raise UserError(
            f"data.test_split: {printable(files[0].path)} has {len(index.class_names)} classes, but {len(class_names)} are "
            "trained on."
        )
    return _labelled(index, class_names, index.notes)
