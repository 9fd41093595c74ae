"""The evaluation of a run's best weights on its test set: once in the life of a run, whatever interrupts it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import toy

from stvit_cli import engine
from stvit_cli.engine import final_test
from stvit_cli.engine.branch import Branch
from stvit_cli.engine.kept_evaluation import read_evaluation, read_kept
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.engine.trainer import fit
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import read_weights
from stvit_cli.tasks.classification.predictions import read_classification_predictions

KEYS = ("data.test_split=test",)


def train(
    folder: Path, *overrides: str, resume: bool = False, on_item: Callable[[int], None] = lambda index: None
) -> dict[str, float]:
    task = toy.ToyTask(norm=True, test_set=toy.HeldOutPoints(on_item))
    return fit(task, toy.recipe(*KEYS, *overrides), folder / "run", resume=resume)


def rows(folder: Path) -> list[dict[str, Any]]:
    return MetricsLog(folder / "run" / "metrics.jsonl").rows("test")


def refuse(index: int) -> None:
    raise AssertionError("the test set is evaluated again")


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tested")
    assert [ended.code for ended in toy.start(lambda: train(folder) and None, folder)()] == [0]
    return folder


@pytest.fixture
def over(unbroken: Path, tmp_path: Path) -> Path:
    """A folder with a run as one leaves it that is killed between its last epoch and its test."""
    shutil.copytree(unbroken, tmp_path / "run")
    return tmp_path


def test_the_best_weights_are_evaluated_once(tested: Path, unbroken: Path) -> None:
    (row,) = rows(tested)
    run = RunDir(tested / "run")
    best, kept = read_evaluation(run), read_kept(run, read_classification_predictions, of="test")
    assert best is not None
    assert kept is not None
    assert (row["step"], row["split"], row["weights_step"], row["hflip"]) == (20, "test", best.step, False)
    (evaluated,) = (found for found in MetricsLog(run.metrics).rows("eval") if found["step"] == best.step)
    assert row["weights"] == ("ema" if evaluated["ema_top1"] == best.metrics["top1"] != evaluated["top1"] else "model")
    model = toy.ToyTask(norm=True).model
    model.load_state_dict(read_weights(run.best).tensors)
    expected = engine.evaluate(toy.ToyEvaluation(toy.HeldOutPoints()), model, batch_size=16)
    assert {name: row[name] for name in expected} == expected == kept[0].metrics
    assert kept[1].images == [f"test-{index}" for index in range(toy.NUM_VAL)]
    # The training is that of a run without a test set, to the last bit.
    assert run.best.read_bytes() == RunDir(unbroken).best.read_bytes()
    (tensors, all_rows), (others, other_rows) = toy.outcome(run.path), toy.outcome(unbroken)
    assert all_rows[:-1] == other_rows
    assert all(tensor.equal(others[name]) for name, tensor in tensors.items())


def test_a_finished_run_that_is_resumed_says_it_and_does_not_do_it(
    tested: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tested / "run", tmp_path / "run")
    (row,) = rows(tested)
    for keys in ([], ["eval.hflip=true"], ["eval.translate=1"], ["data.test_split=null"]):
        result = train(tmp_path, *keys, resume=True, on_item=refuse)
        assert (result["test_top1"], result["test_num_images"]) == (row["top1"], toy.NUM_VAL)
        assert rows(tmp_path) == [row]
    said = capfd.readouterr().err
    assert f"Test top-1 {row['top1']:.0f} % (37 images of test): " in said
    assert "evaluated once." in said


def killed_in_the_evaluation(folder: Path, patch: pytest.MonkeyPatch) -> None:
    train(folder, resume=True, on_item=lambda index: toy.kill_self() if index == 20 else None)


def killed_before_its_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(final_test, "write_evaluation", lambda *_, **__: toy.kill_self())
    train(folder, resume=True)


def killed_before_its_row(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(final_test.FinalTest, "row", lambda self: toy.kill_self())
    train(folder, resume=True)


def killed_after_its_row(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(final_test.FinalTest, "line", lambda *_: toy.kill_self())
    train(folder, resume=True)


KILLED = [killed_in_the_evaluation, killed_before_its_file, killed_before_its_row, killed_after_its_row]


@pytest.mark.parametrize("killed", KILLED)
def test_a_killed_run_is_tested_exactly_once(
    tested: Path, over: Path, monkeypatch: pytest.MonkeyPatch, killed: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    assert [ended.code for ended in toy.start(lambda: killed(over, monkeypatch), over)()] == [-9]
    was_kept = read_evaluation(RunDir(over / "run"), of="test") is not None
    assert was_kept == (killed in KILLED[2:])
    train(over, resume=True, on_item=refuse if was_kept else lambda index: None)
    toy.assert_same_outcome(over / "run", tested / "run")
    assert len(rows(over)) == 1


def test_a_signal_in_it_stops_the_run_which_is_tested_when_it_is_resumed(tested: Path, over: Path) -> None:
    def stop(index: int) -> None:
        if index == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    waiting = toy.start(lambda: train(over, resume=True, on_item=stop) and None, over)
    assert [ended.code for ended in waiting()] == [143]
    assert rows(over) == []
    train(over, resume=True)
    toy.assert_same_outcome(over / "run", tested / "run")


def test_a_run_that_stops_early_is_tested(tmp_path: Path) -> None:
    flat = ("optim.lr=1e-9", "schedule.warmup_lr=0", "schedule.min_lr=0", "train.ema_decay=null", "schedule.patience=1")
    settings = toy.recipe(*KEYS, *flat)
    result = fit(toy.ToyTask(test_set=toy.HeldOutPoints()), settings, tmp_path / "run")
    assert (result["steps"], result["stopped_early"]) == (10, True)
    (row,) = rows(tmp_path)
    assert (row["step"], row["weights_step"], row["weights"]) == (10, 5, "model")
    assert fit(toy.ToyTask(test_set=toy.HeldOutPoints(refuse)), settings, tmp_path / "run", resume=True) == result


def test_a_finished_run_without_the_key_stays_so(over: Path) -> None:
    """Until the key is given: a test set decides nothing that was learned."""
    fit(toy.ToyTask(norm=True), toy.recipe(), over / "run", resume=True)
    assert rows(over) == []
    assert not (over / "run" / "evaluation-test.json").exists()


def test_two_processes_find_the_same(unbroken: Path, over: Path) -> None:
    other = over / "other"
    shutil.copytree(unbroken, other / "run")
    keys = ("eval.batch_size=1",)  # the sums of a matrix product depend on its size
    assert {ended.code for ended in toy.start(lambda: train(over, *keys, resume=True) and None, over, 2)()} == {0}
    train(other, *keys, resume=True)
    toy.assert_same_outcome(over / "run", other / "run")
    (table, others) = (RunDir(folder / "run").evaluation_files("test").parquet for folder in (over, other))
    assert table.read_bytes() == others.read_bytes()


def test_a_branch_is_tested_by_itself(tested: Path, tmp_path: Path) -> None:
    task = toy.ToyTask(norm=True, test_set=toy.HeldOutPoints())
    fit(task, toy.recipe(*KEYS, "schedule.epochs=5"), tmp_path / "run", branch=Branch(tested / "run", 20))
    assert [row["step"] for row in rows(tmp_path)] == [25]


def test_outputs_that_are_not_finite_name_the_test_set(over: Path) -> None:
    class Broken(toy.HeldOutPoints):
        def __getitem__(self, index: int) -> dict[str, Any]:
            item = super().__getitem__(index)
            return item | {"image": item["image"] * float("nan")}

    with pytest.raises(UserError, match=r"37 images of the test set"):
        fit(toy.ToyTask(norm=True, test_set=Broken()), toy.recipe(*KEYS), over / "run", resume=True)
    assert rows(over) == []
