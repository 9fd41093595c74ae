"""An undisturbed run of the stand-in task, for all tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import toy


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of one process that nothing disturbed."""
    from stvit_cli import engine

    folder = tmp_path_factory.mktemp("unbroken")
    waiting = toy.start(lambda: engine.fit(toy.ToyTask(norm=True), toy.recipe(), folder / "run"), folder)
    assert [ended.code for ended in waiting()] == [0]
    return folder / "run"
