"""`stvit ablate`: settings from keys, runs that fail or diverge, resumption with more, the table and its intervals."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.finished_runs import write_run

from stvit_cli import UserError, ablate
from stvit_cli.analysis.ablation.ablation import new_ablation, reopen
from stvit_cli.analysis.ablation.processes import slots
from stvit_cli.analysis.ablation.results import read_result
from stvit_cli.analysis.ablation.settings import make_settings, split_words
from stvit_cli.analysis.ablation.statistics import estimate, paired_difference
from stvit_cli.api import training
from stvit_cli.errors import Interrupted
from stvit_cli.models.registry import create_model, own_options
from stvit_cli.recipe import io as recipe_io

RECIPE = "name: small\nmodel: {name: stvit-nano}\ndata: {kind: digits, image_size: 32}\nschedule: {epochs: 2}\n"
Train = Callable[..., Any]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that are finished at once: 90 % and a tenth of the learning rate in thousandths, and the seed in hundredths."""
    names: list[str] = []

    def train(recipe_file: Path, *, output: Path) -> None:
        names.append(output.name)
        recipe = recipe_io.load(recipe_file)
        if recipe.optim.lr == 0.013:
            raise UserError("The loss is not finite at step 7; stopped before the update.\nIn the batch: a.png.")
        if recipe.optim.lr == 0.012:
            raise UserError("Out of memory on the machine with 64 images per device.\nTry model.checkpointing=true.")
        if recipe.optim.lr == 0.011:
            raise RuntimeError("a bug")
        if recipe.optim.lr == 0.01:
            raise Interrupted(signal.SIGINT)
        write_run(output, recipe, 90 + 100 * recipe.optim.lr + 0.1 * recipe.train.seed)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr("stvit_cli.analysis.ablation.table.draw", lambda *_: b"")  # after each run half a second
    return names


def names(varied: dict[str, list[Any]], *, product: bool = False) -> list[str]:
    return [setting.name for setting in make_settings(varied, product)]


def test_settings_of_one_key_are_its_values_and_of_several_one_at_a_time() -> None:
    assert names({"a.b": [1, 2]}) == ["a.b=1", "a.b=2"]
    assert names({"a.b": [1, 2], "c.d": [None]}) == ["base", "a.b=1", "a.b=2", "c.d=null"]
    assert names({"a.b": [1, 2], "c.d": [None, True]}, product=True) == [
        *("a.b=1 c.d=null", "a.b=1 c.d=true", "a.b=2 c.d=null", "a.b=2 c.d=true")
    ]


def test_values_are_items_of_a_yaml_list() -> None:
    words = [
        "model.grid_sizes=[4,2,1,1],[8,4,1,1]",
        "model.kwargs={a: 1, b: 2},{a: 3}",
        "optim.lr=1e-3",
        "data.group_by=^([^_]+)_",
    ]
    varied, others = split_words(words)
    assert varied == {"model.grid_sizes": [[4, 2, 1, 1], [8, 4, 1, 1]], "model.kwargs": [{"a": 1, "b": 2}, {"a": 3}]}
    assert others == words[2:]


def test_directories_of_similar_settings_have_names_of_their_own() -> None:
    settings = make_settings({"model.grid_sizes": [[4, 2, 1, 1], "4 2,1-1", "x" * 100]}, product=False)
    assert [setting.folder for setting in settings[:2]] == ["grid_sizes-4-2-1-1", "grid_sizes-4-2-1-1-2"]
    assert len(settings[2].folder) <= 60


def test_intervals_are_those_of_students_t() -> None:
    """Sample 1, 2, 3, 4: mean 2.5, deviation 1.29; the 97.5 % quantile of t with 3 degrees of freedom is 3.182."""
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.5 - 3.182 * 0.6455, 2.5 + 3.182 * 0.6455), abs=1e-3)
    assert estimate([]) is None
    one = estimate([5.0])
    assert one is not None
    assert (one.std, one.low, one.excludes_zero) == (None, None, False)
    same = estimate([0.4, 0.4])
    assert same is not None
    assert (same.std, same.low, same.high, same.p_value, same.excludes_zero) == (0.0, None, None, None, False)


def test_differences_are_paired_by_seed_and_not_by_position() -> None:
    found = paired_difference({0: 90.0, 1: 80.0, 2: 70.0}, {2: 70.5, 0: 90.4, 5: 1.0, 1: 80.6})
    assert found is not None
    assert (found.n, found.mean) == (3, pytest.approx(0.5))
    assert found.excludes_zero
    assert paired_difference({0: 1.0}, {1: 2.0}) is None


def test_result_of_a_run_is_its_test_split_or_its_last_evaluation(tmp_path: Path) -> None:
    recipe = recipe_io.from_text(RECIPE, ["train.seed=3", "train.global_batch_size=32"])
    write_run(tmp_path / "run", recipe, 91.0)
    found = read_result(tmp_path / "run")
    assert found is not None
    assert (found.score, found.metric, found.split, found.weights, found.seed) == (91.0, "top1", "validation", "model", 3)
    assert (found.params, found.steps, found.epochs, found.version) == (1234, 20, 2.0, "0.2.0")
    assert found.images_per_second == pytest.approx(100)
    assert found.seconds == pytest.approx(20 * 32 / 100 + 6)
    assert found.machine == "a processor, 1 thread"
    write_run(tmp_path / "ema", recipe, 91.0, ema_top1=92.0)
    averaged = read_result(tmp_path / "ema")
    assert averaged is not None
    assert (averaged.score, averaged.weights, averaged.metrics["top1"]) == (92.0, "ema", 92.0)
    write_run(tmp_path / "test", recipe, 91.0, test={"top1": 89.5, "loss": 0.6, "weights": "ema"}, ema_top1=92.0)
    tested = read_result(tmp_path / "test")
    assert tested is not None
    assert (tested.score, tested.split, tested.weights) == (89.5, "test", "ema")


def test_a_run_without_its_last_evaluation_has_no_result(tmp_path: Path) -> None:
    recipe = recipe_io.from_text(RECIPE)
    assert read_result(tmp_path / "nowhere") is None
    write_run(tmp_path / "half", recipe, 91.0, steps=10)
    assert read_result(tmp_path / "half") is None


def test_table_compares_every_setting_with_the_first(stvit, small: Path, trained: list[str], tmp_path: Path) -> None:
    ended = stvit(
        "ablate", small, "optim.lr=1e-3,2e-3", "--seeds", 3, "schedule.warmup_epochs=1", "--output", "out", "--json", "-"
    )
    assert ended.code == 0, ended.err
    assert trained == [f"lr-{lr}-seed{seed}" for seed in range(3) for lr in ("0.001", "0.002")]
    table = json.loads(ended.out)
    assert json.loads((tmp_path / "out/table.json").read_text()) == table
    first, second = table["rows"]
    assert second["scores"] == pytest.approx({"0": 90.2, "1": 90.3, "2": 90.4})
    assert second["mean"] == pytest.approx(90.3)
    assert second["interval"] == pytest.approx([90.3 - 4.3027 * 0.1 / 3**0.5, 90.3 + 4.3027 * 0.1 / 3**0.5], abs=1e-4)
    assert second["difference"]["mean"] == pytest.approx(0.1)
    assert (first["difference"], table["baseline"], table["metric"]) == (None, "optim.lr=0.001", "top1")
    assert (second["params"], second["machines"], second["versions"]) == (1234, ["a processor, 1 thread"], ["0.2.0"])
    hashes = {run["recipe_hash"] for row in table["rows"] for run in row["runs"]}
    assert len(hashes) == 6
    assert all(recipe_io.load(tmp_path / "out" / name / "recipe.yaml").schedule.warmup_epochs == 1 for name in trained)
    text = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert "| optim.lr=0.002 | 90.30 | [90.05, 90.55] | 3 | +0.10 | 1234 |" in text  # equal in all seeds: no interval
    assert "90.30" in ended.err


def test_plot_shows_means_intervals_and_seeds_and_is_reproducible(tmp_path: Path) -> None:
    ablation = new_ablation(tmp_path, recipe_io.from_text(RECIPE), {"optim.lr": [1e-3, 2e-3, 3e-3]}, 2)
    for run in ablation.runs[:5]:
        write_run(run.path, run.recipe, 90 + 100 * run.recipe.optim.lr + run.seed)
    ablation.write_table()
    svg = (tmp_path / "table.svg").read_text(encoding="utf-8")
    assert "optim.lr=0.002" in svg
    assert "lines that leave the plot go on" in svg  # two seeds
    drawn = ablation.table()
    drawn.write(tmp_path / "again")
    assert (tmp_path / "again" / "table.svg").read_text(encoding="utf-8") == svg
    assert "1 of 6 runs are not finished." in drawn.notes()
    assert "Differences use the shared seeds" in " ".join(drawn.notes())


def test_few_seeds_are_said_to_be_few(stvit, small: Path, trained: list[str]) -> None:
    one = stvit("ablate", small, "optim.lr=1e-3,2e-3", "--output", "one")
    assert "One seed" in one.out
    two = stvit("ablate", small, "optim.lr=1e-3,2e-3", "--seeds", 2, "--output", "two")
    assert "12.7 standard errors" in two.out


def test_failed_and_diverged_runs_do_not_end_the_others(stvit, small: Path, trained: list[str], tmp_path: Path) -> None:
    keys = "optim.lr=1e-3,0.011,0.012,0.013,2e-3"
    ended = stvit("ablate", small, keys, "--output", "out", "--json", "table.json")
    assert ended.code == 2
    assert (
        "2 of 5 runs failed; the table has the others. lr-0.011-seed0, the first of them:\n  internal error: RuntimeError"
        in ended.err
    )
    assert "Try again: stvit ablate --resume out" in ended.err
    assert "lr-0.013-seed0 diverged: The loss is not finite at step 7" in ended.out
    assert "lr-0.012-seed0 failed: Out of memory" in ended.out
    rows = json.loads(Path("table.json").read_text())["rows"]
    assert [row["runs"][0]["status"] for row in rows] == ["finished", "failed", "failed", "diverged", "finished"]
    assert rows[4]["difference"]["mean"] == pytest.approx(0.1)
    trained.clear()
    again = stvit("ablate", "--resume", "out")
    assert again.code == 2
    assert trained == ["lr-0.011-seed0", "lr-0.012-seed0"]  # what diverged would do so again


def test_stopped_ablation_resumes_with_more_values_and_seeds(stvit, small: Path, trained: list[str], tmp_path: Path) -> None:
    stopped = stvit("ablate", small, "optim.lr=3e-3,0.01", "--output", "out")
    assert stopped.code == 130
    assert "stvit ablate --resume out" in stopped.err
    plan = json.loads(Path("out/plan.json").read_text())
    plan["settings"].pop(), plan["varied"]["optim.lr"].pop()  # the interrupted one
    Path("out/plan.json").write_text(json.dumps(plan))
    trained.clear()
    more = stvit("ablate", "--resume", "out", "optim.lr=2e-3", "train.ema_decay=0.9", "data.num_workers=0", "--seeds", 2)
    assert more.code == 0, more.err
    assert trained == [
        *("base-seed0", "lr-0.002-seed0", "ema_decay-0.9-seed0"),
        *("lr-0.003-seed1", "base-seed1", "lr-0.002-seed1", "ema_decay-0.9-seed1"),
    ]
    trained.clear()
    assert stvit("ablate", "--resume", "out").code == 0  # all is there
    assert trained == []


def test_settings_that_are_the_same_training_are_trained_once(stvit, small: Path, trained: list[str]) -> None:
    keys = ["model.num_iters=null,1,2", "optim.lr=0.001,2e-3", "model.pos_enc=true,false"]  # 0.001 is the schema's
    ended = stvit("ablate", small, *keys, "--output", "out")
    assert ended.code == 0, ended.err
    assert trained == ["base-seed0", "num_iters-2-seed0", "lr-0.002-seed0", "pos_enc-false-seed0"]
    assert "model.pos_enc=true is the same training as base" in ended.err
    trained.clear()
    assert stvit("ablate", "--resume", "out", "model.pos_enc=true").code == 0
    assert trained == []
    same = stvit("ablate", small, "model.num_iters=null,1", "--output", "same")
    assert "every value is what the recipe has already" in same.err


@pytest.mark.parametrize("name", ["stvit-nano", "isotropic-mini-stvit-20"])
def test_options_of_a_model_that_are_its_own_change_nothing(name: str) -> None:
    model, same = create_model(name, 2), create_model(name, 2, **own_options(name))
    assert str(model) == str(same)
    assert own_options(name).keys() >= {"num_iters", "grid_sizes", "association_grad"}


def test_product_trains_all_combinations(stvit, small: Path, trained: list[str]) -> None:
    ended = stvit("ablate", small, "optim.lr=1e-3,2e-3", "train.ema_decay=null,0.9", "--product", "--output", "out")
    assert ended.code == 0
    assert len(trained) == 4
    assert "optim.lr=0.002 train.ema_decay=0.9" in ended.out
    assert "is the product of optim.lr, train.ema_decay" in stvit("ablate", "--resume", "out", "optim.eps=1e-6").err


def test_one_process_trains_at_a_time_in_a_directory(stvit, small: Path, trained: list[str], tmp_path: Path) -> None:
    from stvit_cli.engine.run_lock import RunLock

    ablation = new_ablation(tmp_path / "out", recipe_io.load(small), {"optim.lr": [1e-3, 2e-3]})
    ablation.save()
    lock = RunLock.acquire(tmp_path / "out")
    ended = stvit("ablate", "--resume", tmp_path / "out")
    lock.release()
    assert ended.code == 2
    assert trained == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Which recipe?"),
        ("optim.lr=1e-3,2e-3", "Which recipe?"),
        ("small.yml optim.lr=1e-3,2e-3", "small.yml"),
        ("small.yaml", "Vary what?"),
        ("small.yaml optim.lr=1e-3", "Vary what?"),
        ("small.yaml optim.lrs=1e-3,2e-3", "Did you mean 'optim.lr'?"),
        ("small.yaml optim.lr=1e-3,fast", "optim.lr: found fast"),
        ("small.yaml optim.lr=1e-3,1e-3", "optim.lr: 0.001 is given twice"),
        ("small.yaml optim.lr=1,2 optim.lr=3,4", "optim.lr is given twice"),
        ("small.yaml optim.lr=1,2 optim.lr=3", "optim.lr is given twice"),
        ("small.yaml optim.lr=3 optim.lr=1,2", "optim.lr is given twice"),
        ("small.yaml train.seed=1,2", "--seeds N"),
        ("small.yaml name=a,b", "changes nothing"),
        ("small.yaml data.kind=imagefolder optim.lr=1,2", "data.dir"),
        ("small.yaml optim.lr=1e-3,2e-3 --output small.yaml", "is a file"),
        ("--resume nowhere", "holds no ablation"),
        ("--resume . --output x", "leave recipe, --output and --product out"),
        ("small.yaml optim.lr 1e-3", "expected key=a,b,c"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    stvit, small: Path, trained: list[str], tmp_path: Path, words: str, message: str
) -> None:
    ended = stvit("ablate", *words.split())
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]
    assert trained == []


def test_python_takes_mappings_and_returns_the_table(small: Path, trained: list[str], tmp_path: Path) -> None:
    table = ablate(small, {"model.grid_sizes": [[8, 4, 1, 1], None]}, overrides={"schedule.epochs": 1}, output=tmp_path / "out")
    assert table.path == tmp_path / "out"
    rows = table.to_rows()
    assert [row["model.grid_sizes"] for row in rows] == [[8, 4, 1, 1], None]
    assert [row["score"] for row in rows] == [90.1, 90.1]
    assert table.failed is None
    with pytest.raises(UserError, match="expected the list of its values"):
        ablate(small, {"optim.lr": 1e-3})
    with pytest.raises(UserError, match="found the text"):
        ablate(small, "optim.lr=1,2")
    with pytest.raises(UserError, match="found no value"):
        ablate(small, {"optim.lr": []})
    with pytest.raises(UserError, match="is given twice, with the values to compare and as an override"):
        ablate(small, {"optim.lr": [1e-3, 2e-3]}, overrides={"optim.lr": 3e-3})
    assert reopen(tmp_path / "out").num_seeds == 1


def test_a_single_value_is_compared_with_the_recipe_itself(small: Path, trained: list[str], tmp_path: Path) -> None:
    table = ablate(small, {"model.num_iters": [2]}, output=tmp_path / "out")
    assert [row.setting.name for row in table.rows] == ["base", "model.num_iters=2"]


def test_parallel_runs_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.analysis.ablation.processes.usable_cpus", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [slot.environment for slot in slots(2)] == [{"OMP_NUM_THREADS": "4"}] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slots(2)[0].environment == {"OMP_NUM_THREADS": "3"}
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert slots(4)[0].environment == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert slots(2, on_cpu=True)[0].environment == {"OMP_NUM_THREADS": "4"}


def test_a_real_run_is_trained_and_read(stvit, image_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.replace("kind: digits", f"kind: imagefolder, num_workers: 0, dir: {image_folder}"))
    words = ["schedule.epochs=1", "train.global_batch_size=8", "train.kernels=false", "train.log_every_steps=1"]
    ended = stvit("ablate", recipe, "model.grid_sizes=[4,2,1,1],[2,2,1,1]", *words, "--output", tmp_path / "out", "--json", "-")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["rows"]
    assert [row["runs"][0]["status"] for row in rows] == ["finished"] * 2
    assert rows[0]["params"] > 100_000
    assert rows[0]["images_per_second"] > 0
    assert rows[0]["runs"][0]["steps"] == 2


@pytest.mark.slow
def test_a_run_that_diverges_in_a_process_of_its_own_is_a_result(stvit, image_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE.replace("kind: digits", f"kind: imagefolder, num_workers: 0, dir: {image_folder}"))
    words = ["train.global_batch_size=8", "schedule.update=step", "optim.lr=1e-3,1e20"]
    ended = stvit("ablate", recipe, *words, "--parallel", 2, "--output", tmp_path / "out", "--json", "-")
    assert ended.code == 0, ended.err
    assert [row["runs"][0]["status"] for row in json.loads(ended.out)["rows"]] == ["finished", "diverged"]
    again = stvit("ablate", "--resume", tmp_path / "out", "--parallel", 2)
    assert again.code == 0
    assert "Run 1" not in again.err
