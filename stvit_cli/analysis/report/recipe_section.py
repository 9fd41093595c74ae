"""The recipe of a run: what differs from the shipped recipe of its name, and from the defaults."""

from __future__ import annotations

import re
from typing import Any

from stvit_cli.analysis.report.run_files import Run
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.recipe.tasks import other_tasks_sections
from stvit_cli.recipe.yaml import flow
from stvit_cli.tasks.report_parts import Column, ReportSection, TablePart, TextPart


def recipe_section(run: Run) -> ReportSection:
    """Return the section."""
    own = recipe_io.flatten(run.recipe)
    shipped = _shipped(run.recipe.name)
    parts: list[TablePart | TextPart] = []
    if shipped is None:
        parts.append(TextPart([f"No shipped recipe is called {run.recipe.name}: below is what differs from the defaults."]))
    else:
        parts.append(_changes(run, own, recipe_io.flatten(shipped)))
    parts.append(_from_defaults(run, own))
    intro = f"Recipe {run.recipe.name}. recipe.yaml in the run's directory has every key."
    return ReportSection("recipe", "Recipe", parts, intro)


def _shipped(name: str) -> Recipe | None:
    """Return the shipped recipe that a run is named after; None where there is none."""
    if name not in [path.stem for path in recipe_io.list_recipes()]:
        return None
    try:
        return recipe_io.load(name)
    except UserError:
        return None


def _changes(run: Run, own: dict[str, Any], shipped: dict[str, Any]) -> TablePart | TextPart:
    title = f"What differs from the recipe {run.recipe.name}"
    rows = [[key, flow(own[key]), flow(shipped[key])] for key in _keys(run, own) if own[key] != shipped[key]]
    if not rows:
        return TextPart(["Nothing: the run follows the shipped recipe."], title)
    note = "Set by hand, or chosen for the data and the machine where the recipe says auto."
    return TablePart([Column("key"), Column("this run"), Column("recipe")], rows, title, note)


def _from_defaults(run: Run, own: dict[str, Any]) -> TablePart | TextPart:
    title, defaults = "What differs from the defaults", recipe_io.flatten(Recipe())
    rows = [[key, flow(own[key]), flow(defaults[key]), _meaning(key)] for key in _keys(run, own) if own[key] != defaults[key]]
    if not rows:
        return TextPart(["Nothing."], title)
    return TablePart([Column("key"), Column("this run"), Column("default"), Column("meaning")], rows, title)


def _keys(run: Run, own: dict[str, Any]) -> list[str]:
    """Return the keys that decide something: without name and description, and without other tasks' sections."""
    others = set(other_tasks_sections(run.recipe.task, run.recipe.data.kind))
    return [key for key in own if key not in ("name", "description", "task") and key.partition(".")[0] not in others]


def _meaning(key: str) -> str:
    """Return the first sentence of what a key means."""
    section, _, leaf = key.partition(".")
    field = Recipe.model_fields[section]
    if leaf:
        field = type(field.default).model_fields[leaf]
    text = " ".join((field.description or "").split())
    return re.split(r"(?<=[.;:]) ", text, maxsplit=1)[0].rstrip(";:")
