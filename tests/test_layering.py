"""The rooms of the house, read off the imports: they point down only, and what answers at once imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "stvit_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

BELOW = {
    "errors": set(),
    "utils": {"errors"},
    "recipe": {"utils", "errors"},
    "models": {"recipe", "utils", "errors"},
    "data": {"utils", "errors"},
    "engine": {"tasks.base", "tasks.predictions", "models", "data", "recipe", "utils", "errors"},
    "tasks": {"models", "data", "recipe", "utils", "errors"},
    "analysis": {"tasks", "engine", "models", "data", "recipe", "utils", "errors"},
    "api": {"analysis", "tasks", "engine", "models", "data", "recipe", "utils", "errors"},
    "cli": {"api", "analysis", "tasks", "engine", "models", "data", "recipe", "utils", "errors"},
}
"""What each room may import beside itself."""

LIGHT = {"api", "cli", "recipe", "utils", "errors.py"}
HEAVY = {"torch", "torchvision", "timm", "numpy", "matplotlib", "fvcore", "PIL", "safetensors"}


def room(module: str) -> str:
    """Return the room of a module named from the package's root."""
    return module.split(".")[0]


def imports(path: Path, *, at_module_level: bool = False) -> Iterator[str]:
    """Yield the full name of everything a file imports; ``from a import b`` as a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _at_runtime(tree, inside_functions=False) if at_module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_runtime(tree: ast.AST, *, inside_functions: bool = True) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if is_for_types or (isinstance(node, ast.FunctionDef) and not inside_functions):
            continue
        yield node
        yield from _at_runtime(node, inside_functions=inside_functions)


def upward(importer: str, imported: str) -> bool:
    """Whether a module of the package (named from its root) may not import the other."""
    here, there = room(importer), room(imported)
    if here == there or there in ("", "__version__"):
        return False
    if here == "engine" and there == "tasks":
        return not imported.startswith(("tasks.base", "tasks.predictions"))
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
    assert rooms <= {"api", "cli", "recipe", "utils", "errors", "__version__"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_trackers_and_the_hub_are_imported_by_those_who_ask_for_them(path: Path) -> None:
    late = {"tensorboard", "wandb", "mlflow", "trackio", "huggingface_hub"}
    modules = set(imports(path, at_module_level=True))
    assert not {name for name in modules if name.split(".")[0] in late or name.startswith("torch.utils.tensorboard")}


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports, late imports included, but those for types only left out."""
    return {
        module: {found for name in imported(source) if (found := owner(name, sources)) and found != module}
        for module, source in sources.items()
    }


def imported(source: str) -> Iterator[str]:
    for node in _at_runtime(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owner(name: str, modules: Iterable[str]) -> str:
    """Return the module that a full name is, or is in."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def circle(modules: dict[str, set[str]]) -> tuple[str, ...]:
    """Return a circle of imports, empty if there is none."""
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()


def test_there_is_no_circle_of_imports() -> None:
    root = PACKAGE.parent
    names = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    modules = graph({name: path.read_text(encoding="utf-8") for name, path in names.items()})
    assert modules["stvit_cli.models.kernels"] >= {"stvit_cli.models.kernels.build", "stvit_cli.models.kernels.triton.library"}
    assert circle(modules) == ()


def test_a_late_import_that_closes_a_circle_is_found() -> None:
    late = "def f():\n    from a.b import X\n"
    assert circle(graph({"a": "", "a.b": "from a import c", "a.c": late})) == ("a.b", "a.c", "a.b")
    only_for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.b import X\n"
    assert circle(graph({"a": "", "a.b": "from a import c", "a.c": only_for_types})) == ()


def test_super_token_imports_no_kernel() -> None:
    modules = set(imports(PACKAGE / "models" / "super_token.py"))
    assert not {name for name in modules if name.startswith("stvit_cli.models.kernels")}


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
