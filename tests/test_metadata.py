"""What the project says of itself agrees in all its files: version, licence, paper."""

from __future__ import annotations

import tomllib
from datetime import date
from pathlib import Path

import yaml

from stvit_cli import __version__

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
