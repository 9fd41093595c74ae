"""The reference of the Python functions, from `stvit_cli.__all__`; mkdocstrings renders their docstrings."""

from __future__ import annotations

import stvit_cli

GROUPS = ("Train, evaluate, predict", "A trained model", "Models and weights", "Callbacks", "Results", "Errors")


def page() -> str:
    """Return a directive of mkdocstrings for each public name, by groups."""
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in stvit_cli.__all__:
        if not name.startswith("_"):
            groups[_group(name)].append(name)
    lines: list[str] = []
    for group, names in groups.items():
        lines += [f"## {group}", "", *(f"::: stvit_cli.{name}\n" for name in names)]
    return "\n".join(lines)


def _group(name: str) -> str:
    """Return where a name belongs, by the module that it comes from."""
    module = stvit_cli._MODULES[name]
    if module == "errors":
        return "Errors"
    if module == "engine.callbacks":
        return "Callbacks"
    if not module.startswith("api"):
        return "Models and weights"
    if name in ("load", "TrainedModel"):
        return "A trained model"
    return "Train, evaluate, predict" if name.islower() else "Results"
