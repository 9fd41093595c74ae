"""Recipe keys that are set from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from stvit_cli.errors import UserError

Overrides = Mapping[str, object] | Sequence[str]
"""Recipe keys to set: ``{"optim.lr": 1e-3}``, or ``["optim.lr=1e-3"]`` as on the command line."""


def as_words(overrides: Overrides, model: str | None = None, data: str | os.PathLike[str] | None = None) -> list[str]:
    """Return overrides as ``key=value`` texts, after those that ``model`` and ``data`` stand for."""
    from stvit_cli.recipe.yaml import flow

    given = {"model.name": model, "data.dir": None if data is None else str(data)}
    words = [f"{key}={flow(value)}" for key, value in given.items() if value is not None]
    if isinstance(overrides, Mapping):
        return words + [f"{key}={flow(_plain(value))}" for key, value in overrides.items()]
    if isinstance(overrides, str):
        raise UserError(f'overrides: found the text {overrides!r}, expected {{"optim.lr": 1e-3}} or ["optim.lr=1e-3"].')
    return words + list(overrides)


def _plain(value: object) -> object:
    """Return a value of Python as a recipe has it: paths as text, tuples as lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
