"""What was found in a folder: `Layout`, and the question to the user where it could be several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable, shell_command

Given = Mapping[str, object]
"""Recipe keys that the user has set."""


@dataclass(frozen=True)
class Layout:
    """The layout of a data set.

    Attributes:
        task: classification, detection or segmentation.
        kind: the recipe's ``data.kind``.
        description: what was found, one line without the folder: "COCO annotations, train.json and val.json".
        keys: the recipe keys that follow, by dotted name, ``data.kind`` and ``data.dir`` among them.
        has_masks: the annotations of a detection set hold masks (polygons or run-length codes).
    """

    task: str
    kind: str
    description: str
    keys: Mapping[str, object] = field(default_factory=dict)
    has_masks: bool = False


def layout(
    task: str, kind: str, folder: Path, description: str, keys: Mapping[str, object] | None = None, *, has_masks: bool = False
) -> Layout:
    """Return a `Layout` with the keys ``data.kind`` and ``data.dir``."""
    return Layout(task, kind, description, {"data.kind": kind, "data.dir": str(folder)} | dict(keys or {}), has_masks)


def which(folder: Path, found: str, key: str, values: Sequence[str], limit: int = 4) -> UserError:
    """Return the error that asks the user for one key.

    Args:
        folder: of the data set.
        found: what is ambiguous, a sentence without its full stop.
        key: of the recipe.
        values: its possible values.
        limit: number of values that are named.
    """
    named = "\n".join(f"  {shell_command(f'{key}={value}')}" for value in values[:limit])
    more = f"\n  ({len(values) - limit} more)" if len(values) > limit else ""
    return UserError(f"{printable(str(folder))}: {found}. Which one? Add one of:\n{named}{more}")
