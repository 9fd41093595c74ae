"""What the shell completes: recipes, models, runs, keys of recipes. Answers at once: it imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import typer

import stvit_cli
from stvit_cli.utils import model_catalog
from stvit_cli.utils.shipped import experiments_folder, recipes_folder, weights_folder

MODELS = tuple(model.name for model in model_catalog.MODELS)
"""The models of `stvit_cli.list_models()` that are for use; the others are rows of Table II."""
RUNS = "runs"
"""The folder of runs whose directory was not named."""


class Key(NamedTuple):
    """A key of a recipe: its default as the schema has it, and its values where they are few."""

    default: str
    values: tuple[str, ...]


def recipes(incomplete: str) -> list[str]:
    """Return the names of the shipped recipes, and the YAML files here, that begin so; a path is left to the shell."""
    shipped = sorted(path.stem for path in recipes_folder().glob("*.yaml"))
    return _starting([*shipped, *sorted(str(path) for path in Path().glob("*.y*ml"))], incomplete)


def experiments(incomplete: str) -> list[str]:
    """Return the names of the experiments of `stvit reproduce` that begin so."""
    return _starting(sorted(path.stem for path in experiments_folder().glob("*.yaml")), incomplete)


def models(incomplete: str) -> list[str]:
    """Return the names of the built-in models that begin so."""
    return _starting(MODELS, incomplete)


def run_dirs(incomplete: str) -> list[str]:
    """Return the run directories that begin so: those here and in ``runs``, or those in the folder that was typed."""
    folder, slash, _ = incomplete.rpartition("/")
    found = []
    for parent in [f"{folder}/"] if slash else ["", f"{RUNS}/"]:
        names = sorted(path.name for path in Path(parent).iterdir()) if Path(parent).is_dir() else []
        found += [f"{parent}{name}" for name in names if Path(parent, name, "recipe.yaml").is_file()]
    return _starting(found, incomplete)


def ablations(incomplete: str) -> list[str]:
    """Return the directories of ablations that begin so."""
    return [path for path in run_dirs(incomplete) if Path(path, "plan.json").is_file()]


def recipes_and_overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Return recipes, and once there is one keys of recipes, that begin so."""
    is_first = not context.params.get("arguments") and context.params.get("resume") is None
    return recipes(incomplete) if is_first else overrides(context, incomplete)


def weights(incomplete: str) -> list[str]:
    """Return run directories, weights files and names of packaged weights that begin so."""
    files = sorted(str(path) for pattern in ("*.safetensors", "*.pth", "*.onnx") for path in Path().glob(pattern))
    return run_dirs(incomplete) + _starting(files, incomplete) + packaged_weights(incomplete)


def packaged_weights(incomplete: str) -> list[str]:
    """Return the names of the packaged weights that begin so."""
    return _starting(
        sorted(path.name.removesuffix(".safetensors") for path in weights_folder().glob("*.safetensors")), incomplete
    )


def overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Return the keys of recipes that begin so, as ``optim.lr=``; of a single one also its values.

    bash parts words at the sign, and completes what follows it alone.
    """
    given = [str(word) for words in context.params.values() if isinstance(words, (list, tuple)) for word in words]
    keys = recipe_keys()
    key_before = next((word for word in reversed(given) if word != "="), "")
    if key_before in keys:
        return _starting(keys[key_before].values, incomplete)
    name, equals, value = incomplete.partition("=")
    if equals:
        return [f"{name}={text}" for text in _starting(keys[name].values, value)] if name in keys else []
    found = _starting(keys, name)
    if len(found) != 1:
        return [f"{key}=" for key in found]
    key = keys[found[0]]  # with a second candidate bash adds no space after the sign, where the value belongs
    return [f"{found[0]}={text}" for text in dict.fromkeys(["", *(key.values or [key.default])])]


def runs_and_overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Return run directories and keys of recipes that begin so."""
    return run_dirs(incomplete) + (overrides(context, incomplete) if incomplete or context.params.get("arguments") else [])


def recipes_and_runs(incomplete: str) -> list[str]:
    """Return recipes and run directories that begin so."""
    return recipes(incomplete) + run_dirs(incomplete)


def models_and_overrides(context: typer.Context, incomplete: str) -> list[str]:
    """Return models and keys of recipes that begin so."""
    return models(incomplete) + (overrides(context, incomplete) if incomplete else [])


@cache
def recipe_keys() -> dict[str, Key]:
    """Return the keys of a recipe by name, read from the source of the schema: importing it is too slow for a completion."""
    folder = Path(stvit_cli.__file__).parent / "recipe"
    trees = [ast.parse((folder / name).read_text(encoding="utf-8")) for name in ("dense_tasks.py", "schema.py")]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}

    def walk(name: str, prefix: str) -> Iterator[tuple[str, Key]]:
        for node in classes[name].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                kind = ast.unparse(node.annotation)
                key = f"{prefix}{node.target.id}"
                if kind in classes:
                    yield from walk(kind, f"{key}.")
                else:
                    yield key, Key(_default(node.value), tuple(_values(node.annotation)))

    return dict(walk("Recipe", ""))


def _default(node: ast.expr | None) -> str:
    """Return a default as a recipe writes it; nothing where it is more than a number or a word."""
    value = node.value if isinstance(node, ast.Constant) else None
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, (int, float, str)) else ""


def _values(annotation: ast.expr) -> Iterator[str]:
    """Yield the values of a key that takes one of a few."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            yield from (
                leaf.value for leaf in ast.walk(node.slice) if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
            )
    if any(isinstance(node, ast.Name) and node.id == "bool" for node in ast.walk(annotation)):
        yield from ("true", "false")


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
