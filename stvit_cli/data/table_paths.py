"""The paths of the images in a table: relative to what, and whether they are there. Imports no torch."""

from __future__ import annotations

import ntpath
import os
from collections.abc import Sequence
from pathlib import Path

from stvit_cli.data.file_listing import folders_in
from stvit_cli.data.table_file import Table, names_image
from stvit_cli.data.table_labels import refuse_rows
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, printable

NUM_TRIED = 20
"""Paths that are tried to find out what all are relative to."""

NUM_FOLDERS = 100
"""Folders that are tried at most, of each level."""


def resolve_paths(
    table: Table, column: str, root: Path, image_dir: str | None, path_key: str = "data.path_column"
) -> tuple[list[str], list[str]]:
    """Return the path of each row's image, relative to ``root`` unless it is written as absolute, and notes for the user.

    Relative paths are below the folder of their table (as in Hugging Face's image folders), or below ``root``. On a system
    without backslashes in paths, those of Windows are read as slashes.

    Args:
        table: the rows.
        column: with the paths.
        root: the folder of the data set.
        image_dir: ``data.image_dir``: the folder that paths are relative to, below ``root``; None: found.
        path_key: for messages.

    Raises:
        UserError: a cell is empty, a web address or a folder, or images are not there; it names the rows.
    """
    cells = table.columns[column]
    if "" in cells:
        raise refuse_rows(table, [row for row, cell in enumerate(cells) if not cell], f"the path is empty (column '{column}')")
    web = [row for row, cell in enumerate(cells) if cell.startswith(("http://", "https://", "s3://", "gs://"))]
    if web:
        raise refuse_rows(table, web, "a web address where the path of a file is expected; download the images first")
    notes = []
    if os.sep == "/" and any("\\" in cell for cell in cells):
        cells = [cell.replace("\\", "/") for cell in cells]
        notes.append(f"{_file(table)}: backslashes in paths are read as slashes.")
    cells, added = _with_endings(table, cells, root, image_dir)
    notes += added
    bases = _bases(table, cells, root, image_dir)
    starts = [_start(base, root) for base in bases]
    for base, file in zip(bases, table.files, strict=False):
        if image_dir is None and Path(base) not in (file.parent, root):
            notes.append(f"{printable(str(file))}: its paths are below {printable(_start(base, root))} (data.image_dir).")
    if len(starts) == 1:
        start = starts[0]
        paths = [cell if cell.startswith("/") else start + cell for cell in cells] if start else list(cells)
    else:
        paths = [os.path.join(starts[number], cell) for number, cell in zip(table.file_of.tolist(), cells, strict=True)]
    _require_files(table, paths, root)
    return paths, notes


def _start(base: str, root: Path) -> str:
    """Return what paths below ``base`` begin with, seen from ``root``."""
    relative = os.path.relpath(base, root)
    return "" if relative == "." else f"{relative}/"


def _file(table: Table) -> str:
    return printable(str(table.files[0]))


def _bases(table: Table, cells: Sequence[str], root: Path, image_dir: str | None) -> list[str]:
    """Return the folder that the paths of each file of the table are relative to."""
    if image_dir is not None:
        folder = root / Path(image_dir).expanduser()
        if not folder.is_dir():
            siblings = [entry.name for entry in root.iterdir() if entry.is_dir()]
            raise UserError(f"data.image_dir: there is no folder {printable(str(folder))}.{did_you_mean(folder.name, siblings)}")
        return [str(folder)] * (len(table.files) if len(table.files) > 1 else 1)
    bases = []
    for number, file in enumerate(table.files):
        rows = [row for row in range(min(len(cells), 100_000)) if table.file_of[row] == number][:NUM_TRIED]
        choices = list(dict.fromkeys([str(file.parent), str(root)]))
        counts = [sum(Path(choice, cells[row]).is_file() for row in rows) for choice in choices]
        best = choices[counts.index(max(counts))]
        bases.append(best if any(counts) else _folder_of_images(file, root, [cells[row] for row in rows]) or best)
    return bases[:1] if len(set(bases)) == 1 else bases


def _folder_of_images(file: Path, root: Path, names: Sequence[str]) -> str | None:
    """Return the folder below that of a table, or below ``root``, in which most of these images are.

    Of several with as many, the one that is called like the table is taken.

    Raises:
        UserError: several folders have them.
    """
    folders: dict[Path, int] = {}
    for top in dict.fromkeys((file.parent, root)):
        for folder in _folders_below(top):
            folders.setdefault(folder, sum((folder / name).is_file() for name in names))
    most = max(folders.values(), default=0)
    if 2 * most <= len(names):
        return None
    best = [folder for folder, count in folders.items() if count == most]
    best = [folder for folder in best if folder.name.casefold() == file.stem.casefold()] or best
    if len(best) > 1:
        lines = "".join(f"\n  data.image_dir={printable(os.path.relpath(folder, root))}" for folder in best[:4])
        raise UserError(f"{printable(str(file))}: several folders have images of these names. Which one? Add one of:{lines}")
    return str(best[0])


def _with_endings(table: Table, cells: Sequence[str], root: Path, image_dir: str | None) -> tuple[Sequence[str], list[str]]:
    """Return names of images with the endings of their files, where a table has ids in their place, and a note."""
    first = cells[:NUM_TRIED]
    if any("." in cell or "/" in cell for cell in first):
        return cells, []
    tops = [root / Path(image_dir).expanduser()] if image_dir is not None else [root, *(file.parent for file in table.files)]
    folders = [folder for top in dict.fromkeys(tops) for folder in (top, *_folders_below(top))]
    name_of: dict[str, str] = {}
    for folder in dict.fromkeys(folders):
        for name in _listed(str(folder)) or ():
            if names_image([name]):
                name_of[os.path.splitext(name)[0]] = name
    if 2 * sum(cell in name_of for cell in first) <= len(first):
        return cells, []
    return [name_of.get(cell, cell) for cell in cells], [
        f"{_file(table)}: its paths are without endings, those of the files are added."
    ]


def _folders_below(top: Path) -> list[Path]:
    """Return the folders at most two levels below a folder, `NUM_FOLDERS` of a level."""
    found: list[Path] = []
    level = [top]
    for _ in range(2):
        level = [folder / name for folder in level for name in folders_in(folder)][:NUM_FOLDERS]
        found += level
    return found


def _require_files(table: Table, paths: Sequence[str], root: Path) -> None:
    """Raise UserError where files are missing. Each folder is listed once, so that a million files take seconds."""
    folders: dict[str, frozenset[str] | None] = {}
    missing = []
    for row, path in enumerate(paths):
        folder, name = _folder_and_name(path)
        if folder not in folders:
            folders[folder] = _listed(os.path.join(root, folder))
        names = folders[folder]
        if names is None or name not in names:
            missing.append(row)
    if not missing:
        return
    first = os.path.join(root, paths[missing[0]])
    names = folders.get(_folder_and_name(paths[missing[0]])[0]) or frozenset()
    hint = did_you_mean(os.path.basename(first), sorted(names)[:100_000])
    if not hint and len(missing) == len(paths):
        hint = " Relative paths are below data.image_dir=FOLDER; by default below the table's folder"
        if ntpath.splitdrive(paths[missing[0]])[0] or paths[missing[0]].startswith("/"):
            hint = " These are absolute paths, such as those of another machine; write them relative to the table"
    raise refuse_rows(table, missing, f"there is no file {printable(first)}.{hint}")


def _folder_and_name(path: str) -> tuple[str, str]:
    """Return ``os.path.split`` in half the time, for paths with slashes."""
    folder, slash, name = path.rpartition("/")
    return folder or slash, name


def _listed(folder: str) -> frozenset[str] | None:
    try:
        with os.scandir(folder) as found:
            return frozenset(entry.name for entry in found)
    except (OSError, ValueError):
        return None


def without_repeats(
    table: Table, names: Sequence[str], targets: list[int] | list[list[int]], class_names: Sequence[str]
) -> tuple[list[int], list[int] | list[list[int]], list[str]]:
    """Return the rows to keep so that each image is there once, the targets of all rows, and notes.

    Several labels of an image are united where each row has several; where each row has one label, they must agree.

    Raises:
        UserError: an image has two different labels; it names the rows.
    """
    first: dict[str, int] = {}
    keep: list[int] = []
    repeats = []
    for row, name in enumerate(names):
        if name in first:
            repeats.append(row)
        else:
            first[name] = row
            keep.append(row)
    if not repeats:
        return keep, targets, []
    united = False
    for row in repeats:
        original, mine = targets[first[names[row]]], targets[row]
        if original == mine:
            continue
        if isinstance(original, int) or isinstance(mine, int):
            labels = f"'{printable(class_names[original])}' and '{printable(class_names[mine])}'"  # type: ignore[index]
            raise refuse_rows(
                table,
                [first[names[row]], row],
                f"{printable(names[row])} is labelled {labels}. Several labels of an image: data.multi_label=true",
            )
        original += [label for label in mine if label not in original]
        united = True
    images = first_few([os.path.basename(names[row]) for row in repeats], 3)
    what = "their labels are united" if united else "the first of each is used"
    return keep, targets, [f"{_file(table)}: {len(repeats)} rows repeat an image ({images}); {what}."]
