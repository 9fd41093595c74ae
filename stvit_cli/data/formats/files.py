"""Files of a data set by split: found below its folder, with images paired by name. Imports no torch."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

from stvit_cli.data.file_listing import list_files
from stvit_cli.data.formats.collection import ALL
from stvit_cli.data.images import ENDINGS
from stvit_cli.data.splits import SPLIT_OF
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

MAX_BYTES = 512 * 2**20
"""Of a text file that is read; one JSON file may hold a data set."""

_SPLIT = re.compile(rf"({'|'.join(SPLIT_OF)})(?:[-_ ]?(?:set|images|\d{{2,4}}))?")


def split_of(name: str) -> str | None:
    """Return the split that a folder or file of this name belongs to, None if it is no split's name.

    >>> split_of("Valid"), split_of("train2017"), split_of("trains")
    ('val', 'train', None)
    """
    match = _SPLIT.fullmatch(name.casefold())
    return None if match is None else SPLIT_OF[match[1]]


def split_of_path(path: str) -> str:
    """Return the split of the first folder of a path that is named after one, `ALL` where there is none.

    >>> split_of_path("images/val/1.jpg"), split_of_path("images/1.jpg")
    ('val', 'all')
    """
    return next((split for part in path.split("/")[:-1] if (split := split_of(part)) is not None), ALL)


def by_split(root: Path, endings: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the files below ``root`` with one of the endings, by split, sorted; paths are relative to it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(list_files(root, endings=endings).paths):
        found[split_of_path(path)].append(path)
    return dict(found)


def require_one_kind(root: Path, splits: dict[str, list[str]], what: str) -> None:
    """Raise UserError where some files are in folders of splits and others are not."""
    if ALL in splits and len(splits) > 1:
        others = ", ".join(f"{name}/" for name in splits if name != ALL)
        raise UserError(
            f"{root}: {len(splits[ALL])} {what} such as {printable(splits[ALL][0])} are in no split, beside those of {others}\n"
            "Move them into a split's folder, or out of this one."
        )


class ImageFinder:
    """Finds the image of an annotation file by name among the images below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = sorted(list_files(root, endings=ENDINGS).paths)
        self._exact = set(self.paths)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            name = path.rpartition("/")[2]
            self._by_name[name.casefold()].append(path)
            self._by_stem[os.path.splitext(name)[0].casefold()].append(path)

    def by_name(self, name: str, near: str, split: str) -> str | None:
        """Return the image called ``name``: relative to the folder of the file ``near``, or anywhere in its split."""
        beside = os.path.normpath(os.path.join(near.rpartition("/")[0], name))
        if beside in self._exact:
            return beside
        if name in self._exact:
            return name
        within = _within(self._by_name[name.rpartition("/")[2].casefold()], split)
        ending = [path for path in within if path.endswith(f"/{name}")]
        return self._only(ending or within, near)

    def by_stem(self, near: str, split: str) -> str | None:
        """Return the image whose name is that of the file ``near`` but for the ending: beside it, or anywhere in its split."""
        folder, _, name = near.rpartition("/")
        found = _within(self._by_stem[os.path.splitext(name)[0].casefold()], split)
        return self._only([path for path in found if path.rpartition("/")[0] == folder] or found, near)

    def _only(self, paths: list[str], near: str) -> str | None:
        if len(paths) > 1:
            raise UserError(
                f"{self.root / near}: {printable(paths[0])} and {printable(paths[1])} are both images of this name; "
                "expected one.\nRename or remove the others."
            )
        return paths[0] if paths else None


def _within(paths: list[str], split: str) -> list[str]:
    """Return the paths that may belong to a split; of a file that is in none, its image decides."""
    return [path for path in paths if split == ALL or split_of_path(path) in (split, ALL)]


def read_text(path: Path) -> str:
    """Return the content of a text file. Raises UserError where it cannot be read, or is too large to be one."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{printable(str(path))}: larger than {MAX_BYTES // 2**20} MiB, which no such file is.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{printable(str(path))}: not a text file in UTF-8.") from None
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {error.strerror}.") from None
