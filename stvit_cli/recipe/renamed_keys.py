"""Renamed keys and values: the old name still works, with a warning. Imports no torch."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.recipe.yaml import flow
from stvit_cli.utils.environment import is_main_process

logger = logging.getLogger(__name__)

RENAMED: dict[str, str] = {}
"""The new dotted key of each old one, such as ``{"optim.rate": "optim.lr"}``."""
RENAMED_VALUES: dict[str, dict[str, Any]] = {}
"""By (new) dotted key, the new value of each old one, such as ``{"data.kind": {"folder": "imagefolder"}}``."""

DEPRECATED: dict[str, str] = {"train.tensorboard": "train.loggers=[tensorboard]"}
"""What to write instead of each dotted key that still works. UPGRADING.md lists these, and what was renamed."""


def rename_keys(data: dict[str, Any], lines: dict[str, int], source: str) -> list[str]:
    """Give a file's old keys and values their new names, in ``data`` and ``lines``.

    Returns:
        What was renamed, a sentence each.

    Raises:
        UserError: a key is there under both names.
    """
    renamed: list[str] = []
    for old, new in RENAMED.items():
        if not _holds(data, old):
            continue
        if _holds(data, new):
            numbers = f"line {lines[old]} and line {lines[new]}" if {old, new} <= set(lines) else "both names"
            raise UserError(f"{source}: {old} and {new} are one key ({numbers}): it was renamed. Keep {new}.")
        _set(data, new, _take(data, old))
        if old in lines:
            lines[new] = lines[old]
        renamed.append(_sentence(old, new))
    for key in RENAMED_VALUES:
        if _holds(data, key):
            value, sentence = rename_value(key, _get(data, key))
            _set(data, key, value)
            renamed += sentence
    return renamed


def rename_key(key: str) -> tuple[str, list[str]]:
    """Return the new name of an override's key, and what is to be said about it: a sentence, or nothing."""
    new = RENAMED.get(key, key)
    return new, [_sentence(key, new)] if new != key else []


def rename_value(key: str, value: Any) -> tuple[Any, list[str]]:
    """Return the new name of a value, and what is to be said about it: a sentence, or nothing."""
    values = RENAMED_VALUES.get(key, {})
    if not isinstance(value, str) or value not in values:
        return value, []
    return values[value], [f"{key}: {flow(value)} is called {flow(values[value])} now"]


@cache
def warn_once(sentence: str) -> None:
    """Log a warning once in a process; with several processes, in the main one only."""
    if is_main_process():
        logger.warning("%s.", sentence)


def _sentence(old: str, new: str) -> str:
    return f"{old} is called {new} now"


def _holds(data: dict[str, Any], key: str) -> bool:
    section, _, leaf = key.rpartition(".")
    inside = data.get(section) if section else data
    return isinstance(inside, dict) and leaf in inside


def _get(data: dict[str, Any], key: str) -> Any:
    section, _, leaf = key.rpartition(".")
    return (data[section] if section else data)[leaf]


def _take(data: dict[str, Any], key: str) -> Any:
    """Remove a key, and its section where that holds nothing else."""
    section, _, leaf = key.rpartition(".")
    if not section:
        return data.pop(leaf)
    value = data[section].pop(leaf)
    if not data[section]:
        del data[section]
    return value


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    section, _, leaf = key.rpartition(".")
    if not section:
        data[leaf] = value
    elif isinstance(data.setdefault(section, {}), dict):
        data[section][leaf] = value
