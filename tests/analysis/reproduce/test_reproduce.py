"""`stvit reproduce`: definitions, runs recognized by their recipes, the arithmetic of the tables, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import stvit_cli
from stvit_cli.analysis.ablation.isotropic.table import LABELS, PAIRS, PAPER
from stvit_cli.analysis.ablation.runs import Run
from stvit_cli.analysis.reproduce import experiments, measurements, results
from stvit_cli.analysis.reproduce.experiments import Experiment
from stvit_cli.analysis.reproduce.found_run import FoundRun, find_runs
from stvit_cli.analysis.reproduce.markdown import as_markdown
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.models.isotropic_rows import MINI, ROWS
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.bootstrap import mcnemar
from stvit_cli.tasks.image_scores import ImageScores

SMALL = """
title: Small
question: Which is better?
recipe: quickstart
overrides: {schedule.epochs: 2}
score: last
metrics: [top1]
seeds: 2
extra_seed: true
minutes: 1
settings:
  base: {}
  wide: {overrides: {augment.hflip: 0.5}, published: 90.5}
"""


@pytest.fixture
def small() -> Experiment:
    return experiments.read("small", SMALL)


def write_run(path: Path, setting: experiments.Setting, seed: int, top1: float, *, epoch: float = 2.0, **row: Any) -> FoundRun:
    """Write what a run leaves: ten steps of 64 images at 32 a second, and an evaluation of four seconds."""
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe_io.dump(setting.of_seed(seed)))
    environment = {"started": "2026-01-02T03:04:05+0000", "cores": 2, "threads": 1, "versions": {"stvit": "0.2.0"}}
    (path / "environment.json").write_text(json.dumps(environment | {"device": "cpu", "processor": "EPYC with AVX2"}))
    batch = setting.recipe.train.global_batch_size
    rows = [
        {"kind": "train", "step": 10, "epoch": epoch, "images_per_second": 0.5 * batch},
        {"kind": "eval", "step": 10, "epoch": epoch, "num_images": 360, "top1": top1, "seconds": 4.0, **row},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FoundRun(path, recipe_io.load(path / "recipe.yaml"))


def test_every_experiment_is_defined_and_its_recipes_are_valid() -> None:
    shipped = {path.stem for path in recipe_io.list_recipes()}
    names = experiments.names()
    assert {"fashion-mnist", "isotropic-fashion", "ablations", "shapes-detection", "shapes-segmentation"} <= set(names)
    for name in names:
        own = experiments.load(name)
        for setting in own.settings:
            if setting.recipe_name in shipped:
                assert setting.recipe.task in ("classification", "detection", "segmentation")
        labels = [setting.label for setting in own.settings]
        assert all(label in labels and other in labels for label, other in own.comparisons)


def test_table_ii_has_the_papers_rows_pairs_and_accuracies() -> None:
    own = experiments.load("isotropic-fashion")
    assert {setting.label: setting.published for setting in own.settings} == {name: paper.top1 for name, paper in PAPER.items()}
    assert [setting.overrides["model.name"] for setting in own.settings] == [MINI + name for name in ROWS]
    names = list(LABELS)
    assert own.comparisons == [(names[stvit - 1], names[swin - 1]) for swin, stvit in PAIRS]


def test_runs_are_recognized_by_their_recipes_wherever_they_are(small: Experiment, tmp_path: Path) -> None:
    base, wide = small.settings
    write_run(tmp_path / "a" / "any-name", base, 0, 90.0)
    write_run(tmp_path / "b" / "deep" / "er", wide, 1, 91.0)
    write_run(tmp_path / "c", wide, 0, 80.0, epoch=1.0)
    other = experiments.read("other", SMALL.replace("hflip: 0.5", "hflip: 0.25"))
    write_run(tmp_path / "d", other.settings[1], 0, 70.0)
    lines, _, notes = results.collect(small, find_runs(tmp_path))
    assert {key: line["top1"] for key, line in lines.items()} == {"base, seed 0": 90.0, "wide, seed 1": 91.0}
    assert any("c, of wide, is not finished: epoch 1 of 2." in note for note in notes)
    assert any("d is not a run of" in note and "augment.hflip is 0.25" in note for note in notes)


def test_a_line_has_everything_that_belongs_to_a_figure(small: Experiment, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", small.settings[1], 1, 91.0)
    line = results.collect(small, [run]).lines["wide, seed 1"]
    assert line == {
        "setting": "wide",
        "seed": 1,
        "top1": 91.0,
        "weights": "model",
        "recipe_hash": recipe_io.recipe_hash(run.recipe),
        "version": "0.2.0",
        "torch": None,
        "machine": "EPYC with AVX2, 2 cores",
        "threads": 1,
        "date": "2026-01-02",
        "epochs": 2.0,
        "minutes": 0.4,  # 20 seconds of steps and 4 of evaluation
        "images_per_second": 0.5 * run.recipe.train.global_batch_size,
        "params": None,
        "command": "stvit train --recipe quickstart schedule.epochs=2 augment.hflip=0.5 train.seed=1",
    }


def test_a_test_row_is_the_score_and_nothing_else_is(tmp_path: Path) -> None:
    own = experiments.read("test", SMALL.replace("score: last", "score: test"))
    run = write_run(tmp_path / "run", own.settings[0], 0, 99.0)
    assert run.result("test") is None
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "test", "step": 10, "top1": 95.0, "weights": "ema", "num_images": 10000}) + "\n")
    lines = results.collect(own, [FoundRun(run.path, run.recipe)]).lines
    assert (lines["base, seed 0"]["top1"], lines["base, seed 0"]["weights"]) == (95.0, "ema")


@pytest.mark.parametrize("values", [[95.1, 95.4], [95.1, 95.4, 95.3], [1.0, 2.0, 3.0, 4.5]])
def test_intervals_are_students(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=stats.tmean(values), scale=stats.sem(values))
    found = results.spread(values)
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert found["std"] == pytest.approx(stats.tstd(values), abs=1e-4)


def test_differences_are_paired_by_seed_and_missing_runs_are_named(small: Experiment, tmp_path: Path) -> None:
    base, wide = small.settings
    for seed, (first, second) in enumerate([(90.0, 90.5), (92.0, 92.7)]):
        write_run(tmp_path / f"base{seed}", base, seed, first)
        write_run(tmp_path / f"wide{seed}", wide, seed, second)
    lines = results.collect(small, find_runs(tmp_path)).lines
    content = results.build(small, lines)
    assert content["differences"]["wide minus base"] | {"low": 0, "high": 0, "std": 0} == {
        **{"mean": 0.6, "std": 0, "low": 0, "high": 0},
        **{"num_seeds": 2, "published": None},
    }
    page = as_markdown(content)
    assert "| wide minus base | +0.60 |" in page
    assert "90.5" in page  # published
    del lines["wide, seed 0"]
    content = results.build(small, lines)
    assert content["settings"]["wide"]["seeds_missing"] == [0]
    assert "Not finished yet: wide (seed 0)." in as_markdown(content)


def test_one_seed_more_decides_where_signs_disagree(small: Experiment) -> None:
    def lines(*differences: float) -> dict[str, dict[str, Any]]:
        own = [("base", seed, 90.0) for seed in range(2)] + [("wide", seed, 90.0 + d) for seed, d in enumerate(differences)]
        return {f"{label}, seed {seed}": {"setting": label, "seed": seed, "top1": top1} for label, seed, top1 in own}

    assert results.needs_extra_seed(small, lines(0.5, 0.1)) == set()
    assert results.needs_extra_seed(small, lines(0.5, -0.1)) == {"base", "wide"}
    assert results.needs_extra_seed(small, lines(0.5)) == set()


def train_as(top1: dict[tuple[str, int], float], small: Experiment, trained: list[str]) -> Any:
    """Return what takes the place of a training: a run directory with this score; KeyError stands for an interruption."""

    def train(run: Run) -> None:
        trained.append(run.path.name)
        score = top1[run.setting, run.seed]
        write_run(run.path, small.setting(run.setting), run.seed, score)

    return train


def test_an_experiment_is_trained_from_nothing_and_resumed(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    top1 = {("base", 0): 90.0, ("wide", 0): 91.0, ("base", 1): 90.0, ("wide", 1): 89.0, ("base", 2): 90.0, ("wide", 2): 92.0}
    trained: list[str] = []
    train = train_as(top1, small, trained)

    def stopped(run: Run) -> None:
        if len(trained) == 3:
            raise Interrupted(2)
        train(run)

    monkeypatch.setattr(experiments, "load", lambda name: small)
    monkeypatch.setattr("stvit_cli.api.ablation.train_run", stopped)
    with pytest.raises(Interrupted):
        stvit_cli.reproduce("small", output=tmp_path / "out")
    assert trained == ["base-seed0", "wide-seed0", "base-seed1"]
    assert json.loads((tmp_path / "out" / "small.json").read_text())["settings"]["wide"]["seeds_missing"] == [1]
    monkeypatch.setattr("stvit_cli.api.ablation.train_run", train)
    found = stvit_cli.reproduce("small", output=tmp_path / "out")
    assert trained[3:] == ["wide-seed1", "base-seed2", "wide-seed2"]  # the signs of two seeds disagree: a third decides
    assert found.results["differences"]["wide minus base"]["num_seeds"] == 3
    stvit_cli.reproduce("small", output=tmp_path / "out")
    assert len(trained) == 6


def test_a_run_that_fails_is_named_and_the_others_are_trained(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top1 = {("base", 0): 90.0, ("base", 1): 90.0, ("wide", 1): 90.0}
    train = train_as(top1, small, [])

    def failing(run: Run) -> None:
        if (run.setting, run.seed) not in top1:
            raise UserError("the disk is full")
        train(run)

    monkeypatch.setattr(experiments, "load", lambda name: small)
    monkeypatch.setattr("stvit_cli.api.ablation.train_run", failing)
    found = stvit_cli.reproduce("small", output=tmp_path / "out")
    assert "wide-seed0 failed: the disk is full" in found.notes[0]
    assert found.results["settings"]["wide"]["seeds"] == [1]


def test_pairs_of_runs_are_tested_image_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = experiments.read("pairs", SMALL.replace("score: last", "score: test").replace("minutes: 1", "minutes: 1\npaired: true"))
    right = {"base": [1, 1, 0, 0, 0, 0, 0, 1], "wide": [1, 1, 1, 1, 1, 1, 0, 0]}

    def scores(path: Path) -> ImageScores:
        score = np.array(right[path.name], dtype=np.float64)
        return ImageScores(score, "", score, "truth", str, str)

    monkeypatch.setattr(measurements, "_test_scores", scores)
    pairs = measurements.paired_tests(
        own, {"base, seed 0": Path("base"), "wide, seed 0": Path("wide"), "wide, seed 1": Path("wide")}
    )
    assert pairs == {
        "wide and base, seed 0": {
            **{"first": "wide, seed 0", "second": "base, seed 0"},
            **{"num_images": 8, "only_first": 4, "only_second": 1, "p_value": mcnemar(4, 1)},
        }
    }


def test_the_json_has_a_line_for_every_figure_and_keeps_runs_of_the_same_recipe(small: Experiment, tmp_path: Path) -> None:
    base, wide = small.settings
    write_run(tmp_path / "runs" / "a", base, 0, 90.0)
    lines = results.collect(small, find_runs(tmp_path)).lines
    path, _ = results.write(results.build(small, lines), tmp_path)
    assert sum('"base, seed 0": {' in line and '"top1": 90.0' in line for line in path.read_text().splitlines()) == 1
    assert results.known_runs(path, small) == lines
    changed = experiments.read("small", SMALL.replace("schedule.epochs: 2", "schedule.epochs: 3"))
    assert results.known_runs(path, changed) == {}
    assert wide.label not in str(lines)


def test_the_command_collects_and_writes(stvit: Any, tmp_path: Path) -> None:
    setting = experiments.load("shapes-segmentation").settings[0]
    rows = {"miou": 85.5, "epoch": 4.0}
    run = write_run(tmp_path / "runs" / "x", setting, 0, 0.0, **rows)
    log = run.path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 10', f'"step": {setting.recipe.schedule.steps}'))
    ended = stvit("reproduce", "shapes-segmentation", "--collect", tmp_path / "runs", "--output", tmp_path / "out", "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["settings"]["stvit-nano"]["mean"] == 85.5
    assert "| 85.50 | - | 1 of 3 |" in (tmp_path / "out" / "shapes-segmentation.md").read_text()


def test_the_experiments_are_listed(stvit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stvit("reproduce")
    assert ended.code == 0
    assert all(name in ended.out for name in experiments.names())
    assert "0 of 3" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fashion-minst"], "Did you mean 'fashion-mnist'?"),
        (["fashion-mnist", "--collect", "nowhere"], "nowhere: there is no such folder"),
        (["shapes-segmentation", "--collect", "."], "holds no finished run of shapes-segmentation"),
    ],
)
def test_what_is_refused(stvit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stvit("reproduce", *words)
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.splitlines()) <= 6


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("score: last", "score: best", "expected one of test, last"),
        ("seeds: 2", "seed: 2", "unknown key seed. Did you mean 'seeds'?"),
        ("minutes: 1", "", "has no minutes"),
        ("minutes: 1", "minutes: 1\nagainst: {wide: [bse]}", "there is no setting bse. Did you mean 'base'?"),
    ],
)
def test_a_definition_with_a_mistake_says_where(old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        experiments.read("small", SMALL.replace(old, new))
