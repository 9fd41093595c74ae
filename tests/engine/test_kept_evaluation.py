"""What is kept of the evaluation of a run's best weights, and ``metrics.csv``."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import toy

from stvit_cli import engine
from stvit_cli.engine import kept_evaluation
from stvit_cli.engine.distributed import joined_world
from stvit_cli.engine.kept_evaluation import read_evaluation, read_kept
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.tasks.classification.predictions import ClassificationPredictions, read_classification_predictions


def test_the_best_weights_come_with_what_they_predict(unbroken: Path) -> None:
    kept = read_kept(RunDir(unbroken), read_classification_predictions)
    assert kept is not None
    evaluation, predictions = kept
    evals = [row for row in toy.outcome(unbroken)[1] if row["kind"] == "eval"]
    best = next(row for row in evals if row["step"] == evaluation.step)
    assert evaluation.metrics["top1"] == max(best["top1"], best["ema_top1"])
    assert isinstance(predictions, ClassificationPredictions)
    assert predictions.images == [f"val-{index}" for index in range(toy.NUM_VAL)]
    assert 100 * np.mean(predictions.target_rank == 0) == pytest.approx(evaluation.metrics["top1"])
    assert np.mean(predictions.loss) == pytest.approx(evaluation.metrics["loss"])
    assert (predictions.labels[:, 0] == predictions.target).tolist() == (predictions.target_rank == 0).tolist()
    assert np.all(np.diff(predictions.scores, axis=1) <= 0)
    np.testing.assert_allclose(predictions.loss, -np.log(predictions.target_score), rtol=1e-5)


@pytest.mark.parametrize("change", ["weights", "predictions", "evaluation", "missing", "format"])
def test_what_belongs_to_other_weights_is_not_read(unbroken: Path, tmp_path: Path, change: str) -> None:
    """As a run leaves it that was killed between two of its files."""
    run = RunDir(tmp_path)
    for path in (RunDir(unbroken).best, RunDir(unbroken).evaluation, RunDir(unbroken).predictions):
        assert path is not None
        shutil.copy(path, tmp_path)
    assert read_evaluation(run) is not None
    table = run.predictions
    assert table is not None
    if change == "weights":
        shutil.copy(unbroken / "last_ema.safetensors", run.best)
    elif change == "predictions":
        table.write_bytes(table.read_bytes() + b"\n")
    elif change == "missing":
        table.unlink()
    elif change == "format":
        run.evaluation.write_text(json.dumps(json.loads(run.evaluation.read_text()) | {"format": 2}))
    else:
        run.evaluation.write_text("[]")
    assert read_evaluation(run) is None


def test_what_was_predicted_in_another_precision_is_not_read(unbroken: Path, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(unbroken, tmp_path / "run"))
    content = json.loads(run.evaluation.read_text())
    assert content.pop("precision") == "fp32"
    run.evaluation.write_text(json.dumps(content))
    found = read_kept(run, read_classification_predictions)  # version 0.2 did not write it
    assert found is not None
    evaluated = kept_evaluation.Evaluated(found[0].metrics, lambda: found[1], "bf16")
    kept_evaluation.write_evaluation(run, "classification", None, evaluated, ())
    assert json.loads(run.evaluation.read_text())["precision"] == "bf16"
    assert read_evaluation(run) is None
    assert read_evaluation(run, "bf16") is not None


def test_without_pyarrow_the_table_is_csv_and_the_other_one_goes(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unbroken, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    found = read_kept(run, read_classification_predictions)
    assert found is not None
    monkeypatch.setattr(kept_evaluation, "is_installed", lambda name: False)
    evaluated = kept_evaluation.Evaluated(found[0].metrics, lambda: found[1])
    kept_evaluation.write_evaluation(run, found[0].task, None, evaluated, ())
    assert run.predictions == tmp_path / "run" / "predictions.csv"
    again = read_kept(run, read_classification_predictions)
    assert again is not None
    assert again[0].metrics == found[0].metrics
    assert again[1].loss.tolist() == found[1].loss.tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", [2, 3])
def test_predictions_are_the_same_for_any_number_of_processes(tmp_path: Path, processes: int) -> None:
    def evaluate() -> None:
        task = toy.ToyTask(norm=True)
        with joined_world("cpu") as world:
            found = engine.evaluate_keeping(task, task.model, "cpu", batch_size=1)
        assert (found.predictions is not None) == world.is_main
        if found.predictions is not None:
            found.predictions.write(tmp_path / f"{world.size}.csv")

    evaluate()
    assert {ended.code for ended in toy.start(evaluate, tmp_path, processes)()} == {0}
    assert (tmp_path / f"{processes}.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


def test_metrics_csv_has_the_rows_of_metrics_jsonl_and_all_their_names(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    rows = [
        {"kind": "train", "step": 1, "loss": 0.1, "grad_norm": float("nan")},
        {"kind": "train", "step": 2, "loss": 1e-9, "grad_norm": 2.0},
        {"kind": "eval", "step": 2, 'iou/a, "b"\n': 50.0},
        {"kind": "train", "step": 3, "loss": 3.0},
    ]
    for row in rows[:2]:
        log.append(row)
    written = log.csv_path.read_bytes()
    size = log.size()
    log.append(rows[2])
    log.append(rows[3])
    with log.csv_path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["kind", "step", "loss", "grad_norm", 'iou/a, "b"\n']
    assert [row["loss"] for row in found] == ["0.1", "1e-09", "", "3.0"]
    assert found[0]["grad_norm"] == ""
    assert found[2]['iou/a, "b"\n'] == "50.0"
    assert log.truncate(size)
    assert log.csv_path.read_bytes() == written


def test_a_row_with_known_names_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"kind": "train", "step": 1, "loss": 1.0})
    monkeypatch.setattr(log, "write_csv", lambda: pytest.fail("the whole file is written"))
    log.append({"kind": "train", "step": 2, "loss": 0.5})
    assert log.csv_path.read_text() == "kind,step,loss\ntrain,1,1.0\ntrain,2,0.5\n"
