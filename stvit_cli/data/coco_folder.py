"""Where the images of a COCO annotation file are: in the folder that is named, or in the only other one that holds them all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

from stvit_cli.data.file_listing import list_files
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

NUM_NAMED = 3
"""Number of missing images, and of folders, that a message names."""


def find_image_folder(
    path: Path, folder: Path, file_names: Sequence[str], root: Path | None = None, other: Path | None = None
) -> Path:
    """Return the folder that the file names of an annotation file start from.

    Args:
        path: the annotation file.
        folder: where the images are expected. It is taken if it holds any of them.
        file_names: of the images, as in the file.
        root: folder of the data set, which is searched if there is no ``folder``. If there is one, but it holds none of the
            images, the folders below it are searched. None: no search.
        other: folder of the other set's images, whose names may be the same: it is not searched.

    Raises:
        UserError: images are missing, or several folders hold all of them.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     Path(root, "photos").mkdir()
        ...     Path(root, "photos", "a.jpg").touch()
        ...     find_image_folder(Path(root, "a.json"), Path(root, "images"), ["a.jpg"], Path(root)).name
        'photos'
    """
    missing, problem = _missing(folder, file_names)
    if not missing:
        return folder
    if root is not None and len(missing) == len(file_names):
        searched = folder if folder.is_dir() else root
        found = [name for name in _holding_all(searched, file_names) if other is None or not _is_within(searched / name, other)]
        if len(found) == 1:
            return searched / found[0]
        if found:
            raise UserError(
                f"{path}: its images are not in {folder}, and more than one folder of {searched} holds them all: "
                f"{first_few([name or '.' for name in found], NUM_NAMED)}.\n"
                "Choose one by detection.train_images=FOLDER, or val_images."
            )
    if problem is not None:
        raise UserError(f"{folder}: cannot be listed: {problem}. Expected the folder of the images of {path}.")
    named = printable(", ".join(missing[:NUM_NAMED])) + (", ..." if len(missing) > NUM_NAMED else "")
    raise UserError(f"{path}: {len(missing)} of its {len(file_names)} images are not in {folder}: {named}.")


def local_tails(name: str) -> Iterator[str]:
    """Yield the paths that a file name of another machine may have here: its ends, the longest first.

    A labelling tool writes URLs, absolute paths and Windows' paths. A name of none of these kinds, or one with ``..``, is yielded
    as it is.

    >>> list(local_tails("http://localhost:8080/data/3/a.jpg"))
    ['data/3/a.jpg', '3/a.jpg', 'a.jpg']
    """
    if not _is_foreign(name):
        yield name
        return
    if "://" in name:
        name = unquote(urlsplit(name).path)
    elif "?d=" in name:  # Label Studio's local files: /data/local-files/?d=images/a.jpg
        name = unquote(name.partition("?d=")[2])
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".") and not part.endswith(":")]
    yield from ("/".join(parts[start:]) for start in range(len(parts)))


def with_local_names(
    path: Path, entries: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[list[Mapping[str, Any]], str | None]:
    """Return the images of an annotation file with names of another machine replaced by those here, and a line for the user.

    Args:
        path: the annotation file.
        entries: its list of images.
        folder: of the images.

    Raises:
        UserError: two images would be the same file.
    """
    foreign = [
        entry["file_name"] for entry in entries if isinstance(entry.get("file_name"), str) and _is_foreign(entry["file_name"])
    ]
    if not foreign or not folder.is_dir():
        return list(entries), None
    present = set(list_files(folder, endings=None).paths)
    found = {name: next((tail for tail in (name, *local_tails(name)) if tail in present), None) for name in foreign}
    if not any(found.values()):
        return list(entries), None
    owners: dict[str, str] = {}
    for name, tail in found.items():
        other = owners.setdefault(tail, name) if tail is not None else name
        if other != name:
            raise UserError(
                f"{path}: the images {first_few([other])} and {first_few([name])} would both be {first_few([tail or name])} in "
                f"{printable(str(folder))}.\nGive each a file_name relative to that folder."
            )
    names = {name: tail or [name, *local_tails(name)][-1] for name, tail in found.items()}
    changed: list[Mapping[str, Any]] = [
        {**entry, "file_name": names.get(entry.get("file_name"), entry.get("file_name"))} for entry in entries
    ]
    example = next(name for name, tail in found.items() if tail)
    remark = f"file names of another machine, such as {first_few([example])}, are taken for {first_few([names[example]])}"
    return changed, remark if names[example] != example else None


def _is_foreign(name: str) -> bool:
    """Whether a file name is a URL, an absolute path or one of Windows."""
    if "\0" in name or ".." in re.split(r"[/\\]", name):
        return False
    return "://" in name or "\\" in name or name.startswith("/") or bool(PureWindowsPath(name).drive)


def _missing(folder: Path, file_names: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the files that are not there, and why the folder cannot be listed.

    One listing of the folder, not a question for each of a hundred thousand files.
    """
    try:
        present = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        return list(file_names), error.strerror
    return [name for name in file_names if not (name in present if "/" not in name else (folder / name).is_file())], None


def _is_within(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other.resolve())


def _holding_all(root: Path, file_names: Sequence[str]) -> list[str]:
    """Return the folders below ``root``, relative to it, that hold all of the files."""
    present = set(list_files(root, endings=None).paths)
    names = list(dict.fromkeys(file_names))
    first = names[0]
    prefixes = [path[: len(path) - len(first)] for path in present if path == first or path.endswith(f"/{first}")]
    return sorted(prefix for prefix in prefixes if all(prefix + name in present for name in names))
