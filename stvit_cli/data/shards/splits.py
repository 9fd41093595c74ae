"""Which shards are for training, validation and test: by ``_info.json``, file names, folders, or a pattern. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from stvit_cli.data.shards.labels import INFO_FILES, NAME_FILES, names_in_json, parsed_names
from stvit_cli.data.shards.storage import (
    PARQUET,
    TAR,
    ShardFile,
    common_root,
    expand_braces,
    file_system,
    is_pattern,
    is_remote,
    remote,
)
from stvit_cli.data.splits import SPLIT_OF
from stvit_cli.errors import UserError
from stvit_cli.utils.files import reason_of
from stvit_cli.utils.text import did_you_mean, first_few, printable

_SPLIT_OF = SPLIT_OF | {"dev": "val"}
MAX_BYTES = 64_000_000
EXPECTED = "Expected train and validation in the names of the shards or of their folders; or a pattern, such as {}={}"


@dataclass(frozen=True)
class Described:
    """What the files beside the shards say.

    Attributes:
        splits: the shards of each split, from ``_info.json``.
        label_fields: field of ``.json`` with the label of a split, where timm's file names one.
        class_names: in the order of their numbers.
        names_file: where these are from.
    """

    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    label_fields: dict[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    names_file: str = ""

    def named(self, split: str) -> str | None:
        """Return what ``_info.json`` calls a split, such as validation for val; None where it does not, or not clearly."""
        if split in self.splits:
            return split
        wanted = _SPLIT_OF.get(split.casefold(), split.casefold())
        found = [name for name in self.splits if _SPLIT_OF.get(name.casefold()) == wanted]
        return found[0] if len(found) == 1 else None

    def label_field(self, split: str) -> str | None:
        """Return the field with the labels of a split; of shards given by a pattern, the one that all splits have."""
        name = self.named(split)
        fields = {self.label_fields.get(each) for each in (self.splits if name is None else [name])}
        return fields.pop() if len(fields) == 1 else None


def described(files: Sequence[ShardFile]) -> Described:
    """Return what ``_info.json`` and files of class names beside the shards say; files of another form are ignored."""
    root = common_root(files)
    info: dict[str, Any] = {}
    for name in INFO_FILES:
        try:
            found = json.loads(_content(root, name) or b"null")
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            info = found
            break
    if info.get("complete") is False:  # what `stvit data shard` writes first
        raise UserError(
            f"{printable(root)} holds a part of its images: `stvit data shard` was interrupted. Give the same command again, "
            "which continues."
        )
    splits, fields = {}, {}
    for split, content in _items(info.get("splits")):
        names = content.get("filenames") if isinstance(content, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            splits[split] = tuple(names)
            if isinstance(content.get("alt_label"), str) and content["alt_label"]:
                fields[split] = content["alt_label"]
    for name in NAME_FILES:
        content = _content(root, name)
        class_names = parsed_names(content, name) if content else ()
        if class_names:
            return Described(splits, fields, class_names, name)
    return Described(
        splits, fields, names_in_json({key: info[key] for key in ("class_names", "classes") if key in info}), "_info.json"
    )


def _items(found: Any) -> list[tuple[str, Any]]:
    return list(found.items()) if isinstance(found, dict) else []


def _content(root: str, name: str) -> bytes | None:
    """Return the content of a file beside the shards, None where it is not there. Raises UserError where it cannot be read."""
    path = f"{root}/{name}"
    if is_remote(path):
        files, inside = file_system(path)
        is_there = remote(path, lambda: files.exists(inside))
        content: bytes | None = remote(path, lambda: files.cat_file(inside)) if is_there else None
        return content
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read: {reason_of(error)}.") from None


def split_of(name: str) -> str:
    """Return train, val or test by the name of a shard or of a folder above it, "" where neither says it.

    >>> split_of("imagenet1k-validation-0003.tar"), split_of("train/0000.tar"), split_of("data/x-00001.parquet")
    ('val', 'train', '')
    """
    path = PurePosixPath(name)
    for part in (*reversed(path.parts[:-1]), path.name):
        found = {_SPLIT_OF[word] for word in re.split(r"[^a-z]+", part.casefold()) if word in _SPLIT_OF}
        if len(found) == 1:
            return found.pop()
    return ""


def shards_of(files: Sequence[ShardFile], split: str, about: Described, key: str) -> list[ShardFile]:
    """Return the shards of a split.

    Args:
        files: of the data set.
        split: its name in ``_info.json``, train, val, validation or test, or a pattern of file names.
        about: what `described` returned.
        key: the recipe key, for messages.

    Returns:
        The shards, none where no shard is of the split.

    Raises:
        UserError: a pattern fits no shard, or a shard that ``_info.json`` names is missing.
    """
    if is_pattern(split) or split.lower().endswith((TAR, PARQUET)):
        patterns = set(expand_braces(split))
        plain = {pattern for pattern in patterns if "*" not in pattern and "?" not in pattern}
        globs = patterns - plain
        found = [file for file in files if _fits(file.name, plain, globs)]
        missing = plain - {file.name for file in found} - {file.name.rpartition("/")[2] for file in found}
        if missing or not found:
            absent = min(missing) if missing else split
            close = did_you_mean(absent, [file.name for file in files[:10_000]])
            raise UserError(f"{key}: there is no shard {printable(absent)}; there are {_shown(files)}.{close}")
        return found
    known = about.named(split)
    if known is None:
        wanted = _SPLIT_OF.get(split.casefold(), split.casefold())
        return [file for file in files if split_of(file.name) == wanted]
    names = about.splits[known]
    by_name = {file.name: file for file in files} | {file.name.rpartition("/")[2]: file for file in files}
    present = [by_name[name] for name in names if name in by_name]
    if present and len(present) < len(names):
        absent = next(name for name in names if name not in by_name)
        raise UserError(
            f"{key}: _info.json names {len(names)} shards of {printable(split)}, but {len(names) - len(present)} are not there: "
            f"{printable(absent)}. Get them; or give the ones to use: {key}='*-{printable(split)}-{{0000..0099}}.tar'"
        )
    return present


def _fits(name: str, plain: set[str], globs: set[str]) -> bool:
    base = name.rpartition("/")[2]
    return name in plain or base in plain or any(fnmatchcase(name, glob) or fnmatchcase(base, glob) for glob in globs)


def _shown(files: Sequence[ShardFile]) -> str:
    return first_few([file.name for file in files], 3)
