"""What the project says of itself agrees in all its files: version, licence, paper."""

from __future__ import annotations

import re
import shutil
import tomllib
from datetime import date
from pathlib import Path

import yaml
from helpers.scripts import load_script

from stvit_cli import __version__
from stvit_cli.recipe.renamed_keys import DEPRECATED, RENAMED, RENAMED_VALUES
from stvit_cli.recipe.yaml import flow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
ARXIV = "2211.11167"


def test_citation_has_what_the_format_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    for entry in (CITATION, CITATION["preferred-citation"]):
        assert entry["title"]
        assert entry["authors"]
        assert all(set(author) in ({"name"}, {"family-names", "given-names"}) for author in entry["authors"])
    assert CITATION["message"]
    assert isinstance(CITATION["date-released"], date)
    assert CITATION["preferred-citation"]["type"] == "conference-paper"


def test_citation_and_package_name_the_same_version_licence_and_paper() -> None:
    assert CITATION["version"] == __version__
    assert CITATION["license"] == PROJECT["license"]
    assert [item["value"] for item in CITATION["preferred-citation"]["identifiers"]] == [f"arXiv:{ARXIV}"]
    assert PROJECT["urls"] == {"Paper": f"https://arxiv.org/abs/{ARXIV}"}


def test_the_version_has_one_place(tmp_path: Path) -> None:
    """hatchling reads it from the package; what repeats it is compared before a tag is published."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["hatch"]["version"]["path"] == "stvit_cli/__init__.py"
    assert "version" in PROJECT["dynamic"]
    release = load_script("tools/release.py")
    assert release.package_version() == __version__
    assert release.disagreements() == []
    (tmp_path / "README.md").write_text("[Site](https://example.org/docs) and [below](#below)\n", encoding="utf-8")
    for name in ("stvit_cli/__init__.py", "CITATION.cff", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changed = (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8").replace("## [Unreleased]", "## [9.0.0] - 2030-01-02")
    (tmp_path / "CHANGELOG.md").write_text(changed, encoding="utf-8")
    (tmp_path / "stvit_cli" / "__init__.py").write_text('__version__ = "9.0.0"\n', encoding="utf-8")
    assert [line.partition(":")[0] for line in release.disagreements("v9.0.0", tmp_path)] == ["CITATION.cff", "CHANGELOG.md"]
    cited = (tmp_path / "CITATION.cff").read_text(encoding="utf-8").replace(__version__, "9.0.0")
    cited = re.sub(r"date-released: \S+", "date-released: 2030-01-02", cited)
    (tmp_path / "CITATION.cff").write_text(cited, encoding="utf-8")
    assert release.disagreements("v9.0.0", tmp_path) == []
    assert release.disagreements("v9.0.1", tmp_path)[0].startswith("the tag is v9.0.1, but")
    (tmp_path / "README.md").write_text("![Image](docs/a.jpg), [a](UPGRADING.md)\n", encoding="utf-8")
    (relative,) = release.disagreements("v9.0.0", tmp_path)
    assert relative.startswith("README.md: 2 links and images are relative, such as docs/a.jpg,")
    assert release.disagreements(root=tmp_path) == []


def test_upgrading_lists_the_keys_that_have_other_names_now() -> None:
    text = (ROOT / "UPGRADING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", text, re.MULTILINE))
    values = {f"{key}={flow(old)}": f"{key}={flow(new)}" for key, pairs in RENAMED_VALUES.items() for old, new in pairs.items()}
    assert {key.partition("=")[0]: new for key, new in rows.items() if key.partition("=")[0] in DEPRECATED} == DEPRECATED
    assert {key: new for key, new in rows.items() if key.partition("=")[0] not in DEPRECATED} == RENAMED | values
    assert ("No key and no value was renamed so far" in text) == (not RENAMED and not RENAMED_VALUES)


def test_the_minimum_of_pytorch_is_that_which_the_documents_explain() -> None:
    (required,) = [text for text in PROJECT["dependencies"] if text.startswith("torch>=")]
    said = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    assert f"PyTorch from version {required.removeprefix('torch>=')}" in said
    assert "CVE-2026-24747" in said


def test_pre_commit_runs_the_tools_of_the_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    check = (ROOT / ".ci" / "check").read_text(encoding="utf-8")
    assert hooks
    assert all(" ".join(hook["entry"].replace("--fix", "").split()) in check for hook in hooks)


def test_ci_runs_the_tests_of_pages_that_a_plain_pytest_leaves_out() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "not browser" in options["addopts"]
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "STVIT_REQUIRE_BROWSER=1" in run
    assert run.rstrip().splitlines()[-1].startswith("pytest -m browser")
    assert "not release" in options["addopts"]
    assert "\npytest -m release -rs tests/release\n" in run
