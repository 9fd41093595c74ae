"""Inheritance by the key ``base``: the layers of a recipe, which are its file and the files it is based on, and overrides."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe, Section
from stvit_cli.recipe.error_messages import dotted_keys, nearest_key
from stvit_cli.recipe.files import find, list_recipes, read
from stvit_cli.recipe.renamed_keys import rename_key, rename_keys, rename_value
from stvit_cli.recipe.tasks import other_tasks_sections
from stvit_cli.recipe.yaml import flow, parse, without_typography

BASE = "base"
"""Key of a file that names the recipe it is based on; not a setting, so not in the schema."""
_MAX_BASES = 4
_OWN = ("name", "description")
"""Keys that are not inherited."""


class Layer(NamedTuple):
    """One file of a recipe."""

    source: str
    """Its name in messages: as the user or the file based on it gives it."""
    text: str
    data: dict[str, Any]
    lines: dict[str, int]
    """The line, from 1, of every dotted key."""
    renamed: list[str]


def read_layers(text: str, source: str, path: Path | None) -> list[Layer]:
    """Read a recipe's text and the files it is based on.

    Args:
        text: the YAML text.
        source: the file's name, for messages.
        path: file of the text, to whose folder the path of a base is relative; None: to the working directory.

    Returns:
        The layer of the text, then that of its base, and so on.

    Raises:
        UserError: a file cannot be read, a base is missing, or bases are circular or nested too deeply.
    """
    layers: list[Layer] = []
    seen = [] if path is None else [path.resolve()]
    while True:
        data, lines = parse(text, source)
        if not isinstance(data, dict):
            found = "nothing" if data is None else f"a {'list' if isinstance(data, list) else 'single value'}"
            raise UserError(f"{source}: found {found}, expected a recipe: sections such as 'model:' with keys below them.")
        data = {key: {} if value is None and _is_section(key) else value for key, value in data.items()}
        layers.append(Layer(source, text, data, lines, rename_keys(data, lines, source)))
        if BASE not in data:
            _drop_other_tasks(layers)
            return layers
        where = f"{source}: line {lines[BASE]}, {BASE}"
        if len(layers) > _MAX_BASES:
            raise UserError(f"{where}: more than {_MAX_BASES} recipes deep; write the settings of some of them into one file.")
        base = data.pop(BASE)
        path = _find_base(base, where, None if path is None else path.parent)
        if path.resolve() in seen:
            chain = " -> ".join([*(layer.source for layer in layers), base])
            raise UserError(f"{where}: the recipes are based on each other in a circle: {chain}")
        seen.append(path.resolve())
        source = base if base == path.stem else str(path)
        text = read(path)


_WRITTEN_FOR_EVERY_TASK = ("detection", "shapes", "segmentation")
"""Sections that earlier versions wrote into the recipe of every task."""


def _drop_other_tasks(layers: Sequence[Layer]) -> None:
    """Drop the other tasks' sections from a file that has those of all tasks, as earlier versions wrote recipes in full."""
    task = next((layer.data["task"] for layer in layers if "task" in layer.data), "classification")
    for layer in layers:
        if all(section in layer.data for section in _WRITTEN_FOR_EVERY_TASK):
            for section in other_tasks_sections(task):
                layer.data.pop(section, None)


def merge(layers: Sequence[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the merged settings, and for messages the origin of each dotted key, such as ``line 3, ``."""
    data: dict[str, Any] = {}
    origin_of: dict[str, str] = {}
    for layer in reversed(layers):
        is_base = layer is not layers[0]
        for key, value in layer.data.items():
            if is_base and key in _OWN:
                continue
            if isinstance(value, dict) and _is_section(key):
                if isinstance(data.setdefault(key, {}), dict):
                    data[key] = data[key] | value
            else:
                data[key] = value
        of = f" of {layer.source}" if is_base else ""
        for key, line in layer.lines.items():
            top = key.partition(".")[0]
            was_merged = isinstance(data.get(top), dict) or not isinstance(layer.data.get(top), dict)
            if was_merged and not (is_base and key in _OWN):
                origin_of[key] = f"line {line}{of}, "
    return data, origin_of


def origins(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Return the layer that sets each dotted key; keys with their default are omitted."""
    found: dict[str, Layer] = {}
    for key in dotted_keys():
        section, _, leaf = key.rpartition(".")
        for layer in layers if key not in _OWN else layers[:1]:
            if leaf in (layer.data.get(section, {}) if section else layer.data):
                found[key] = layer
                break
    return found


def apply_overrides(data: dict[str, Any], overrides: Sequence[str], origin_of: dict[str, str]) -> list[str]:
    """Set the ``key=value`` overrides in ``data``, and clear the origin of their keys.

    Returns:
        A sentence for each renamed key or value.
    """
    known = dotted_keys()
    seen: set[str] = set()
    renamed: list[str] = []
    for override in overrides:
        given, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"Found {override!r}, expected key=value, such as optim.lr=5e-4.")
        key, sentence = rename_key(given)
        renamed += sentence
        if _is_section(key):
            raise UserError(f"{key} is a section; set a key of it, such as {next(k for k in known if k.startswith(key))}=...")
        if key not in known:
            raise _unknown(key, text, data.get("task", "classification"))
        if key in seen:
            raise UserError(f"{key} is given twice{f' ({given} is its old name)' if sentence else ''}; keep one of them.")
        seen.add(key)
        value, _ = parse(text, f"{given}=")
        value, sentence = rename_value(key, value)
        renamed += sentence
        section, _, leaf = key.rpartition(".")
        if not section:
            data[leaf] = value
        elif isinstance(data.setdefault(section, {}), dict):
            data[section] = data[section] | {leaf: value}
        origin_of[key] = ""
    return renamed


def _unknown(key: str, text: str, task: object) -> UserError:
    """Return the error for an override whose key does not exist."""
    if key == BASE:
        return UserError(f"{BASE} is a key of recipe files and cannot be set by key=value; name another recipe instead.")
    if (plain := without_typography(key)) in dotted_keys():
        return UserError(f"{key!r}: curly quotes or odd spaces in a key; write {plain}={without_typography(text)}")
    return UserError(f"There is no key {key!r} in a recipe.{nearest_key(key, task)}")


def _find_base(base: Any, where: str, folder: Path | None) -> Path:
    """Return the file of a base: a shipped recipe by its name, or a path, relative to the folder of the file that names it."""
    if not isinstance(base, str) or not base:
        raise UserError(f"{where}: found {flow(base)}, expected a shipped recipe's name or the path of a file.")
    is_shipped = base in {path.stem for path in list_recipes()}
    try:
        return find(base if is_shipped or folder is None else folder / Path(base).expanduser())
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _is_section(key: str) -> bool:
    field = Recipe.model_fields.get(key)
    return field is not None and isinstance(field.default, Section)


def as_single_file(layers: Sequence[Layer], *, show_origins: bool = False) -> str:
    """Return the settings of all layers as the text of one file, with the head comment of the first.

    Args:
        layers: as `read_layers` returns them.
        show_origins: append to each value the file and line that set it.
    """
    head = list(takewhile(lambda line: not line or line.startswith("#"), layers[0].text.lstrip("\ufeff").splitlines()))
    chain = " -> ".join(layer.source for layer in layers)
    lines = [*"\n".join(head).rstrip().splitlines(), "#" if head else None, f"# Written out; based on: {chain}", ""]
    section = ""
    for key, layer in origins(layers).items():
        before, section = section, key.rpartition(".")[0]
        if section != before:
            lines += ["", f"{section}:"]
        lines += [f"  {line}" if section else line for line in _block(layer, key, show_origins)]
    return "".join(f"{line}\n" for line in lines if line is not None)


def _block(layer: Layer, key: str, show_origins: bool) -> list[str]:
    """Return the lines of a key, dedented: as in its file if they read back the same, otherwise generated."""
    section, _, leaf = key.rpartition(".")
    value = (layer.data[section] if section else layer.data)[leaf]
    origin = f"<- {layer.source}:{layer.lines[key]}" if show_origins else ""
    lines = _source_lines(layer, key, origin)
    return lines if _reads_as(lines, leaf, value) else [f"{leaf}: {flow(value)}" + (f"  # {origin}" if origin else "")]


def _source_lines(layer: Layer, key: str, origin: str) -> list[str]:
    """Return the lines of a key as in its file, with its origin appended to the first."""
    text = layer.text.splitlines()
    first = layer.lines[key] - 1
    last = min(
        (line for other, line in layer.lines.items() if line - 1 > first and not other.startswith(f"{key}.")), default=None
    )
    block = text[first : None if last is None else last - 1]
    while block and (not block[-1].strip() or block[-1].lstrip().startswith("#")):
        block.pop()
    above = list(takewhile(lambda line: line[:1].isspace() and line.lstrip().startswith("#"), reversed(text[:first])))[::-1]
    if origin:
        block[0] = f"{block[0]}  {'' if '#' in block[0] else '# '}{origin}"
    return textwrap.dedent("\n".join([*above, *block])).splitlines()


def _reads_as(lines: list[str], leaf: str, value: Any) -> bool:
    try:
        return bool(parse("\n".join(lines), "")[0] == {leaf: value})
    except UserError:
        return False
