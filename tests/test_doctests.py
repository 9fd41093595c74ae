"""The examples in the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for path in sorted((ROOT / "stvit_cli").rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES]
PUBLIC = {"registry": 2, "stvit": 1, "super_token": 2, "neighbours": 1, "weights.file": 2, "kernels": 1, "optimize.fuse": 1}
"""Modules of the models with the number of examples of names that users import."""


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0  # an example may be skipped


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_have_examples(module: str) -> None:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(f"stvit_cli.models.{module}"))
    assert sum(bool(test.examples) for test in found) >= PUBLIC[module]
