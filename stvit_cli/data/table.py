"""Images and labels from tables: CSV, TSV, JSON Lines and Parquet, also Hugging Face's metadata files and embedded images.

N images, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.class_names import read_class_names
from stvit_cli.data.file_listing import same_name
from stvit_cli.data.held_out import group_images, held_out_note, hold_out_groups
from stvit_cli.data.images import decode_image, open_image
from stvit_cli.data.sampling import hold_out_of_classes
from stvit_cli.data.splits import NAMES, SPLIT_OF
from stvit_cli.data.table_columns import path_column, split_column
from stvit_cli.data.table_file import Table, read_tables
from stvit_cli.data.table_files import TableFiles, find_table_files, named_table
from stvit_cli.data.table_labels import Labels, present, refuse_rows, refuse_several, several_labels, single_labels, target_of
from stvit_cli.data.table_paths import resolve_paths, without_repeats
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

Target = int | NDArray[np.float32]
"""A class, or the presence of each class (K,)."""


@dataclass(frozen=True)
class TableOptions:
    """How a table is read: the recipe's keys of ``data``, by their names there."""

    dir: str | Path | None
    table: str | None = None
    val_table: str | None = None
    path_column: str | None = None
    label_column: str | tuple[str, ...] | None = None
    label_separator: str | None = None
    image_dir: str | None = None
    multi_label: bool | None = None
    class_names_file: str | None = None
    val_fraction: float = 0.2
    group_by: str | None = None
    test_split: str | None = None


class TableImages:
    """Images of some rows of a table.

    Args:
        class_names: K names.
        root: the folder that ``sources`` are relative to.
        sources: the path of each image, or the name of an embedded one.
        targets: the class of each image (N,), or the presence of each class (N, K).
        embedded: the encoded images, as Arrow's chunked array; None: ``sources`` are files.
        notes: remarks for the user.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        root: str | Path,
        sources: Sequence[str],
        targets: NDArray[np.int64] | NDArray[np.uint8],
        embedded: Any = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.class_names, self.notes = tuple(class_names), tuple(notes)
        self.targets, self.root, self._embedded = targets, str(root), embedded
        # One block of memory, which loader workers share; a million Python texts would be copied into each.
        encoded = [os.fsencode(source) for source in sources]
        self._ends = np.cumsum([len(source) for source in encoded], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, index: int) -> str:
        """Return the file, or the name of an embedded image."""
        return os.path.join(self.root, self.relative_path(index))

    def relative_path(self, index: int) -> str:
        """Return the path below ``root``; an absolute one if the table has it so."""
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._ends[index])])

    def target(self, index: int) -> Target:
        if self.targets.ndim == 2:
            present: NDArray[np.float32] = self.targets[index].astype(np.float32)
            return present
        return int(self.targets[index])

    def all_targets(self) -> NDArray[np.int64]:
        """Return the class of every image, (N,), or the presence of each class, (N, K)."""
        return self.targets.astype(np.int64)

    def open(self, index: int) -> Image.Image:
        """Return the image in mode RGB. Raises UserError as `open_image` does."""
        if self._embedded is None:
            return open_image(self.path(index))
        return decode_image(_image_bytes(self._embedded[index].as_py()), printable(self.path(index)))

    def fingerprint(self) -> str:
        """Return a hash of the classes, the images' names, their targets and the order of all."""
        total = hashlib.blake2b(json.dumps([same_name(name) for name in self.class_names]).encode(), digest_size=16)
        for part in (self._text, self._ends.astype("<i8").tobytes(), self.targets.astype("<i8").tobytes()):
            total.update(hashlib.blake2b(part, digest_size=16).digest())
        return total.hexdigest()


def _image_bytes(cell: Any) -> bytes:
    """Return the encoded image of a cell: bytes, or a struct of which one field is."""
    if isinstance(cell, dict):
        cell = next((value for value in cell.values() if isinstance(value, bytes)), None)
    return cell if isinstance(cell, bytes) else b""


def find_table_images(options: TableOptions) -> tuple[TableImages, TableImages]:
    """Return the training and the validation images of a table.

    Which are for validation is said, in this order, by ``val_table``, by a column named split, or by ``val_fraction``, which
    holds out a part of each class by the hashes of the paths.

    Args:
        options: how the table is read.

    Raises:
        UserError: a file, a column or a row is not as it has to be; it names it.
    """
    files = find_table_files(options.dir, options.table, options.val_table)
    train, val, notes = _divided(files, options)
    labels = _labels(train, options)
    numbered = () if options.class_names_file is None else read_class_names(options.class_names_file, options.dir)
    class_names = labels.names or numbered or labels.values
    if len(class_names) < (1 if options.multi_label else 2):
        raise UserError(
            f"{printable(str(train.files[0]))} has only one class, '{printable(class_names[0]) if class_names else ''}'; "
            "at least two are expected."
        )
    known_by = "the training table" if class_names == labels.values else f"{options.class_names_file or 'the training table'}"
    notes += [f"{printable(str(train.files[0]))}: {labels.note}."] if labels.note else []
    images = _images(train, labels, files.root, options, class_names, known_by, numbered)
    if val is not None:
        others = _images(val, _labels(val, options), files.root, options, class_names, known_by, numbered)
        notes += _shared_note(images, others)
    else:
        images, others = _held_out(images, options)
        others.notes = ()  # those of one table
    images.notes = (*notes, *images.notes, *_empty_classes(images))
    return images, others


def find_table_eval_images(
    options: TableOptions, *, class_names: Sequence[str] | None = None, all_images: bool = False
) -> TableImages:
    """Return the images of a table to evaluate on.

    Args:
        options: how the table is read.
        class_names: the model's classes; the table may lack some, but must have no others. None: the table's own.
        all_images: of a table without a split, return all images in place of the held-out part.

    Raises:
        UserError: as `find_table_images`; also a label that the model does not know.
    """
    if class_names is None:
        return find_table_images(options)[1]
    files = find_table_files(options.dir, options.table, options.val_table)
    train, val, _ = _divided(files, options)
    table = train if val is None else val
    numbered = () if options.class_names_file is None else read_class_names(options.class_names_file, options.dir)
    images = _images(table, _labels(table, options), files.root, options, class_names, "the model", numbered)
    return images if val is not None or all_images else _held_out(images, options)[1]


def find_table_test_images(options: TableOptions, class_names: Sequence[str], used: Sequence[TableImages]) -> TableImages:
    """Return the test images of a table.

    Args:
        options: how the table is read; its ``test_split`` is test, for the table or the rows of that name, or a file.
        class_names: those that are trained on.
        used: the training and the validation images.

    Raises:
        UserError: no table and no row is named test, there is no such file, or it has a label that is not trained on.
    """
    files = find_table_files(options.dir, options.table, options.val_table)
    table = _test_table(files, options)
    numbered = () if options.class_names_file is None else read_class_names(options.class_names_file, options.dir)
    images = _images(table, _labels(table, options), files.root, options, class_names, "the training table", numbered)
    images.notes = (*images.notes, *(note for other in used for note in _shared_note(other, images, "test")))
    return images


def _test_table(files: TableFiles, options: TableOptions) -> Table:
    split = options.test_split or ""
    if SPLIT_OF.get(split.casefold()) != "test":
        found = named_table(files.root, split, "data.test_split")
        if set(found) & {*files.train, *files.val}:
            raise UserError(f"data.test_split: {printable(split)} is trained on or chosen by, so that it is no test set.")
        return read_tables(found, "data.test_split")
    if files.test:
        return read_tables(files.test, "data.test_split")
    train = read_tables(files.train)
    column = split_column(train)
    cells = [] if column is None else train.columns[column]
    rows = np.array([row for row, cell in enumerate(cells) if SPLIT_OF.get(cell.casefold()) == "test"], dtype=np.int64)
    if not len(rows):
        raise UserError(
            f"data.test_split: no table is named test, and no row of {printable(str(files.train[0]))} has the split test. "
            "Name the file: data.test_split=FILE."
        )
    return train.take(rows)


def _divided(files: TableFiles, options: TableOptions) -> tuple[Table, Table | None, list[str]]:
    """Return the rows to train on, those to evaluate on where the tables say which, and notes."""
    train = read_tables(files.train)
    is_tested = SPLIT_OF.get((options.test_split or "").casefold()) == "test"
    if is_tested and files.val and files.val == files.test:  # there is none of val: a part of the training table is held out
        return train, None, list(train.notes)
    notes = [*([files.note] if files.note and not (is_tested and files.test) else []), *train.notes]
    if files.val:
        val = read_tables(files.val, "data.val_table")
        return train, val, [*notes, *val.notes]
    column = split_column(train)
    if column is None:
        return train, None, notes
    splits = [SPLIT_OF.get(cell.casefold(), "") for cell in train.columns[column]]
    if "" in splits:
        rows = [row for row, split in enumerate(splits) if not split]
        found = printable(train.columns[column][rows[0]])
        raise refuse_rows(train, rows, f"the {column} is '{found}', expected train, val or test")
    rows_of: dict[str, NDArray[np.int64]] = {
        split: np.array([row for row, name in enumerate(splits) if name == split], dtype=np.int64) for split in NAMES
    }
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in rows_of.items() if len(rows))
    if not len(rows_of["train"]):
        raise UserError(f"{printable(str(train.files[0]))}: its column '{column}' has {counts}, but no train.")
    used = "val" if len(rows_of["val"]) or is_tested else "test"
    if not len(rows_of[used]):
        of_train = train.take(rows_of["train"])
        which = "all rows are train" if len(of_train) == len(train) else counts
        return of_train, None, [*notes, f"column '{column}': {which}; a part of train is held out."]
    notes.append(f"column '{column}': {counts}; the evaluation is on {used}.")
    return train.take(rows_of["train"]), train.take(rows_of[used]), notes


def _labels(table: Table, options: TableOptions) -> Labels:
    if not options.multi_label:
        if isinstance(options.label_column, tuple):
            raise UserError("data.label_column: found several columns; columns of 0 and 1 are read with data.multi_label=true.")
        found = single_labels(table, options.label_column)
        if options.multi_label is None:
            refuse_several(table, found)
        return found
    split = split_column(table)
    others = [path_column(table, options.path_column), *([split] if split else [])]
    return several_labels(table, options.label_column, options.label_separator, others)


def _images(
    table: Table,
    labels: Labels,
    root: Path,
    options: TableOptions,
    class_names: Sequence[str],
    known_by: str,
    numbered: Sequence[str],
) -> TableImages:
    targets = target_of(labels, table, class_names, known_by, numbered)
    column = path_column(table, options.path_column)
    embedded = table.images.get(column)
    notes: list[str] = []
    if embedded is None:
        names, notes = resolve_paths(table, column, root, options.image_dir)
        keep, targets, more = without_repeats(table, names, targets, class_names)
        notes += more
        if len(keep) < len(names):
            names, targets = [names[row] for row in keep], [targets[row] for row in keep]  # type: ignore[assignment]
    else:
        names = [f"{os.path.relpath(table.files[of], root)}:{line}" for of, line in zip(table.file_of, table.lines, strict=True)]
    array = present(targets, len(class_names)) if options.multi_label else np.array(targets, dtype=np.int64)  # type: ignore[arg-type]
    return TableImages(class_names, root, names, array, embedded, notes)


def _held_out(images: TableImages, options: TableOptions) -> tuple[TableImages, TableImages]:
    """Divide images: of each class a part is held out, chosen by the hashes of the paths as the table has them."""
    if options.val_fraction == 0:
        raise UserError("data.val_fraction is 0 and the table has no split: no image is left for the validation.")
    names = [images.relative_path(index) for index in range(len(images))]
    if options.group_by is None:
        chosen = hold_out_of_classes(names, images.targets, options.val_fraction)
    else:
        groups = group_images(names, options.group_by)
        classes = [np.flatnonzero(row).tolist() if images.targets.ndim == 2 else [int(row)] for row in images.targets]
        chosen = hold_out_groups(groups, classes, options.val_fraction)
        images.notes = (*images.notes, held_out_note("The table", chosen, groups, options.group_by))
    if not chosen.any():
        raise UserError("The table has one image of each class, so none can be held out to evaluate on. Give data.val_table.")
    return _chosen(images, names, ~chosen), _chosen(images, names, chosen)


def _chosen(images: TableImages, names: Sequence[str], chosen: NDArray[np.bool_]) -> TableImages:
    rows = np.flatnonzero(chosen)
    embedded = None if images._embedded is None else images._embedded.take(rows)
    kept = [names[row] for row in rows.tolist()]
    return TableImages(images.class_names, images.root, kept, images.targets[rows], embedded, images.notes)


def _shared_note(train: TableImages, val: TableImages, name: str = "validation") -> list[str]:
    """Return a line on images that are in both sets, of which the second has a ``name``."""
    if train._embedded is not None:
        return []
    ours = {train.path(index) for index in range(len(train))}
    both = [path for path in map(val.path, range(len(val))) if path in ours]
    if not both:
        return []
    named = first_few([os.path.basename(path) for path in both], 3)
    return [f"Warning: {len(both)} images are in both the training and the {name} table ({named}): metrics will be too good."]


def _empty_classes(images: TableImages) -> list[str]:
    """Return a line on classes without a training image."""
    counts = Counter(images.targets.tolist()) if images.targets.ndim == 1 else dict(enumerate(images.targets.sum(0).tolist()))
    empty = [name for index, name in enumerate(images.class_names) if not counts.get(index)]
    return [f"There are no training images of {first_few(empty)}."] if empty else []
