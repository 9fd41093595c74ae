"""Which files of a folder are the tables of a data set, and of which split. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stvit_cli.data.file_listing import entries, folders_in
from stvit_cli.data.splits import SPLIT_OF
from stvit_cli.data.table_file import ENDINGS
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling
from stvit_cli.utils.text import first_few, printable

_SPLIT_OF = SPLIT_OF | {"dev": "val"}
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class TableFiles:
    """The tables of a data set.

    Attributes:
        root: its folder.
        train: tables to train on; with ``val`` empty, of all images.
        val: tables to evaluate on.
        test: tables of test images, by their name; ``val`` where there is no other.
        note: what was found, where the user did not say it.
    """

    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    note: str = ""
    test: tuple[Path, ...] = ()


def find_table_files(data_dir: str | Path | None, table: str | None, val_table: str | None) -> TableFiles:
    """Find the tables of a data set.

    Args:
        data_dir: ``data.dir``: the folder of the data set, or its table itself.
        table: ``data.table``, relative to ``data_dir``; None: found by its name.
        val_table: ``data.val_table``; None: found by its name, with ``table`` None.

    Raises:
        UserError: no table is there, or several could be it; the message names them.
    """
    if not data_dir:
        raise UserError("data.dir is not set. Set it to the table of images and labels, or to its folder: data.dir=DIR.")
    root = Path(data_dir).expanduser()
    if root.is_file():
        if table is not None:
            raise UserError(f"data.table: found {table}, but data.dir is a table itself: {printable(str(root))}.")
        return TableFiles(root.parent, (root,), named_table(root.parent, val_table, "data.val_table"))
    if not root.is_dir():
        raise UserError(f"data.dir: there is no file or folder {printable(str(root))}.{nearest_sibling(root)}")
    if table is not None:
        return TableFiles(root, named_table(root, table, "data.table"), named_table(root, val_table, "data.val_table"))
    if val_table is not None:
        raise UserError("data.val_table: found it without data.table, the table to train on; set both.")
    return _found(root)


def named_table(root: Path, name: str | None, key: str) -> tuple[Path, ...]:
    """Return the table of a key's value, none where it is None. Raises UserError where there is no such file."""
    if name is None:
        return ()
    path = root / Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{key}: there is no file {printable(str(path))}.{nearest_sibling(path, Path.is_file)}")
    return (path,)


def _found(root: Path) -> TableFiles:
    """Find the tables by their names: of a split in the file's name or its folder's, or the only one there is."""
    by_split: dict[str, list[Path]] = {"train": [], "val": [], "test": [], "": []}
    for path in _candidates(root):
        by_split[_split_of(path, root)].append(path)
    undivided = by_split.pop("")
    for split, paths in by_split.items():
        if len(paths) > 1 and not all(_SHARD.search(path.name) for path in paths):
            metadata = [path for path in paths if path.stem == "metadata"]
            if len(metadata) != 1:
                raise _which(root, paths, f"several could be the table of {split}")
            by_split[split] = metadata
    train, val, test = (tuple(by_split[split]) for split in ("train", "val", "test"))
    if train:
        if not val and test:
            return TableFiles(root, train, test, f"there is no table of val: the evaluation is on {_names(root, test)}.", test)
        left_out = f"; left out: {_names(root, test)}" if test else ""
        shown = f"{_names(root, train)}{' and ' + _names(root, val) if val else ''}"
        return TableFiles(root, train, val, f"tables: {shown}{left_out}.", test)
    if len(undivided) == 1 and not val and not test:
        return TableFiles(root, tuple(undivided), (), f"table: {_names(root, undivided)}.")
    if undivided and all(_SHARD.search(path.name) for path in undivided) and not val and not test:
        return TableFiles(root, tuple(undivided), (), f"table: {_names(root, undivided)}.")
    if not undivided and not val and not test:
        raise UserError(
            f"{printable(str(root))} has no table of images and labels.\n"
            f"Expected a file that ends in {', '.join(ENDINGS)}, there or in data/ or train/; or name it: data.table=FILE."
        )
    raise _which(
        root, [*undivided, *val, *test], "several could be the table to train on" if undivided else "there is none of train"
    )


def _which(root: Path, paths: Sequence[Path], what: str) -> UserError:
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    lines = "".join(f"\n  data.table={printable(name)}" for name in names[:4])
    return UserError(f"{printable(str(root))}: {what}. Which one? Add one of, and data.val_table where there is one:{lines}")


def _names(root: Path, paths: Sequence[Path]) -> str:
    return first_few([path.relative_to(root).as_posix() for path in paths], 2)


def _candidates(root: Path) -> list[Path]:
    """Return the tables in the folder, in data/ and in folders named after a split, sorted."""
    folders = [root, *(root / name for name in folders_in(root) if name.casefold() in _SPLIT_OF or name.casefold() == "data")]
    return sorted(
        folder / entry.name
        for folder in folders
        for entry in entries(folder)
        if entry.name.lower().endswith(ENDINGS) and entry.is_file()
    )


def _split_of(path: Path, root: Path) -> str:
    """Return train, val or test by the name of a table or of its folder; "" where neither says it."""
    if path.parent != root and path.parent.name.casefold() in _SPLIT_OF:
        return _SPLIT_OF[path.parent.name.casefold()]
    found = {_SPLIT_OF[word] for word in re.split(r"[^a-z]+", path.stem.casefold()) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else ""
