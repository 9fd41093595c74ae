"""The Python snippets of README and guides run, and the README's badges are true. Its commands: tests/docs/test_snippets.py."""

import re
import shutil
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

from stvit_cli import WeightsInfo, create_model, save_weights

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/python.md", "docs/detection.md", "docs/segmentation.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # What a reader has by then: a clone, the run of the quickstart, and one of its samples.
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    info = WeightsInfo("stvit-nano", num_classes=10)
    save_weights(tmp_path / "runs" / "quickstart" / "best.safetensors", create_model("stvit-nano", 10), info)
    (tmp_path / "tests").mkdir()
    shutil.copytree(ROOT / "tests" / "images", tmp_path / "tests" / "images")
    shutil.copy(ROOT / "tests" / "images" / "digit-3.png", tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, page, "exec"), {"__name__": "snippet"})


def test_the_badges_say_what_pyproject_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    badges = dict(re.findall(r"/badge/([^-]+)-([^-]+)-", unquote(README)))
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert badges["Python"] == f"{versions[0]}_to_{versions[-1]}"
    assert project["requires-python"] == f">={versions[0]}"
    assert f"torch{badges['PyTorch'].replace('_', '').replace('≥', '>=')}" in project["dependencies"]
    assert badges["licence"] == project["license"]


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 140


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
