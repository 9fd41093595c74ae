"""Run a function after a module has been imported, now or later, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def call_after_import(name: str, function: Callable[[], object]) -> None:
    """Call ``function`` now if the module is imported already, otherwise right after its first import.

    Args:
        name: the full name of the module, such as ``timm.models``.
        function: called once, without arguments.
    """
    if name in sys.modules:
        function()
    else:
        sys.meta_path.insert(0, _Finder(name, function))


class _Finder:
    """Finds one module as Python does, once, and has its loader call the function afterwards."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self.name, self.function = name, function

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        loader, execute = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # the loader's own method again, which reload() uses
            execute(module)
            self.function()

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
