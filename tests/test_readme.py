"""The Python snippets of the README run. Its commands: tests/docs/test_snippets.py."""

import re
import shutil
from pathlib import Path

import pytest

from stvit_cli import WeightsInfo, create_model, save_weights

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON) >= 3
    # What a reader has by then: the run of the quickstart, and one of its samples.
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    info = WeightsInfo("stvit-nano", num_classes=10)
    save_weights(tmp_path / "runs" / "quickstart" / "best.safetensors", create_model("stvit-nano", 10), info)
    shutil.copy(Path(__file__).parent / "images" / "digit-3.png", tmp_path)
    for snippet in PYTHON:
        exec(compile(snippet, "README.md", "exec"), {"__name__": "snippet"})


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
