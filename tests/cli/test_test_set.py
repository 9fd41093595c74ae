"""The test set through the real command line: the recipe ``fashion-mnist`` on files of its form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.idx_files import write

import stvit_cli
from stvit_cli.analysis.comparison.images import _opener
from stvit_cli.analysis.comparison.runs import open_runs
from stvit_cli.analysis.report.final_test import final_test_section
from stvit_cli.analysis.report.run_files import read_run
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.tasks.report_parts import MetricsPart, TextPart
from stvit_cli.utils.views import Views

SHORT = [
    *("schedule.epochs=1", "schedule.warmup_epochs=0", "train.global_batch_size=8", "train.kernels=false", "data.num_workers=0"),
    *("train.device=cpu", "data.val_fraction=0.2"),
]
VIEWS = ["eval.hflip=true", "eval.translate=1"]


def rows_of(run: Path) -> list[dict[str, Any]]:
    return MetricsLog(run / "metrics.jsonl").rows("test")


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("idx")
    write(folder, compress=True)
    pixels = np.random.default_rng(1).integers(0, 256, (8, 5, 4), dtype=np.uint8)
    write(folder, "t10k", pixels=pixels, labels=np.arange(8, dtype=np.uint8) % 4, compress=True)
    return folder


@pytest.fixture(scope="module")
def run(idx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = stvit_cli.train("fashion-mnist", [*SHORT, *VIEWS, f"data.dir={idx}"], output=tmp_path_factory.mktemp("runs") / "run")
    assert result.metrics["test_num_images"] == 8
    return result.run_dir


def test_the_row_and_the_files_of_the_test_set(run: Path, idx: Path, stvit, tmp_path: Path) -> None:
    (row,) = rows_of(run)
    assert (row["num_images"], row["split"], row["step"], row["weights"] in ("ema", "model")) == (8, "t10k", 2, True)
    content = json.loads((run / "evaluation-test.json").read_text())
    assert (content["split"], content["class_names"][0]) == ("t10k", "T-shirt/top")
    assert Views.of(content) == Views.of(row) == Views(hflip=True, translate=1)
    shutil.copytree(run, tmp_path / "run")
    ended = stvit("train", "--resume", tmp_path / "run", "--json", "-")
    assert ended.code == 0, ended.err
    assert "Test top-1" in ended.err
    assert json.loads(ended.out)["test_top1"] == row["top1"]
    assert rows_of(tmp_path / "run") == [row]
    ended = stvit("eval", run, "data.val_split=t10k", "data.test_split=null", "eval.batch_size=8", "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["top1"] == row["top1"]
    views = [["eval.hflip=false", "eval.translate=0"], ["eval.translate=0"], ["eval.hflip=false"], []]
    losses = [json.loads(stvit("eval", run, *words, "--json", "-").out)["loss"] for words in views]
    assert len(set(losses)) == len(views)


def test_files_that_are_missing_or_used_already_end_it_before_training(idx: Path, stvit, tmp_path: Path) -> None:
    words = ["train", "--recipe", "fashion-mnist", "--data", idx, "--output", tmp_path / "run", *SHORT]
    ended = stvit(*words, "data.test_split=val")
    assert (ended.code, "there is no IDX file of the images of val" in ended.err) == (2, True)
    ended = stvit(*words, "data.test_split=train")
    assert (ended.code, "data.test_split: train is trained on or chosen by, so that it is no test set" in ended.err) == (2, True)
    ended = stvit(*words, "data.test_splitt=t10k")
    assert (ended.code, "Did you mean 'data.test_split'" in ended.err) == (2, True)
    ended = stvit("train", "--recipe", "fashion-mnist", "--data", tmp_path / "fashion")
    assert (ended.code, "Debian's package dataset-fashion-mnist" in ended.err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_report_and_card_have_the_test_set(run: Path) -> None:
    section = final_test_section(read_run(run))
    assert section is not None
    (said,) = (part for part in section.parts[:1] if isinstance(part, TextPart))
    assert "On the 8 images of t10k" in said.lines[0]
    (metrics,) = (part for part in section.parts if isinstance(part, MetricsPart))
    assert {metric.name: metric.value for metric in metrics.metrics}["top1"] == rows_of(run)[0]["top1"]
    card = (run / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    names: Sequence[str] = [result["dataset"]["name"] for result in head["model-index"][0]["results"]]
    assert [name.rpartition(", ")[2] for name in names] == ["validation", "test"]
    assert "On the 8 test images, evaluated once after the training" in card
    assert "test images, which chose nothing: on other images" in card


def test_runs_are_compared_on_the_same_test_images(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    found = stvit_cli.compare([run, tmp_path / "other"])
    assert [(row["images"], row["num_images"]) for row in found.runs] == [("test", 8), ("test", 8)]
    assert next(row["p_value"] for row in found.metrics if row["metric"] == "top1" and row["run"] == "other") == 1
    compared = open_runs([run, tmp_path / "other"], lambda line: None)
    assert _opener(compared[0])(7)  # an image of the test files
    (tmp_path / "other" / "evaluation-test.json").unlink()
    found = stvit_cli.compare([run, tmp_path / "other"])
    assert [row["images"] for row in found.runs] == ["validation"] * 2
    assert any("not all have predictions of the same test images, as run has" in note for note in found.notes)


def test_data_show_has_the_test_images(run: Path) -> None:
    assert [(split.name, split.num_images) for split in stvit_cli.data_show(run).splits] == [
        ("train", 16),
        ("val", 4),
        ("test", 8),
    ]
