"""``stvit report``: a page for every run, finished or not, and what is missing is said on it."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from conftest import Stvit

import stvit_cli
from stvit_cli.analysis.report.run_files import read_run

SAVED = Path(__file__).parents[1] / "golden" / "saved_by_0_1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.analysis.report.speed.SECONDS", 0.0)


@pytest.fixture
def run(short_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    return Path(shutil.copytree(short_run, tmp_path / "a run"))


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)"', page)


def without_data(run: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["dir"] = str(run / "moved")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_a_page_of_every_section_is_written_and_its_path_printed(stvit: Stvit, run: Path) -> None:
    ended = stvit("report", run)
    assert (ended.code, ended.out) == (0, f"{run / 'report.html'}\n")
    page = (run / "report.html").read_text()
    own = ["curves", "data", "super-tokens", "speed", "recipe", "environment", "commands"]
    assert sections(page)[0] == "summary"
    assert sections(page)[-len(own) :] == own
    assert {"metrics", "confusion"} <= set(sections(page))
    assert "could not be made" not in page
    assert page.count('class="note warning"') == 1  # where there is no JavaScript
    best = json.loads((run.parent / "a run" / "evaluation.json").read_text())["metrics"]["top1"]
    assert f"It names the right class of {best:.2f} %" in page
    assert page.count("<dt>top-1</dt>") == 1  # the terminal's name, and not in the summary and again right below it
    assert not list(run.glob(".*part"))


def test_the_python_twin_writes_where_it_is_told(run: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    path = stvit_cli.report(run, tmp_path / "page.html", say=stages.append)
    assert path == tmp_path / "page.html"
    assert len(stages) >= 3
    assert not (run / "report.html").exists()


def test_data_that_have_moved_are_said_and_kept_metrics_shown(stvit: Stvit, run: Path) -> None:
    without_data(run)
    assert stvit("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "The data cannot be read now:" in page
    assert {"metrics", "confusion", "curves", "recipe"} <= set(sections(page))
    assert "could not be made" not in page


def test_without_predictions_and_data_the_rest_is_shown(stvit: Stvit, run: Path) -> None:
    without_data(run)
    (run / "evaluation.json").unlink()
    assert stvit("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "There are no predictions to look at:" in page
    assert {"summary", "curves", "recipe", "commands"} <= set(sections(page))


def test_a_run_that_is_not_complete_says_how_to_resume_it(stvit: Stvit, run: Path) -> None:
    for name in ("best.safetensors", "last.safetensors", "evaluation.json", "environment.json"):
        (run / name).unlink()
    rows = (run / "metrics.jsonl").read_text().splitlines()
    first = next(row for row in rows if '"train"' in row)
    (run / "metrics.jsonl").write_text(first + '\n{"kind": "train", "st')
    assert stvit("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "The run is not complete: it came to step" in page
    assert "stvit train --resume" in page
    assert "It has not been evaluated yet." in page
    assert "metrics.jsonl: 1 of 2 lines cannot be read and are left out." in page
    assert "environment.json cannot be read" in page


def test_images_that_cannot_be_read_are_named(stvit: Stvit, run: Path, image_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(image_folder, tmp_path / "data"))
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"]["dir"] = str(folder)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert stvit("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "cannot be opened now" in page
    assert "Inference was not measured:" in page
    assert "could not be made" not in page


@pytest.mark.parametrize("name", ["a rum", "nowhere", "."])
def test_a_path_that_is_no_run_is_refused(stvit: Stvit, run: Path, name: str) -> None:
    ended = stvit("report", run.parent / name)
    assert ended.code == 2
    assert "is not the directory of a run" in ended.err
    assert ("Did you mean 'a run'?" in ended.err) == (name == "a rum")
    assert ("1 run is in it: 'a run'" in ended.err) == (name == ".")
    assert len(ended.err.splitlines()) <= 6


def test_a_run_of_version_0_1_has_a_report(stvit: Stvit, tmp_path: Path) -> None:
    with tarfile.open(SAVED / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (path,) = [recipe.parent for recipe in tmp_path.rglob("recipe.yaml")]
    assert stvit("report", path).code == 0
    assert {"metrics", "curves", "recipe"} <= set(sections((path / "report.html").read_text()))


@pytest.mark.report
def test_a_run_ends_with_its_report_unless_the_recipe_says_no(
    stvit: Stvit, image_folder: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--recipe", "quickstart", "--data", image_folder, *small, "schedule.epochs=2"]
    ended = stvit(*words, "--output", tmp_path / "one")
    assert ended.code == 0
    assert f"Report: {tmp_path / 'one' / 'report.html'}" in ended.err
    assert "metrics" in sections((tmp_path / "one" / "report.html").read_text())
    assert stvit(*words, "--output", tmp_path / "two", "train.report=false").code == 0
    assert not (tmp_path / "two" / "report.html").exists()

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no reason")

    monkeypatch.setattr("stvit_cli.analysis.report.run_report.run_report", fail)
    ended = stvit(*words, "--output", tmp_path / "three")
    assert ended.code == 0
    assert "The report was not written: no reason" in ended.err
    assert f"stvit report {tmp_path / 'three'}" in ended.err


def test_the_best_evaluation_is_the_one_of_the_best_weights(short_run: Path) -> None:
    best = read_run(short_run).best
    reported = json.loads((short_run.parent / "run.json").read_text())
    assert best is not None
    assert (best.row["epoch"], best.value) == (reported["best_epoch"], reported["top1"])


def test_metrics_that_are_not_defined_are_no_numbers(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    made = {"kind": "eval", "step": 99, "epoch": 50.0, "box_ap": 0.0, "box_ap_large": -1.0, "ema_mask_ap": -1.0, "loss": -1.0}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*rows, made])))
    last = read_run(run).evals[-1]
    assert [last[name] for name in ("box_ap", "box_ap_large", "ema_mask_ap", "loss")] == [0.0, None, None, -1.0]
