"""`stvit reproduce` trains and resumes; pairs, speed and superpixels are measured on the runs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.reproduction import SMALL, write_run

import stvit_cli
from stvit_cli.analysis.ablation.plot import CLEAR
from stvit_cli.analysis.ablation.runs import Run
from stvit_cli.analysis.reproduce import experiments, measurements, results
from stvit_cli.analysis.reproduce.experiments import Experiment
from stvit_cli.analysis.reproduce.plot import draw_results
from stvit_cli.errors import Interrupted, UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.bootstrap import mcnemar
from stvit_cli.tasks.image_scores import ImageScores


@pytest.fixture
def small() -> Experiment:
    return experiments.read("small", SMALL)


def run_line(label: str, seed: int, top1: float) -> dict[str, Any]:
    """Return the line of a run."""
    numbers = dict.fromkeys(("minutes", "images_per_second", "threads", "epochs", "params"), 1)
    texts = dict.fromkeys(("recipe_hash", "version", "date", "command", "machine"), "x")
    return {"setting": label, "seed": seed, "top1": top1, **numbers, **texts}


def train_as(top1: dict[tuple[str, int], float], small: Experiment, trained: list[str]) -> Any:
    """Return what takes the place of a training: a run directory with this score; KeyError stands for an interruption."""

    def train(run: Run) -> None:
        trained.append(run.path.name)
        score = top1[run.setting, run.seed]
        write_run(run.path, small.setting(run.setting), run.seed, score)

    return train


def test_an_experiment_is_trained_from_nothing_and_resumed(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
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
        stvit_cli.reproduce("small", seeds=2, output=tmp_path / "out")
    assert f"Resume with the same command: stvit reproduce small --seeds 2 --output {tmp_path / 'out'}\n" in caplog.text
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


def test_what_else_was_measured_is_shown_and_kept_with_its_runs(small: Experiment, tmp_path: Path) -> None:
    lines = {f"{label}, seed 0": run_line(label, 0, 90.0) for label in ("base", "wide")}
    pair = {
        "first": "wide, seed 0",
        "second": "base, seed 0",
        "num_images": 8,
        "only_first": 4,
        "only_second": 1,
        "p_value": 1e-5,
    }
    speed = {"images_per_second": 123.4, "batch_size": 64, "precision": "fp32", "machine": "EPYC", "threads": 2}
    found = {"boundary_recall": 0.5, "undersegmentation_error": 0.1, "accuracy": 0.9}
    found |= {f"{name}_{end}": 0.25 for name in found for end in ("low", "high")}
    segments = {
        "setting": "base",
        "trained": True,
        "layer": "stage1.block1",
        "stride": 4,
        "segmentation": "SLIC",
        "segments": 80.0,
        "components": 90.5,
        "boundary_share": 0.25,
    }
    parts = {
        "pairs": {"wide and base, seed 0": pair},
        "speed": {"base": speed, "wide": speed},
        "superpixels": {"a": segments | found, "b": segments | found | {"trained": False}},
        "superpixel_notes": ["Verdict."],
    }
    path, page = results.write(results.build(small, lines, parts), tmp_path)
    text = page.read_text()
    assert "| wide and base, seed 0 | 8 | 4 | 1 | < 0.0001 |" in text
    assert "| 123.4 |" in text
    assert "batch 64, fp32, on EPYC, 2 threads" in text
    assert text.count("| stage1.block1 |") == 1  # of random weights the baselines are in the JSON alone
    assert "| 80 | 90.5 | 0.250 | 0.500 (0.250 to 0.250) |" in text
    assert "Seeds with p below 0.05: wide and base in 1 of 1." in text
    content = results.read_earlier(path)
    assert results.known_parts(content, lines) == parts
    assert "pairs" not in results.known_parts(content, {"base, seed 0": {}})
    del content["superpixels"]["a"]["components"]  # as earlier versions wrote them: measured anew
    assert results.known_parts(content, lines).keys() == {"pairs", "speed"}


def test_models_are_timed_in_turn_once_every_setting_has_a_run(
    small: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = experiments.read("speed", SMALL.replace("minutes: 1", "minutes: 1\nspeed: 16"))
    info = SimpleNamespace(image_size=32, in_chans=1)

    def build(recipe: Recipe) -> Any:
        return SimpleNamespace(weights_info=lambda: info, model="model")

    monkeypatch.setattr(measurements.tasks, "build", build)
    monkeypatch.setattr(measurements, "prepare", lambda label, model, setting: (label, model))
    machine = {"processor": "EPYC", "instruction_sets": ["AVX2"], "cpus": 2, "threads": 1, "versions": {"stvit": "0.2.0"}}
    found = {"images_per_second": 9.99, "spread": [9.0, 11.0], "batch_size": 16, "precision": "fp32", "served_by": "PyTorch"}
    timed: list[Any] = []

    def time_in_turn(candidates: list[Any], setting: Any) -> dict[str, Any]:
        timed.append((candidates, setting.image_size, setting.in_chans, setting.batch_size))
        return {label: found | {"machine": machine} for label, _ in candidates}

    monkeypatch.setattr(measurements, "time_in_turn", time_in_turn)
    assert measurements.speeds(small, {"base", "wide"}) == {}
    assert measurements.speeds(own, {"base"}) == {}
    lines = measurements.speeds(own, {"base", "wide"})
    assert timed == [([("base", "model"), ("wide", "model")], (32, 32), 1, 16)]
    assert lines["wide"]["machine"] == "EPYC (AVX2), 2 cores"
    assert (lines["wide"]["images_per_second"], lines["wide"]["command"]) == (10.0, "stvit reproduce speed")

    def missing(recipe: Recipe) -> Any:
        raise UserError("there is no such folder")

    monkeypatch.setattr(measurements.tasks, "build", missing)
    assert measurements.speeds(own, {"base", "wide"}) == {}
    assert "Images per second are not measured: there is no such folder" in caplog.text


def test_settings_with_several_seeds_are_drawn_beside_the_page(small: Experiment, tmp_path: Path) -> None:
    scores = {("base", 0): 90.0, ("base", 1): 90.2, ("wide", 0): 91.0, ("wide", 1): 91.21}
    lines = {f"{label}, seed {seed}": run_line(label, seed, top1) for (label, seed), top1 in scores.items()}
    one = {key: line for key, line in lines.items() if line["seed"] == 0}
    _, page = results.write(results.build(small, one), tmp_path)
    assert not (tmp_path / "small.svg").exists()  # one seed: there is no interval to draw
    assert "svg" not in page.read_text()
    written = results.build(small, lines)
    _, page = results.write(written, tmp_path)
    assert "of each setting, with its interval](small.svg)" in page.read_text()
    svg = (tmp_path / "small.svg").read_text()
    assert ">wide<" in svg
    assert svg == draw_results(written).decode()
    assert CLEAR in svg  # + 1.00 and + 1.01
    close = lines | {"wide, seed 1": lines["wide, seed 1"] | {"top1": 89.0}}
    assert CLEAR not in draw_results(results.build(small, close)).decode()


def test_the_plot_marks_the_pairs_that_are_compared_and_not_the_first_setting(tmp_path: Path) -> None:
    settings = "\n".join(f"  {name}: {{overrides: {{augment.hflip: {number / 10}}}}}" for number, name in enumerate("abcd"))
    own = experiments.read("pairs", SMALL.partition("settings:")[0] + f"against: {{b: [a], d: [c]}}\nsettings:\n{settings}\n")
    scores = {"a": (90.0, 95.0), "b": (90.1, 96.0), "c": (80.0, 80.0), "d": (81.0, 81.01)}
    lines = {f"{name}, seed {seed}": run_line(name, seed, both[seed]) for name, both in scores.items() for seed in range(2)}
    lines["d, seed 1"]["machine"] = "y"
    written = results.build(own, lines)
    page = results.write(written, tmp_path)[1].read_text()
    assert "Blue: the interval of a difference of it, below, excludes zero." in page
    assert "1 of 2 differences have an interval without 0: d minus c." in page
    assert "In at least one seed the two runs were on different processors" in page
    assert page.count("d minus c") == 3  # the table, the two sentences
    svg = draw_results(written).decode()
    assert svg.count(f"fill: #ffffff; stroke: {CLEAR}") == 2  # c and d
    assert "stroke-dasharray" not in svg  # no vertical line: no setting is in all pairs


@pytest.mark.slow
def test_real_runs_end_in_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = "data.image_size: 32, data.num_workers: 0, schedule.steps: 2, train.eval_every_steps: 2, train.global_batch_size: 8"
    own = experiments.read("tiny", SMALL.replace("schedule.epochs: 2", tiny).replace("seeds: 2", "seeds: 1\nspeed: 2"))
    monkeypatch.setattr(experiments, "load", lambda name: own)
    found = stvit_cli.reproduce("tiny", output=tmp_path / "out").results
    assert found["settings"]["wide"]["seeds"] == [0]
    for line in found["runs"].values():
        assert line["params"] > 900_000
        needed = ("recipe_hash", "version", "machine", "threads", "minutes", "date", "images_per_second")
        assert all(line[name] is not None for name in needed)
    assert found["speed"]["base"]["images_per_second"] > 0
    assert stvit_cli.reproduce("tiny", output=tmp_path / "out").results == found  # nothing is trained or timed again
