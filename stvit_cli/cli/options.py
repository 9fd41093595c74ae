"""The options that several commands share."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stvit_cli.errors import UserError
from stvit_cli.utils.files import require_writable_file
from stvit_cli.utils.text import shell_command

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe set here, such as optim.lr=5e-4.", show_default=False),
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME", help="A shipped recipe's name (stvit recipes list), or a file.")
]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Sets model.name, such as stvit-b.")]
Data = Annotated[str | None, typer.Option("--data", metavar="DIR", help="Sets data.dir, the folder of the data set.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="The run's own folder, new or empty; otherwise runs/<recipe>-<time>."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Build everything, take one step, say what a run would be; write nothing.")
]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - is standard output.")]


def words(overrides: Sequence[str] | None, model: str | None = None, data: str | None = None) -> list[str]:
    """Return the ``key=value`` words, with those that ``--model`` and ``--data`` stand for; a path needs no quoting there."""
    given = (("model.name", model), ("data.dir", data))
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given if value is not None] + list(overrides or ())


def command(*parts: str | Path) -> str:
    """Return a command to paste, quoted for the shell where a path needs it."""
    return "  " + shell_command(*parts)


def new_file(path: Path, *endings: str) -> None:
    """Raise UserError where ``path`` has another ending, exists already or cannot be written: before the work, not after."""
    if path.suffix not in endings:
        raise UserError(f"{path}: expected a name ending in {' or '.join(endings)}.")
    if os.path.lexists(path):
        raise UserError(f"{path} exists; choose another name, or remove it first.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}.")
    require_writable_file(path)
