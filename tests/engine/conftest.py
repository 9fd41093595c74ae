"""The stand-in task, for all tests of the engine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load_toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_toy", Path(__file__).with_name("toy.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    return sys.modules.get("engine_toy") or _load_toy()


@pytest.fixture(scope="session")
def unbroken(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of one process that nothing disturbed."""
    from stvit_cli import engine

    folder = tmp_path_factory.mktemp("unbroken")
    waiting = toy.start(lambda: engine.fit(toy.ToyTask(norm=True), toy.recipe(), folder / "run"), folder)
    assert [ended.code for ended in waiting()] == [0]
    return folder / "run"
