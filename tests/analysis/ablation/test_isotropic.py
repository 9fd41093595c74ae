"""Table II: counts beside the paper's, what rows say against each other, and two rows trained through the command line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stvit_cli import engine
from stvit_cli.analysis.ablation.isotropic.ablation import IsotropicAblation
from stvit_cli.analysis.ablation.isotropic.report import Report, report_training
from stvit_cli.analysis.ablation.isotropic.table import NUMBERS, Row, Setting, build_table, compare, notes_on_counts, summarize
from stvit_cli.analysis.ablation.processes import slots
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.models.isotropic_rows import MINI
from stvit_cli.recipe import io as recipe_io
from stvit_cli.utils import model_catalog

# Multiply-adds without norms, in G, that reproduce the supplement's rounded figures.
GIGAS = [4.49, 4.33, 4.13, 4.30, 3.95, 4.13, 3.95]


@pytest.fixture(scope="module")
def counts() -> list[Row]:
    return build_table(Setting(), {})


def mini_rows(scores: dict[int, list[float]]) -> list[Row]:
    by_seed = {number: dict(enumerate(values)) for number, values in scores.items()}
    return build_table(Setting(MINI, image_size=64, num_classes=10), by_seed)


def test_counts_of_every_row_match_the_paper(counts: list[Row]) -> None:
    for row, gigas in zip(counts, GIGAS, strict=True):
        assert abs(row.params - row.paper.params) <= 0.6e6
        assert abs(row.flops - row.paper.flops) <= 0.1e9
        assert row.flops / 1e9 == pytest.approx(gigas, abs=0.01)
        assert row.uncounted == {}
        listed = model_catalog.entry(row.model)
        assert listed is not None
        assert (listed.params, listed.flops, listed.top1) == (row.params, row.flops, ((224, row.paper.top1),))
    assert "Rows" not in " ".join(notes_on_counts(counts))  # none is too far away


def test_table_is_printed_and_written(stvit: Any, tmp_path: Path) -> None:
    ended = stvit("isotropic-ablation", "--json", "-", "--output", tmp_path)
    assert ended.code == 0
    rows = json.loads(ended.out)
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["rpe"] for row in rows] == [True] * 5 + [False] * 2
    assert rows[4] | {"params": 0, "flops": 0} == {
        "row": 5,
        "model": "isotropic-stvit-20",
        "dims": [64, 128, 320, 512],
        "depths": [3, 5, 9, 3],
        "rpe": True,
        "params": 0,
        "flops": 0,
        "uncounted": {},
        "image_size": 224,
        "num_classes": 1000,
        "paper": {"params": 24e6, "flops": 4.0e9, "top1": 82.6},
        "top1": None,
        "top1_std": None,
        "top1_interval": None,
        "top1_by_seed": [],
    }
    assert "24.17 M" in ended.err
    assert "82.6%" in ended.err
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    written = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["paper_top1"] for line in written] == ["81.3", "82.3", "81.4", "81.7", "82.6", "80.2", "82.3"]
    assert (tmp_path / "table.md").read_text(encoding="utf-8").count("\n| ") == 9
    with Image.open(tmp_path / "table.png") as image:
        assert min(image.size) > 400


@pytest.mark.parametrize(
    ("swin", "stvit_", "verdict"),
    [
        ([90.0, 90.4], [92.0, 92.5], "(significantly in 1), and significantly behind in 0"),
        ([90.0, 92.0], [90.5, 92.7], "(significantly in 0), and significantly behind in 0"),
        ([92.0, 92.4], [90.0, 90.3], "ahead in 0 of 1 pairs (significantly in 0), and significantly behind in 1"),
        ([90.0], [92.0], "ahead in 1 of 1 pairs."),
    ],
)
def test_gain_is_compared_with_the_variation_between_seeds(swin: list[float], stvit_: list[float], verdict: str) -> None:
    comparisons = compare(mini_rows({3: swin, 5: stvit_, 6: [50.0]}))
    text = " ".join(summarize(comparisons))
    assert verdict in text
    assert f"STViT {sum(stvit_) / len(stvit_) - sum(swin) / len(swin):+.2f} points vs. Swin (paper +1.2)" in text
    assert ("one seed" in text) == (len(swin) == 1)


def test_gain_is_paired_by_seed() -> None:
    """Differences of 10, 11 and 12 of seeds whose accuracies differ by far more: t with two degrees of freedom is 4.303."""
    (comparison,) = compare(mini_rows({1: [50.0, 60.0, 70.0], 2: [60.0, 71.0, 82.0]}))
    assert comparison.gain.mean == pytest.approx(11)
    assert comparison.gain.low == pytest.approx(11 - 4.3027 / 3**0.5, abs=1e-3)
    assert "95 % interval [+8.52, +13.48] over 3 seeds" in comparison.sentence()


def test_all_pairs_of_the_paper_are_compared() -> None:
    rows = mini_rows({number: [90.0 + number, 91.0 + number] for number in NUMBERS})
    assert [(c.swin.number, c.stvit.number) for c in compare(rows)] == [(1, 2), (3, 5), (4, 5), (6, 7)]
    report = report_training(rows, "mine")
    assert "not to be compared" in " ".join(report.notes)
    assert "quarter" in report.title
    assert "91.50% [85.15, 97.85] (2 seeds)" in report.cells()[0]
    assert not any("Largest difference" in note for note in report.notes)


def test_plot_has_a_second_panel_for_trained_rows(tmp_path: Path) -> None:
    Report("untrained", mini_rows({}), ["a note"]).write(tmp_path / "untrained")
    Report("trained", mini_rows({3: [90.0, 91.0], 5: [92.0, 92.5]}), ["a note"]).write(tmp_path / "trained")
    with Image.open(tmp_path / "untrained/table.png") as untrained, Image.open(tmp_path / "trained/table.png") as trained:
        assert trained.width > 1.5 * untrained.width


BRIEF = ("schedule.epochs=1", "schedule.warmup_epochs=0", "train.eval_every_epochs=1", "data.num_workers=0")


def test_stopped_ablation_resumes_with_the_remaining_row(stvit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the second row, the ablation resumes with that row alone."""
    trained: list[str] = []
    fit = engine.fit

    def fit_one(task: Any, recipe: Any, run_dir: Path, **others: Any) -> Any:
        trained.append(recipe.model.name)
        if trained == ["isotropic-mini-swin-20-global", "isotropic-mini-stvit-20"]:
            raise Interrupted(signal.SIGINT)
        return fit(task, recipe, run_dir, **others)

    monkeypatch.setattr(engine, "fit", fit_one)
    runs = tmp_path / "runs"
    stopped = stvit("isotropic-ablation", "--recipe", "isotropic-mini", "--rows", "4,5", "--output", runs, *BRIEF)
    assert stopped.code == 130
    assert f"--resume {runs}" in stopped.err
    half = json.loads((runs / "table.json").read_text())
    assert [row["row"] for row in half if row["top1"] is not None] == [4]

    resumed = stvit("isotropic-ablation", "--resume", runs, "--json", tmp_path / "results.json")
    assert resumed.code == 0
    assert trained[2:] == ["isotropic-mini-stvit-20"]
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["row"] for row in rows if row["top1"] is not None] == [4, 5]
    assert all(20 < rows[number - 1]["top1"] <= 100 for number in (4, 5))  # an epoch is enough to be better than chance
    assert (rows[4]["num_classes"], rows[4]["image_size"]) == (10, 64)
    assert "Rows 4 and 5: STViT" in resumed.out
    assert "not to be compared" in resumed.out

    again = stvit("isotropic-ablation", "--resume", runs)  # all is there: nothing is trained
    assert again.code == 0
    assert len(trained) == 3
    changed = stvit("isotropic-ablation", "--resume", runs, "optim.lr=0.5")
    assert changed.code == 2
    assert "optim.lr: 0.001 -> 0.5" in changed.err


def test_runs_share_budget_and_seeds(tmp_path: Path) -> None:
    recipe = recipe_io.load("isotropic-mini", ["train.seed=3", "model.grid_sizes=[4, 2, 1, 1]", "model.num_iters=2"])
    runs = IsotropicAblation(tmp_path, recipe, (4, 5), 2).runs
    assert [(run.seed, run.path.name) for run in runs] == [
        (3, "row4-seed3"),
        (3, "row5-seed3"),
        (4, "row4-seed4"),
        (4, "row5-seed4"),
    ]
    changed = {change.key for run in runs for change in recipe_io.difference(recipe, run.recipe)}
    assert changed == {"model.name", "model.grid_sizes", "model.num_iters", "train.seed"}
    assert [run.recipe.model.grid_sizes for run in runs[:2]] == [None, (4, 2, 1, 1)]  # a window has no super tokens
    assert [run.recipe.model.num_iters for run in runs[:2]] == [None, 2]
    assert [run.score for run in runs] == [None] * 4


def test_rows_are_trained_by_the_recipe_of_stvit() -> None:
    changes = recipe_io.difference(recipe_io.load("deit300"), recipe_io.load("isotropic300"))
    assert {change.key for change in changes} == {"model.name", "model.drop_path_rate"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rows", "3,8", "--recipe", "isotropic-mini"], "expected rows from 1 to 7"),
        (["--rows", "5-3", "--recipe", "isotropic-mini"], "expected rows from 1 to 7"),
        (["--rows", "two", "--recipe", "isotropic-mini"], "expected rows from 1 to 7"),
        (["--recipe", "quickstart"], "expected a row of Table II"),
        (["--recipe", "isotropic-min"], "Did you mean 'isotropic-mini'?"),
        (["--rows", "4"], "Nothing is trained without a recipe"),
        (["optim.lr=1"], "Nothing is trained without a recipe"),
        (["--resume", "nowhere"], "holds no ablation"),
        (["--resume", "nowhere", "--recipe", "isotropic-mini"], "leave --recipe and --output out"),
        (["--recipe", "isotropic300"], "data.dir"),
    ],
)
def test_wrong_input_is_refused(
    stvit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stvit("isotropic-ablation", *argv)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert list(tmp_path.iterdir()) == []


def test_each_process_gets_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert [slot.environment for slot in slots(2)] == [{"CUDA_VISIBLE_DEVICES": n} for n in ("4", "5")]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [slot.environment for slot in slots(2)] == [{"CUDA_VISIBLE_DEVICES": n} for n in ("0", "1")]
    with pytest.raises(UserError, match="found 3 GPUs"):
        slots(4)


@pytest.mark.slow
def test_rows_train_in_parallel_processes(stvit: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    ended = stvit(
        "isotropic-ablation", "--recipe", "isotropic-mini", "--rows", "6,7", "--parallel", "2", "--output", runs, *BRIEF
    )
    assert ended.code == 0
    assert [row["row"] for row in json.loads((runs / "table.json").read_text()) if row["top1"] is not None] == [6, 7]
    for name in ("row6-seed0", "row7-seed0"):
        assert (runs / name / "best.safetensors").is_file()
        assert "Best top-1" in (runs / f"{name}.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_log_of_a_failed_process_is_quoted(stvit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    runs = tmp_path / "runs"
    ended = stvit(
        "isotropic-ablation", "--recipe", "isotropic-mini", "--parallel", "2", "--output", runs, "train.device=cuda", *BRIEF
    )
    assert ended.code == 2
    assert "row1-seed0 failed: train.device is cuda, but PyTorch finds no GPU here." in ended.err


@pytest.mark.slow
def test_rows_train_in_sequence_under_torchrun(tmp_path: Path) -> None:
    """The processes stay joined from one row to the next."""
    arguments = ["isotropic-ablation", "--recipe", "isotropic-mini", "--rows", "1,2", "--output", str(tmp_path / "runs"), *BRIEF]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "stvit_cli", *arguments, "--json", "-"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [row["row"] for row in json.loads(ended.stdout) if row["top1"] is not None] == [1, 2]


@pytest.mark.slow
def test_every_process_saves_on_ctrl_c(tmp_path: Path) -> None:
    """One Ctrl-C to the command reaches every run, which saves its state in the middle of its first epoch."""
    arguments = [
        "isotropic-ablation",
        "--recipe",
        "isotropic-mini",
        "--rows",
        "1,2",
        "--parallel",
        "2",
        "--output",
        str(tmp_path / "runs"),
    ]
    process = subprocess.Popen([sys.executable, "-m", "stvit_cli", *arguments, *BRIEF], stderr=subprocess.PIPE, text=True)
    logs = [tmp_path / "runs" / f"row{number}-seed0.log" for number in (1, 2)]
    deadline = time.monotonic() + 300
    while not all(log.exists() and "images to train on" in log.read_text(encoding="utf-8") for log in logs):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert f"--resume {tmp_path / 'runs'}" in error
    for log in logs:
        assert "Stopped by SIGTERM; saved after step" in log.read_text(encoding="utf-8")
        assert len(list((log.with_suffix("") / "checkpoints").glob("step_*"))) == 2
