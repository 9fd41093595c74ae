"""Recipes found, read, changed by ``key=value``, written and compared. Imports no torch.

A recipe comes from three places, each over the one before: the defaults of the schema, the file, and ``key=value`` words.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from stvit_cli.errors import UserError
from stvit_cli.recipe import FREE_ON_RESUME, PATH_KEYS, Recipe, Section
from stvit_cli.recipe.words import dotted_keys, expected, nearest_key, problems
from stvit_cli.recipe.yaml import flow, parse, without_typography
from stvit_cli.utils.text import did_you_mean

_MAX_BYTES = 1_000_000


def list_recipes() -> list[Path]:
    """Return the files of the shipped recipes, sorted by name: those of the installed package, or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return sorted((installed if installed.is_dir() else package.parent / "recipes").glob("*.yaml"))


def find(name_or_path: str | Path) -> Path:
    """Return the file of a recipe: a shipped one by its name, or any by its path. Raises UserError where there is none."""
    shipped = {path.stem: path for path in list_recipes()}
    path = Path(name_or_path)
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected the file of a recipe.")
        if not path.exists():
            raise UserError(f"There is no recipe file {path}.{_meant(path, shipped)}")
        return path
    raise UserError(
        f"There is no recipe named {str(name_or_path)!r}.{did_you_mean(str(name_or_path), shipped)}\n"
        f"Shipped: {', '.join(shipped)}. A file of your own is given by its path, such as ./mine.yaml"
    )


def _meant(path: Path, shipped: Iterable[str]) -> str:
    """Suggest what was meant by a file that is not there: one beside it, or a shipped recipe, which goes by its name alone."""
    if path.stem in shipped:
        return f" Did you mean '{path.stem}'?"
    beside = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return did_you_mean(str(path), beside) or did_you_mean(path.stem, shipped)


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_path: the name of a shipped recipe, or a path.
        overrides: words such as ``optim.lr=5e-4``; values are read as YAML.

    Raises:
        UserError: no such recipe, or anything wrong in it, all at once where possible.
    """
    path = find(name_or_path)
    return from_text(_read(path), overrides, source=str(name_or_path), name=path.stem)


def from_text(text: str, overrides: Sequence[str] = (), *, source: str = "recipe", name: str = "") -> Recipe:
    """Make a recipe of YAML text; ``name`` is used where the text gives none. Raises UserError as ``load`` does."""
    data, lines = parse(text, source)
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {'list' if isinstance(data, list) else 'single value'}"
        raise UserError(f"{source}: found {found}, expected a recipe: sections such as 'model:' with keys below them.")
    data = {"name": name} | {key: {} if value is None and _is_section(key) else value for key, value in data.items()}
    places = {key: f"line {line}, " for key, line in lines.items()}
    _apply(data, overrides, places)
    try:
        return Recipe.model_validate(_tuples(data))
    except ValidationError as error:
        raise UserError(problems(error, data, places, source)) from None


def dump(recipe: Recipe, *, only_changes: bool = False, explain: bool = False) -> str:
    """Return the recipe as YAML that ``from_text`` reads back to an equal one.

    Args:
        only_changes: leave out what has its default.
        explain: put a key's meaning and what it accepts above it.
    """
    return "".join(f"{line}\n" for line in _lines(recipe, "", only_changes, explain)) or "{}\n"


def recipe_hash(recipe: Recipe) -> str:
    """Return 12 hexadecimal digits that stand for every setting but the name, the description and paths."""
    settings = {key: value for key, value in flatten(recipe).items() if key not in ("name", "description", "data.dir")}
    settings["detection.results_json"] = None  # also a path; kept as a key so that the hashes of older runs stay the same
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with every path resolved, so that it names the same data from every working directory."""
    for key in PATH_KEYS:
        section, _, leaf = key.partition(".")
        value = getattr(getattr(recipe, section), leaf)
        if value is not None:
            changed = getattr(recipe, section).model_copy(update={leaf: str(Path(os.path.expanduser(value)).resolve())})
            recipe = recipe.model_copy(update={section: changed})
    return recipe


class Change(NamedTuple):
    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {flow(self.old)} -> {flow(self.new)}"


def difference(old: Recipe, new: Recipe) -> list[Change]:
    """Return the keys that differ and decide what is learned (all but ``FREE_ON_RESUME``), in the order of the schema."""
    before, after = flatten(old), flatten(new)
    return [Change(key, before[key], after[key]) for key in before if before[key] != after[key] and key not in FREE_ON_RESUME]


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return every setting by its dotted key."""
    data = recipe.model_dump()
    return {key: data[key] if "." not in key else data[key.split(".")[0]][key.split(".")[1]] for key in dotted_keys()}


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is larger than a megabyte; expected the file of a recipe.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _is_section(key: str) -> bool:
    field = Recipe.model_fields.get(key)
    return field is not None and isinstance(field.default, Section)


def _apply(data: dict[str, Any], overrides: Sequence[str], places: dict[str, str]) -> None:
    """Set the ``key=value`` words in ``data``; note in ``places`` that the value is from there."""
    known = dotted_keys()
    seen: set[str] = set()
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"Found {word!r}, expected key=value, such as optim.lr=5e-4.")
        if _is_section(key):
            raise UserError(f"{key} is a section; set a key of it, such as {next(k for k in known if k.startswith(key))}=...")
        if key not in known:
            if (plain := without_typography(key)) in known:
                raise UserError(f"{key!r}: curly quotes or odd spaces in a key; write {plain}={without_typography(text)}")
            raise UserError(f"There is no key {key!r} in a recipe.{nearest_key(key)}")
        if key in seen:
            raise UserError(f"{key} is given twice; keep one of them.")
        seen.add(key)
        value, _ = parse(text, f"{key}=")
        section, _, leaf = key.rpartition(".")
        if not section:
            data[leaf] = value
        elif isinstance(data.setdefault(section, {}), dict):
            data[section] = data[section] | {leaf: value}
        places[key] = ""


def _tuples(value: Any) -> Any:
    """Return the data with tuples for lists, as the strict schema wants them."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _lines(section: Section, indent: str, only_changes: bool, explain: bool) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if only_changes and value == field.default:
            continue
        if isinstance(value, Section):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ", only_changes, explain)
            continue
        if explain:
            takes = expected(field)
            yield f"{indent}# {' '.join((field.description or '').split())} {takes[0].upper()}{takes[1:]}."
        yield f"{indent}{key}: {flow(value)}"
