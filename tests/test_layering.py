"""The rooms of the house, read off the imports: they point down only, and what answers at once imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "stvit_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

BELOW = {
    "errors": set(),
    "utils": {"errors"},
    "recipe": {"utils", "errors"},
    "models": {"recipe", "utils", "errors"},
    "data": {"recipe", "utils", "errors"},
    "engine": {"tasks.base", "models", "data", "recipe", "utils", "errors"},
    "tasks": {"models", "data", "recipe", "utils", "errors"},
    "analysis": {"tasks", "engine", "models", "data", "recipe", "utils", "errors"},
    "cli": {"analysis", "tasks", "engine", "models", "data", "recipe", "utils", "errors"},
}
"""What each room may import beside itself."""

LIGHT = {"cli", "recipe", "utils", "errors.py"}
HEAVY = {"torch", "torchvision", "timm", "numpy", "matplotlib", "fvcore", "PIL", "safetensors"}


def room(module: str) -> str:
    """Return the room of a module named from the package's root."""
    return module.split(".")[0]


def imports(path: Path, *, at_module_level: bool = False) -> Iterator[str]:
    """Yield the full name of everything a file imports; ``from a import b`` as a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _at_module_level(tree) if at_module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_module_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if isinstance(node, ast.FunctionDef) or is_for_types:
            continue
        yield node
        yield from _at_module_level(node)


def upward(importer: str, imported: str) -> bool:
    """Whether a module of the package (named from its root) may not import the other."""
    here, there = room(importer), room(imported)
    if here == there or there in ("", "__version__"):
        return False
    if here == "engine" and there == "tasks":
        return not imported.startswith("tasks.base")
    if here == "engine" and there == "models":
        return not imported.startswith("models.weights")  # how a model runs is up to the task: `Task.prepare`
    return there not in BELOW[here]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    importer = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    if importer.startswith("__"):
        pytest.skip("the package's front door opens every room")
    ours = [name.removeprefix("stvit_cli.") for name in imports(path) if name.startswith("stvit_cli.")]
    # `from stvit_cli import tasks` names a room as `stvit_cli.tasks` does.
    assert [name for name in ours if upward(importer, name)] == []


@pytest.mark.parametrize("path", [path for path in FILES if room(path.relative_to(PACKAGE).parts[0]) in LIGHT], ids=str)
def test_what_answers_at_once_imports_nothing_heavy(path: Path) -> None:
    modules = list(imports(path, at_module_level=True))
    assert [name for name in modules if name.split(".")[0] in HEAVY] == []
    rooms = {room(name.removeprefix("stvit_cli.")) for name in modules if name.startswith("stvit_cli.")}
    assert rooms <= {"cli", "recipe", "utils", "errors", "__version__"}


def test_nothing_imports_click() -> None:
    assert [path for path in FILES if any(name.split(".")[0] == "click" for name in imports(path))] == []


def test_the_rule_would_notice() -> None:
    assert upward("models.stvit", "data.loader.build")
    assert upward("data.loader", "models.create_model")
    assert upward("engine.session", "models.kernels.use_kernels")
    assert not upward("engine.trainer", "models.weights.file")
    assert upward("engine.trainer", "tasks.build")
    assert not upward("engine.trainer", "tasks.base.Task")
    assert upward("tasks.base", "engine.fit")
    assert upward("recipe", "models.list_models")
    assert upward("errors", "recipe.Recipe")
    assert upward("utils.files", "recipe.Recipe")
    assert not upward("recipe.io", "utils.text.did_you_mean")
    assert not upward("cli.train", "tasks.classification.predict")
    assert not upward("recipe.io", "recipe.yaml.parse")
    assert len(FILES) > 20
