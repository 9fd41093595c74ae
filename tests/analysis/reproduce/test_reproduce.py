"""`stvit reproduce`: definitions, runs recognized by their recipes, the arithmetic of the tables, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.reproduction import SMALL, write_run
from scipy import stats

import stvit_cli
from stvit_cli.analysis.ablation.isotropic.table import LABELS, PAIRS, PAPER
from stvit_cli.analysis.reproduce import experiments, results, superpixel_lines
from stvit_cli.analysis.reproduce.experiments import Experiment
from stvit_cli.analysis.reproduce.found_run import FoundRun, find_runs
from stvit_cli.analysis.reproduce.markdown import as_markdown
from stvit_cli.errors import UserError
from stvit_cli.models.isotropic_rows import MINI, ROWS
from stvit_cli.recipe import io as recipe_io


@pytest.fixture
def small() -> Experiment:
    return experiments.read("small", SMALL)


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


def test_where_no_run_fits_the_nearest_is_named(small: Experiment, tmp_path: Path) -> None:
    text = "schedule.epochs: 2, optim.lr: 0.1, augment.vflip: 0.5, augment.repeats: 2"
    far = experiments.read("far", SMALL.replace("schedule.epochs: 2", text))
    write_run(tmp_path / "a", far.settings[0], 0, 90.0)
    lines, _, notes = results.collect(small, find_runs(tmp_path))
    assert lines == {}
    assert notes == [f"{tmp_path / 'a'} is not a run of base: {notes[0].partition('base: ')[2]}"]
    assert "and 1 more." in notes[0]


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
        **{"of": "wide", "minus": "base", "mean": 0.6, "std": 0, "low": 0, "high": 0},
        **{"num_seeds": 2, "seeds_of_two_machines": [], "published": None},
    }
    page = as_markdown(content)
    assert "| wide minus base | +0.60 |" in page
    assert "90.5" in page  # published
    del lines["wide, seed 0"]
    content = results.build(small, lines)
    assert content["settings"]["wide"]["seeds_missing"] == [0]
    assert "Not finished yet: wide (seed 0)." in as_markdown(content)


def test_a_run_without_provenance_is_left_out_and_damage_is_told(small: Experiment, tmp_path: Path) -> None:
    base, wide = small.settings
    (write_run(tmp_path / "a", base, 0, 90.0).path / "environment.json").write_text("{")
    log = write_run(tmp_path / "b", wide, 0, 91.0).path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"kind": "eval", "st\n')
    cut = write_run(tmp_path / "c", wide, 1, 91.0).path / "metrics.jsonl"
    cut.write_bytes(b"\xff\xfe\n")
    lines, _, notes = results.collect(small, find_runs(tmp_path))
    assert list(lines) == ["wide, seed 0"]
    assert "a, of base, is left out: its figures need version, machine and date. environment.json cannot be read" in notes[0]
    assert "b, of wide: metrics.jsonl: 1 of 3 lines cannot be read and are left out." in notes[1]
    assert "is not finished" in notes[2]
    assert "metrics.jsonl: 1 of 1 lines cannot be read" in notes[2]


def test_a_run_that_takes_the_place_of_an_earlier_one_is_told(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "load", lambda name: small)
    write_run(tmp_path / "first" / "a", small.settings[0], 0, 90.0)
    write_run(tmp_path / "second" / "a", small.settings[0], 0, 91.0)
    assert stvit_cli.reproduce("small", collect=tmp_path / "first", output=tmp_path).notes == ()
    again = stvit_cli.reproduce("small", collect=tmp_path / "second", output=tmp_path)
    assert again.results["settings"]["base"]["mean"] == 91.0
    told = f"{tmp_path / 'second' / 'a'} takes the place of another run of base, seed 0: top1 91, before 90."
    assert again.notes == (told,)


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": []}'])
def test_a_damaged_file_of_results_is_not_written_over(
    small: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(experiments, "load", lambda name: small)
    write_run(tmp_path / "runs" / "a", small.settings[0], 0, 90.0)
    path = tmp_path / "small.json"
    path.write_text(content)
    for options in ({"collect": tmp_path / "runs"}, {}):
        with pytest.raises(UserError, match="cannot be read as the results of an experiment"):
            stvit_cli.reproduce("small", output=tmp_path, **options)
    assert path.read_text() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["runs", "small.json"]


def test_one_seed_more_decides_where_signs_disagree(small: Experiment) -> None:
    def lines(*differences: float) -> dict[str, dict[str, Any]]:
        own = [("base", seed, 90.0) for seed in range(2)] + [("wide", seed, 90.0 + d) for seed, d in enumerate(differences)]
        return {f"{label}, seed {seed}": {"setting": label, "seed": seed, "top1": top1} for label, seed, top1 in own}

    assert results.needs_extra_seed(small, lines(0.5, 0.1)) == set()
    assert results.needs_extra_seed(small, lines(0.5, -0.1)) == {"base", "wide"}
    assert results.needs_extra_seed(small, lines(0.5)) == set()


def test_the_json_has_a_line_for_every_figure_and_keeps_runs_of_the_same_recipe(small: Experiment, tmp_path: Path) -> None:
    base, wide = small.settings
    write_run(tmp_path / "runs" / "a", base, 0, 90.0)
    lines = results.collect(small, find_runs(tmp_path)).lines
    path, _ = results.write(results.build(small, lines), tmp_path)
    assert sum('"base, seed 0": {' in line and '"top1": 90.0' in line for line in path.read_text().splitlines()) == 1
    assert results.known_runs(results.read_earlier(path), small) == lines
    changed = experiments.read("small", SMALL.replace("schedule.epochs: 2", "schedule.epochs: 3"))
    assert results.known_runs(results.read_earlier(path), changed) == {}
    assert wide.label not in str(lines)


def test_the_command_collects_and_writes(stvit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superpixel_lines, "superpixel_parts", lambda *_: {})  # needs weights
    setting = experiments.load("shapes-segmentation").setting("stvit-nano, all steps")
    rows = {"miou": 85.5, "epoch": 4.0}
    run = write_run(tmp_path / "runs" / "x", setting, 0, 0.0, **rows)
    log = run.path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 10', f'"step": {setting.recipe.schedule.steps}'))
    ended = stvit("reproduce", "shapes-segmentation", "--collect", tmp_path / "runs", "--output", tmp_path / "out", "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["settings"]["stvit-nano, all steps"]["mean"] == 85.5
    assert "| 85.50 | - | 1 of 3 |" in (tmp_path / "out" / "shapes-segmentation.md").read_text()
    ended = stvit("reproduce", "--collect", tmp_path / "runs", "--json", "-")  # of every experiment
    assert [each["name"] for each in json.loads(ended.out)] == ["shapes-segmentation", "superpixels"]


def test_the_experiments_are_listed(stvit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stvit("reproduce")
    assert ended.code == 0
    assert all(name in ended.out for name in experiments.names())
    assert "0 of 3" in ended.out
    path = tmp_path / "runs" / "reproduce-ablations" / "ablations.json"
    path.parent.mkdir(parents=True)
    run = {"top1": 88.0, "recipe_hash": "x"}
    settings = {"stvit-nano": (88.0, 88.0), "2 iterations of sampling": (87.0, 89.0), "layer scale 0.1": (89.0, 89.0)}
    runs = {
        f"{label}, seed {seed}": run | {"setting": label, "seed": seed, "top1": top1[seed]}
        for label, top1 in settings.items()
        for seed in (0, 1)
    }
    path.write_text(json.dumps({"runs": runs}))
    assert "6 of 26" in stvit("reproduce").out  # the signs of one difference disagree: both of its settings get a third seed
    path.write_text('{"runs": []}')
    assert "0 of 24" in stvit("reproduce").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fashion-minst"], "Did you mean 'fashion-mnist'?"),
        (["fashion-mnist", "--collect", "nowhere"], "nowhere: there is no such folder"),
        (["shapes-segmentation", "--collect", "."], "holds no finished run of shapes-segmentation"),
        (["--collect", "."], "holds no finished run of any experiment"),
        (["--seeds", "2"], "Which experiment? Name one of ablations"),
        (["--collect", ".", "--seeds", "2"], "leave --seeds, --parallel and --data out"),
        (["fashion-mnist", "--collect", ".", "--seeds", "2"], "leave --seeds, --parallel and --data out"),
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
