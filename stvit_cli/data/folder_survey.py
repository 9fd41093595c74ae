"""A survey of a data set's folder: what lies where, by names and by the beginning of files. Cheap for millions of files."""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stvit_cli.data.file_listing import is_left_out
from stvit_cli.data.images import ENDINGS
from stvit_cli.data.splits import SPLIT_OF, Split
from stvit_cli.errors import UserError

MAX_DEPTH = 5
"""Levels of folders below the data set's folder that are listed."""

MAX_FOLDERS_OF_A_KIND = 40
"""Folders that are listed in one folder: of a thousand class folders the first ones show what they are."""

MAX_FOLDERS = 2000
MAX_NAMES = 1_000_000
"""Names that are read of one folder."""

NUM_EXAMPLES = 5
"""Names of images that are kept of one folder."""

NUM_FILES = 2000
"""Names of other files that are kept of one folder."""

START_BYTES = 1 << 16
SCAN_BYTES = 1 << 26
"""Bytes of a file that are searched at most."""

_SPLIT_NAMES = SPLIT_OF | {"minival": "val"}
_SPLIT = re.compile(
    rf"(?:^|[^a-z])({'|'.join(_SPLIT_NAMES)})"
    r"(?:$|[^a-z]|annot|sets?(?![a-z])|images|imgs|masks?(?![a-z])|labels?(?![a-z])|maps)"
)


@dataclass
class Folder:
    """One folder of the survey."""

    path: str
    """Relative to the data set's folder, "" for that itself."""
    images: list[str] = field(default_factory=list)
    """The first names of images, sorted."""
    num_images: int = 0
    files: list[str] = field(default_factory=list)
    """Names of other files, sorted."""
    folders: list[str] = field(default_factory=list)
    """Names of folders, sorted; `MAX_FOLDERS_OF_A_KIND` of them are in the survey too."""

    def join(self, name: str) -> str:
        """Return the path of something in the folder, relative to the data set's folder."""
        return f"{self.path}/{name}" if self.path else name

    def with_ending(self, *endings: str) -> list[str]:
        """Return the names of the files that end so, in small or capital letters."""
        return [name for name in self.files if name.lower().endswith(endings)]


@dataclass
class Survey:
    """The folders in and below ``root``, by their relative paths, parents first."""

    root: Path
    folders: dict[str, Folder] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Folder]:
        return iter(self.folders.values())

    @property
    def top(self) -> Folder:
        return self.folders[""]

    def below(self, path: str) -> Iterator[Folder]:
        """Yield a folder and those below it."""
        for other, folder in self.folders.items():
            if not path or other == path or other.startswith(f"{path}/"):
                yield folder

    def has_images(self, path: str) -> bool:
        """Return whether images lie in or below a folder."""
        return any(folder.num_images for folder in self.below(path))

    @property
    def num_images(self) -> int:
        """Number of images in the folders that were listed."""
        return sum(folder.num_images for folder in self)


def survey(root: Path) -> Survey:
    """List the folders in and below ``root``, breadth first, as far as the limits of this module go.

    Raises:
        UserError: ``root`` cannot be listed.
    """
    found = Survey(root)
    waiting = [("", 0)]
    while waiting and len(found.folders) < MAX_FOLDERS:
        path, depth = waiting.pop(0)
        try:
            folder = _list(root, path)
        except OSError as error:
            if path:
                continue  # whoever reads the data says so; it may hold nothing that matters
            raise UserError(f"{root}: cannot be listed: {error.strerror}.") from None
        found.folders[path] = folder
        if depth < MAX_DEPTH and not _is_run(folder):
            waiting += [(folder.join(name), depth + 1) for name in folder.folders[:MAX_FOLDERS_OF_A_KIND]]
    return found


def _list(root: Path, path: str) -> Folder:
    folder = Folder(path)
    with os.scandir(root / path) as entries:
        for count, entry in enumerate(entries):
            if count == MAX_NAMES:
                break
            if is_left_out(entry.name):
                continue
            if entry.name.lower().endswith(ENDINGS):
                folder.num_images += 1
                if len(folder.images) < NUM_EXAMPLES or entry.name < folder.images[-1]:
                    folder.images = sorted([*folder.images, entry.name])[:NUM_EXAMPLES]
            elif _is_folder(entry):
                folder.folders.append(entry.name)
            elif len(folder.files) < NUM_FILES or not entry.name.lower().endswith((".txt", ".xml")):
                folder.files.append(entry.name)
    folder.files.sort()
    folder.folders.sort()
    return folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_run(folder: Folder) -> bool:
    """Whether a folder is that of a run, whose files are no data."""
    return "recipe.yaml" in folder.files and "checkpoints" in folder.folders


def parent_of(path: str) -> str:
    """Return the folder of a relative path, "" for that of the data set."""
    return path.rpartition("/")[0]


def split_of(path: str) -> Split | None:
    """Return the split that a path names, the innermost name first.

    >>> split_of("annotations/instances_train2017.json"), split_of("valid/_annotations.coco.json"), split_of("trainannot")
    ('train', 'val', 'train')
    """
    for part in reversed(path.lower().split("/")):
        found = _SPLIT.search(part)
        if found:
            return _SPLIT_NAMES[found[1]]
    return None


def start_of(path: Path, size: int = START_BYTES) -> bytes:
    """Return the first bytes of a file, without a byte order mark; none of what is no file, or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(size).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return b""


def search_file(path: Path, pattern: re.Pattern[bytes], limit: int = SCAN_BYTES) -> re.Match[bytes] | None:
    """Return the first match of a pattern in the first ``limit`` bytes of a file, without reading it into memory."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            match = pattern.search(content, 0, limit)
            # the match refers to the map, which ends here
            return None if match is None else pattern.search(bytes(content[match.start() : match.end() + 1]))
    except (OSError, ValueError):  # ValueError: an empty file
        return None


def text_of(raw: bytes) -> str | None:
    """Return the text of a JSON string, given with its quotes; None of what is none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None
