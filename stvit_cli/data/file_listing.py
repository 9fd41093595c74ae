"""Listing of the images in and below a folder: one set of rules for every task and for `predict`. Imports no torch.

Hidden files and folders, and those of operating systems and archivers (``__MACOSX``), are skipped. Links are followed,
except into a parent folder; broken links are reported. Files with other extensions than an image's are counted.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stvit_cli.data.images import ENDINGS
from stvit_cli.errors import UserError
from stvit_cli.utils.files import nearest_sibling
from stvit_cli.utils.text import first_few, printable

OF_THE_SYSTEM = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini"}
)
"""Files and folders made by the system, in small letters."""

NO_ENDING = ""
"""Key of files without an extension."""

NUM_NAMED = 3
"""Maximum number of files that a message names of those with the same problem."""

FolderTimes = tuple[int, int]
"""Modification times of the content and the inode of a folder, in nanoseconds."""


@dataclass
class Listing:
    """Files found below a folder; paths are relative to it, unordered."""

    paths: list[str] = field(default_factory=list)
    other_endings: Counter[str] = field(default_factory=Counter)
    """Number of files that were left out, by their extension in small letters."""
    broken_links: list[str] = field(default_factory=list)
    """Broken links that may have pointed to an image or a folder."""
    folder_times: dict[str, FolderTimes] = field(default_factory=dict)
    """Times of every listed folder, read before it was listed."""


def same_name(name: str) -> str:
    """Return a name in Unicode normalization form C: macOS decomposes letters such as é, other systems compose them."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_left_out(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or made by the system."""
    return name.startswith(".") or name.lower() in OF_THE_SYSTEM


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder without what `is_left_out`. Raises UserError where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not is_left_out(entry.name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}.") from None


def kind_of(entry: os.DirEntry[str]) -> Literal["folder", "file", "nothing"]:
    """Return the kind of an entry or of its target; nothing: a broken or circular link."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_symlink():
            entry.stat()  # cached by is_dir
        return "file"
    except OSError:
        return "nothing"


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, links to folders too, sorted. Raises UserError as `entries` does."""
    return sorted(entry.name for entry in entries(folder) if kind_of(entry) == "folder")


def require_folder(folder: str | Path | None, content: str, layout: str = "") -> Path:
    """Return ``data.dir`` as a path.

    Args:
        folder: the value of ``data.dir``.
        content: what the folder holds, for the message where ``folder`` is None.
        layout: a last line for the message where ``folder`` is a file.

    Raises:
        UserError: ``folder`` is None, or it is no folder that can be listed.
    """
    if not folder:
        raise UserError(f"data.dir is not set. Set it to the folder of the {content}: data.dir=DIR.")
    root = Path(folder).expanduser()
    if root.is_file():
        raise UserError(f"data.dir is {root}: a file, where a folder is expected.{layout and chr(10)}{layout}")
    if not root.is_dir():
        raise UserError(f"data.dir: there is no folder {root}.{nearest_sibling(root, Path.is_dir)}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"data.dir: the folder {root} cannot be listed: no permission.")
    return root


def list_files(root: Path, below: str = "", endings: Sequence[str] | None = ENDINGS) -> Listing:
    """Find the files in and below ``root / below`` whose names end in one of ``endings`` (in small letters; any, if None).

    Raises:
        UserError: a folder cannot be listed.
    """
    listing = Listing()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(below, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            stat = os.stat(root / folder)
        except OSError as error:
            raise UserError(f"{root / folder}: cannot be listed: {error.strerror}.") from None
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            continue
        listing.folder_times[folder] = (stat.st_mtime_ns, stat.st_ctime_ns)
        for entry in entries(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            kind = kind_of(entry)
            if kind == "folder":
                waiting.append((path, above | {here}))
            elif kind == "nothing":
                if is_link_of_interest(entry.name, endings):
                    listing.broken_links.append(path)
            elif endings is None or entry.name.lower().endswith(tuple(endings)):
                listing.paths.append(path)
            else:
                listing.other_endings[ending_of(entry.name)] += 1
    return listing


def is_link_of_interest(name: str, endings: Sequence[str] | None = ENDINGS) -> bool:
    """Return whether a broken link may have pointed to an image or a folder."""
    return endings is None or ending_of(name) == NO_ENDING or name.lower().endswith(tuple(endings))


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its point; empty without one."""
    return os.path.splitext(name)[1].lower()


def require_whole_links(root: Path, broken_links: Sequence[str]) -> None:
    """Raise UserError where links lead nowhere."""
    if not broken_links:
        return
    first = min(broken_links)
    count = "a link leads" if len(broken_links) == 1 else f"{len(broken_links)} links lead"
    raise UserError(
        f"{root}: {count} nowhere: {printable(str(root / first))} -> {printable(os.readlink(root / first))}\n"
        "Is a disk not mounted, or was the target moved? Fix or remove such links."
    )


def left_out_note(other_endings: Mapping[str, int]) -> list[str]:
    """Return a line on how many files were left out for their extension; no line if there are none."""
    if not other_endings:
        return []
    ordered = sorted(other_endings.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count} {ending or 'without an ending'}" for ending, count in ordered]
    total = sum(other_endings.values())
    files = "1 file was" if total == 1 else f"{total} files were"
    return [f"{files} left out for the ending: {first_few(named)}. Images end in {' '.join(ENDINGS)}."]


def counted(listings: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Return the sum of several counts of endings."""
    total: Counter[str] = Counter()
    for listing in listings:
        total.update(listing)
    return total
