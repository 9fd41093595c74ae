"""Read, validate, write and compare recipes. Imports no torch.

A recipe is made of layers, each overriding the one before: the defaults of the schema, the files that its file is based on, the
file itself, and ``key=value`` overrides.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from stvit_cli.errors import UserError
from stvit_cli.recipe import FREE_ON_RESUME, PATH_KEYS, Recipe, Section
from stvit_cli.recipe.error_messages import dotted_keys, expected, problems
from stvit_cli.recipe.files import find as find
from stvit_cli.recipe.files import list_recipes as list_recipes
from stvit_cli.recipe.files import read
from stvit_cli.recipe.inheritance import Layer, apply_overrides, merge, read_layers
from stvit_cli.recipe.keys_of_0_2 import KEYS_OF_0_2
from stvit_cli.recipe.renamed_keys import RENAMED as RENAMED
from stvit_cli.recipe.renamed_keys import RENAMED_VALUES as RENAMED_VALUES
from stvit_cli.recipe.renamed_keys import warn_once as warn_once
from stvit_cli.recipe.tasks import other_tasks_sections
from stvit_cli.recipe.validation import byte_scale
from stvit_cli.recipe.yaml import as_tuples, flow


class Resolved(NamedTuple):
    """A recipe, with the files it is made of."""

    recipe: Recipe
    layers: list[Layer]
    """The file, then the file it is based on, and so on."""
    renamed: list[str]
    """Renamed keys and values that were given: a sentence per file, and one for the overrides."""


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    The recipe of a run of version 0.1.0 may have ``data.mean`` on the scale of 0 to 255, with a warning.

    Args:
        name_or_path: name of a shipped recipe, or path of a file.
        overrides: such as ``optim.lr=5e-4``; values are read as YAML.

    Raises:
        UserError: there is no such recipe, or it is invalid; all problems at once where possible.

    >>> load("quickstart", ["schedule.epochs=3"]).schedule.epochs
    3
    """
    return resolve(name_or_path, overrides).recipe


def resolve(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Resolved:
    """Read a recipe as `load` does, and return its layers too."""
    path = find(name_or_path)
    return _resolve(read_layers(read(path), str(name_or_path), path), overrides, path.stem, saved=_is_of_run(path))


def from_text(text: str, overrides: Sequence[str] = (), *, source: str = "recipe", name: str = "", saved: bool = False) -> Recipe:
    """Make a recipe of YAML text; ``name`` is used where the text gives none. Raises UserError as ``load`` does."""
    return _resolve(read_layers(text, source, None), overrides, name, saved=saved).recipe


def _is_of_run(path: Path) -> bool:
    """Whether a recipe file was written by a run, beside its environment."""
    return path.name == "recipe.yaml" and (path.parent / "environment.json").is_file()


def _resolve(layers: list[Layer], overrides: Sequence[str], name: str, *, saved: bool) -> Resolved:
    data, origin_of = merge(layers)
    data = {"name": name} | data
    renamed = [f"{layer.source}: {', '.join(layer.renamed)}" for layer in layers if layer.renamed]
    if changed := apply_overrides(data, overrides, origin_of):
        renamed.append(", ".join(changed))
    for sentence in renamed:
        warn_once(sentence)
    _count_shapes_from_1(data)
    try:
        recipe = Recipe.model_validate(as_tuples(data), context={"saved": saved})
    except ValidationError as error:
        raise UserError(problems(error, data, origin_of, layers[0].source)) from None
    for problem in byte_scale(recipe.data) if saved else ():
        warn_once(f"{layers[0].source}: {problem.partition(';')[0]}; kept, as the model was trained with it")
    return Resolved(recipe, layers, renamed)


def _count_shapes_from_1(data: dict[str, Any]) -> None:
    """Set segmentation.reduce_zero_label for synthetic shapes, where the recipe does not."""
    section, source = data.get("segmentation", {}), data.get("data")
    is_shapes = data.get("task") == "segmentation" and isinstance(source, dict) and source.get("kind") == "shapes"
    if is_shapes and isinstance(section, dict) and not {"reduce_zero_label", "label_values"} & section.keys():
        data["segmentation"] = section | {"reduce_zero_label": True}


def dump(recipe: Recipe, *, only_changes: bool = False, explain: bool = False) -> str:
    """Return the recipe as YAML with the sections of its task; `from_text` reads it back to an equal recipe.

    Args:
        recipe: the recipe.
        only_changes: omit keys that have their default.
        explain: precede each key by a comment with its meaning and the values it accepts.
    """
    return "".join(f"{line}\n" for line in _lines(recipe, "", only_changes, explain)) or "{}\n"


_NOT_IN_HASH = frozenset({"name", "description", "data.dir", "train.loggers"})


def recipe_hash(recipe: Recipe) -> str:
    """Return a hash, of 12 hexadecimal digits, of all settings but the name, the description, paths and loggers.

    A key that version 0.2.0 did not have counts only where it differs from its default, so that a recipe keeps its hash, and
    only if it decides what is learned.
    """
    settings = {key: value for key, value in flatten(recipe).items() if key not in _NOT_IN_HASH}
    settings["detection.results_json"] = None  # also a path; kept as a key so that the hashes of older runs stay the same
    if settings["segmentation.label_values"] is None:  # runs of 0.1.0 do not have it
        del settings["segmentation.label_values"]
    defaults = flatten(Recipe())
    settings = {
        key: value
        for key, value in settings.items()
        if key in KEYS_OF_0_2 or (value != defaults[key] and key not in FREE_ON_RESUME)
    }
    if recipe.task != "segmentation":  # the default that older runs have
        settings["segmentation.reduce_zero_label"] = True
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return the recipe with absolute paths, so that it does not depend on the working directory; URLs stay as they are."""
    for key in PATH_KEYS:
        section, _, leaf = key.partition(".")
        value = getattr(getattr(recipe, section), leaf)
        if value is not None and "://" not in value:
            expanded = os.path.expanduser(value)  # noqa: PTH111  # Path.expanduser raises where there is no such user
            changed = getattr(recipe, section).model_copy(update={leaf: str(Path(expanded).resolve())})
            recipe = recipe.model_copy(update={section: changed})
    return recipe


class Change(NamedTuple):
    """A key whose value differs between two recipes."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {flow(self.old)} -> {flow(self.new)}"


def difference(old: Recipe, new: Recipe) -> list[Change]:
    """Return the differences in keys that decide what is learned (all but `FREE_ON_RESUME`), in the order of the schema."""
    before, after = flatten(old), flatten(new)
    return [Change(key, before[key], after[key]) for key in before if before[key] != after[key] and key not in FREE_ON_RESUME]


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return every setting by its dotted key."""
    data = recipe.model_dump()
    return {key: data[key] if "." not in key else data[key.split(".")[0]][key.split(".")[1]] for key in dotted_keys()}


def _lines(section: Section, indent: str, only_changes: bool, explain: bool) -> Iterator[str]:
    others = other_tasks_sections(section.task, section.data.kind) if isinstance(section, Recipe) else []
    for key, field in type(section).model_fields.items():
        if key in others:
            continue
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
