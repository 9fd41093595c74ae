"""Classes of shards: numbers, or names in an order that is the same everywhere. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.shards.part import NO_LABEL
from stvit_cli.errors import UserError
from stvit_cli.utils.text import did_you_mean, first_few, printable

MAX_CLASSES = 1_000_000
NAME_FILES = ("class_names.txt", "classes.txt", "class_names.json", "classes.json", "class_names", "classes")
"""Files beside the shards that may name the classes, in the order in which they are looked for."""
INFO_FILES = ("_info.json", "info.json")
"""Descriptions of a data set, as timm's have them."""


def is_number(text: str) -> bool:
    """Return whether a label is a number of a class; negative ones stand for no label, as in timm's data sets."""
    return text.removeprefix("-").isdecimal() and text.isascii()


def used_kind(labels: Sequence[tuple[str, str]]) -> str:
    """Return where the labels of a data set are from: label files, else folders in the tar files if there are several."""
    if any(kind == "label" for kind, _ in labels):
        return "label"
    return "folder" if len({text for kind, text in labels if kind == "folder"}) > 1 else ""


def class_table(labels: Sequence[tuple[str, str]], names: Sequence[str], where: str) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return the class of each label of an index, and the names of the classes.

    Numbers are classes as they are. Names are classes in the order of ``names``, or sorted.

    Args:
        labels: of the index, see `Part`.
        names: of the classes, in the order of their numbers; empty: the numbers, or the labels sorted.
        where: the shards, for messages.

    Returns:
        The class of each label, -1 for none, (len(labels),), and the names.

    Raises:
        UserError: a label is no class.

    Example:
        >>> class_table([("label", "dog"), ("label", "cat")], (), "a.tar")
        (array([1, 0], dtype=int32), ('cat', 'dog'))
    """
    kind = used_kind(labels)
    texts = [text if of == kind else "" for of, text in labels]
    found = sorted({text for text in texts if text})
    if all(map(is_number, found)):
        numbers = [int(text) for text in found]
        largest = max(numbers, default=NO_LABEL)
        if largest >= (len(names) or MAX_CLASSES):
            limit = f"{len(names)} names" if names else f"at most {MAX_CLASSES} classes"
            raise UserError(f"{printable(where)}: found label {largest}, expected a number below the number of classes: {limit}.")
        class_names = tuple(names) or tuple(str(number) for number in range(largest + 1))
        return np.array([max(int(text), NO_LABEL) if text else NO_LABEL for text in texts], dtype=np.int32), class_names
    class_names = tuple(names) or tuple(found)
    position = {name: number for number, name in enumerate(class_names)}
    unknown = [text for text in found if text not in position]
    if unknown:
        raise UserError(
            f"{printable(where)}: found labels that are no class: {first_few(unknown)}.{did_you_mean(unknown[0], class_names)}\n"
            f"Expected one of {len(class_names)}: {first_few(class_names)}."
        )
    return np.array([position[text] if text else NO_LABEL for text in texts], dtype=np.int32), class_names


def names_in_json(content: Any) -> tuple[str, ...]:
    """Return class names in a JSON document: a list, numbered objects, or one of these in a field; empty without any.

    >>> names_in_json({"class_names": {"1": "dog", "0": "cat"}}), names_in_json(["a", "b"])
    (('cat', 'dog'), ('a', 'b'))
    """
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return tuple(content) if len(set(content)) == len(content) else ()
    if not isinstance(content, dict):
        return ()
    for field in ("class_names", "classes", "label_names", "names"):
        if field in content:
            return names_in_json(content[field])
    if content and all(isinstance(key, str) and key.isdecimal() for key in content):
        numbers = sorted(map(int, content))
        if numbers == list(range(len(numbers))):
            return names_in_json([content[key] for key in sorted(content, key=int)])
    are_numbers = bool(content) and all(type(number) is int for number in content.values())
    if are_numbers and sorted(content.values()) == list(range(len(content))):
        return tuple(map(str, sorted(content, key=lambda name: int(content[name]))))
    return ()


def parsed_names(content: bytes, name: str) -> tuple[str, ...]:
    """Return the class names that a file beside the shards has, empty where it has none."""
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".json"):
            return names_in_json(json.loads(text))
    except (ValueError, RecursionError):
        return ()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple(lines) if len(set(lines)) == len(lines) else ()
