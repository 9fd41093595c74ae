"""Messages about an invalid recipe, made from the schema's annotations: the key, what was found, what is expected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from stvit_cli.recipe import Recipe, Section
from stvit_cli.recipe.classifier_checks import keys_of_other_tasks
from stvit_cli.recipe.tasks import TASKS, other_tasks_sections
from stvit_cli.recipe.validation import HALVED
from stvit_cli.recipe.yaml import flow
from stvit_cli.utils.text import did_you_mean, nearest, number_meant, suggestion

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null", Any: "any value"}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping", list: "a list"}
_MAX_SHOWN = 5


@cache
def dotted_keys() -> tuple[str, ...]:
    """Return every key of a recipe, such as ``optim.lr``, in the order of the schema."""
    keys: list[str] = []
    for name, field in Recipe.model_fields.items():
        is_section = isinstance(field.default, Section)
        keys += [f"{name}.{key}" for key in type(field.default).model_fields] if is_section else [name]
    return tuple(keys)


def nearest_key(wrong: str, task: object = None) -> str:
    """Return `` Did you mean 'x'?`` with the most similar dotted key, or an empty string.

    A key of the section that was named comes first, then a key of the very same name in another one; a key that is merely
    similar is suggested from another section only where no section, or none that there is, was named.

    Args:
        wrong: what was given.
        task: keys that it does not have are not suggested; any, where it is no task.
    """
    keys = _keys_of(task)
    section, dot, leaf = wrong.rpartition(".")
    sections = {key.rpartition(".")[0]: None for key in keys}
    if not dot:
        near_sections = nearest(wrong, filter(None, sections))
        if near_sections:
            return suggestion([next(key for key in keys if key.startswith(f"{name}.")) for name in near_sections])
    elif section not in sections:
        near_sections = nearest(section, filter(None, sections))
        if len(near_sections) != 1:
            return _same_name([leaf.lower()], keys)
        return nearest_key(f"{near_sections[0]}.{leaf}", task) or did_you_mean(wrong, keys)
    own = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == section]
    if leaf in own:  # the section was misspelled
        return suggestion([wrong])
    longer = [f"{section}.{key}" for key in own if "_" in leaf and set(leaf.split("_")) < set(key.split("_"))]
    if longer:
        return suggestion(longer)
    if near := nearest(leaf, own):
        return suggestion([f"{section}.{name}" if section else name for name in near])
    leaves = () if section else (key.rpartition(".")[2] for key in keys)
    return _same_name([leaf.lower()], keys) or _same_name(nearest(leaf, leaves), keys)


def _keys_of(task: object) -> list[str]:
    """Return the keys that recipes of a task have; all, where it is none."""
    is_task = isinstance(task, str) and task in TASKS
    if not is_task:
        return list(dotted_keys())
    # The kind of data is not known here; that of shapes has a section of its own, for every task.
    others = {*other_tasks_sections(task, "shapes"), *keys_of_other_tasks(task)}
    return [key for key in dotted_keys() if key.partition(".")[0] not in others and key not in others]


def _same_name(names: Sequence[str], keys: Sequence[str]) -> str:
    """Suggest the keys of these names, whatever their section."""
    return suggestion([key for key in keys if key.rpartition(".")[2] in names])


def expected(field: FieldInfo) -> str:
    """Describe the values that a key accepts, such as ``a number (above 0) or null``."""
    return _describe(field.annotation, list(field.metadata))


def problems(error: ValidationError, data: Mapping[str, Any], origin_of: Mapping[str, str], source: str) -> str:
    """Turn a validation's errors into at most six lines.

    Args:
        error: what pydantic found.
        data: the recipe as it was read, with the overrides in it.
        origin_of: where a dotted key comes from: ``line 3, ``, or nothing for an override.
        source: the recipe's file or name.
    """
    found: dict[str, str] = {}
    for item in error.errors(include_url=False):
        if item["type"] == "value_error":
            for line in str(item["ctx"]["error"]).splitlines():
                key, _, problem = line.partition(": ")
                found.setdefault(key, problem)
            continue
        key, problem = _problem(item["type"], item["loc"], data)
        found.setdefault(key, problem)
    lines = [f"{origin_of.get(key, '')}{key}: {problem}" for key, problem in found.items()]
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    more = f" (the first {_MAX_SHOWN - 1})" if len(lines) > _MAX_SHOWN else ""
    shown = lines[: _MAX_SHOWN - 1] if more else lines
    return "\n".join([f"{source}: {len(lines)} problems{more}", *(f"  {line}" for line in shown)])


def _problem(kind: str, loc: tuple[int | str, ...], data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the dotted key of an error, and its message."""
    section: type[Section] = Recipe
    value: Any = data
    for depth, part in enumerate(loc):
        key = ".".join(str(name) for name in loc[: depth + 1])
        field = section.model_fields.get(str(part))
        if field is None:
            assert kind == "extra_forbidden", (kind, loc)
            return key, f"there is no such key.{nearest_key(key, data.get('task', 'classification'))}"
        value = value[part]
        if not isinstance(field.default, Section):
            return key, f"found {_show(value)}, expected {expected(field)}{_hint(value, field)}"
        section = type(field.default)
    return key, f"found {_show(value)}, expected keys below it: {', '.join(section.model_fields)}"


def _hint(value: Any, field: FieldInfo) -> str:
    """Return the correct spelling of a value such as ``0,001``, ``'5e-4'``, ``1 000`` or ``on``."""
    text = expected(field)
    if isinstance(value, str):
        meant = number_meant(value, whole="a number" not in text) if "number" in text else None
        if meant is None and "true or false" in text:
            meant = {"on": "true", "yes": "true", "off": "false", "no": "false"}.get(value.lower())
        return f"; write {meant}" if meant else ""
    if isinstance(value, list | tuple) and "a list" in text:
        items = [number_meant(item, whole=False) if isinstance(item, str) else flow(item) for item in value]
        if None not in items and any(isinstance(item, str) for item in value):
            return f"; write [{', '.join(item for item in items if item)}]"
        count = re.search(r"a list of (\d+)", text)
        return HALVED if count and len(value) == 2 * int(count.group(1)) else ""
    return ""


def _show(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    text = flow(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({_KINDS[type(value)]})"


def _describe(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for extra in arguments[1:] for m in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _describe(arguments[0], inner)
    if origin in (Union, UnionType):
        return " or ".join(_describe(argument, metadata) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}" if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}, each {_describe(arguments[0], [])}"
    if origin is dict:
        return f"a mapping from a name to {_describe(arguments[1], [])}"
    return _NAMES[annotation] + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    """Describe the limits of a number, such as `` (above 0)``."""
    limits = {name: getattr(m, name) for m in metadata for name in ("gt", "ge", "lt", "le") if hasattr(m, name)}
    if {"ge", "le"} <= set(limits):
        return f" from {limits['ge']:g} to {limits['le']:g}"
    words = {"gt": "above {:g}", "ge": "{:g} or more", "lt": "below {:g}", "le": "at most {:g}"}
    shown = [words[name].format(limit) for name, limit in limits.items()]
    return f" ({', '.join(shown)})" if shown else ""
