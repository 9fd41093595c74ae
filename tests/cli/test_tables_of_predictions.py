"""Predictions as tables: ``stvit eval --predictions``, ``stvit predict --csv`` and their Python twins."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stvit_cli
from stvit_cli.engine.kept_evaluation import read_evaluation
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.tasks.classification.predict import ClassificationPrediction
from stvit_cli.tasks.classification.predictions import ClassificationPredictions
from stvit_cli.tasks.tables import write_rows


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_s_predictions_are_read_from_where_they_are_kept(short_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.analysis.run_predictions.evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    found = stvit_cli.run_predictions(short_run)
    assert isinstance(found.predictions, ClassificationPredictions)
    assert sorted(found.predictions.images) == sorted(f"{name}/{i}.png" for name in ("blue", "red") for i in range(3))
    reported = json.loads((short_run.parent / "run.json").read_text())
    assert found.metrics["top1"] == reported["top1"] == pytest.approx(100 * np.mean(found.predictions.target_rank == 0))


def test_a_run_of_version_0_1_is_evaluated_and_what_it_predicts_is_kept(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parents[1] / "golden" / "saved_by_0_1" / "run.tar.xz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    run = RunDir(tmp_path / "run")
    assert read_evaluation(run) is None
    found = stvit_cli.run_predictions(run.path)
    kept = read_evaluation(run)
    assert kept is not None
    assert kept.metrics == dict(found.metrics)
    assert kept.step is None
    again = stvit_cli.run_predictions(run.path)
    assert again.predictions.loss.tolist() == found.predictions.loss.tolist()  # type: ignore[union-attr]


def test_replaced_weights_are_evaluated_again(short_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    shutil.copy(run / "last.safetensors", run / "best.safetensors")
    before = (run / "evaluation.json").read_bytes()
    stvit_cli.run_predictions(run)
    assert (run / "evaluation.json").read_bytes() != before


def test_eval_writes_the_predictions_for_other_data_too(stvit, short_run: Path, image_folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in short_run.iterdir() if path.is_file()}
    ended = stvit("eval", short_run, "--data", image_folder / "train", "--predictions", tmp_path / "x.csv", "--json", "-")
    assert ended.code == 0, ended.err
    rows = rows_of(tmp_path / "x.csv")
    assert len(rows) == 16
    assert {row["true_class"] for row in rows} == {"red", "blue"} == {row["image"].split("/")[0] for row in rows}
    top1 = json.loads(ended.out)["top1"]
    assert 100 * sum(row["right"] == "true" for row in rows) / 16 == pytest.approx(top1)
    assert 100 * sum(row["true_class"] == row["class_1"] for row in rows) / 16 == pytest.approx(top1)
    assert {path.name: path.stat().st_mtime_ns for path in short_run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", "expected a name that ends in .csv or .parquet"),
        ("missing/x.csv", "cannot be written: No such file"),
    ],
)
@pytest.mark.parametrize("option", ["--predictions", "--csv"])
def test_a_table_that_cannot_be_written_is_refused_before_the_work(
    stvit, short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str, message: str
) -> None:
    monkeypatch.setattr("stvit_cli.api.trained_model.load", lambda *_, **__: pytest.fail("work"))
    monkeypatch.setattr("stvit_cli.tasks.loading.open_trained", lambda *_, **__: pytest.fail("work"))
    words = ["eval", short_run] if option == "--predictions" else ["predict", tmp_path, "--weights", short_run]
    ended = stvit(*words, option, tmp_path / name)
    assert ended.code == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) <= 6


def test_parquet_without_pyarrow_names_the_extra(stvit, short_run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("stvit_cli.tasks.tables.is_installed", lambda name: False)
    ended = stvit("eval", short_run, "--predictions", tmp_path / "x.parquet")
    assert ended.code == 2
    assert "pip install 'stvit[tables]'" in ended.err
    assert "x.csv" in ended.err


def test_predict_writes_a_row_for_each_class_and_for_each_image_that_fails(stvit, short_run, image_folder, tmp_path) -> None:
    folder = tmp_path / "images, and more"
    shutil.copytree(image_folder / "val" / "red", folder)
    (folder / "broken.png").write_bytes(b"nothing")
    ended = stvit("predict", folder, "--weights", short_run, "--top", "2", "--csv", tmp_path / "x.csv")
    assert ended.code == 2
    assert "1 of 4 images could not be read" in ended.err
    rows = rows_of(tmp_path / "x.csv")
    assert list(rows[0]) == ["image", "class", "class_index", "score", "rank", "error"]
    assert [row["rank"] for row in rows if row["image"].endswith("0.png")] == ["1", "2"]
    (failed,) = (row for row in rows if row["error"])
    assert failed["image"] == str(folder / "broken.png")
    assert failed["class"] == failed["score"] == ""
    assert len(rows) == 3 * 2 + 1


def test_rows_from_python_are_ready_for_pandas(short_run: Path, image_folder: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    model = stvit_cli.load(short_run, device="cpu")
    found = model.predict([image_folder / "val" / "red" / "0.png", Image.new("RGB", (40, 40))], top=2)
    table = pandas.DataFrame([row for prediction in found for row in prediction.to_rows()])
    assert table["class_index"].tolist() == [found[0].classes[0].index, found[0].classes[1].index, *table["class_index"][2:]]  # type: ignore[attr-defined]
    assert table["image"].isna().tolist() == [False, False, True, True]
    nothing = ClassificationPrediction("x.png").to_rows()
    assert nothing == [{"image": "x.png", **dict.fromkeys(["class", "class_index", "score", "rank", "error"])}]
    write_rows(tmp_path / "x.csv", nothing)
    assert (tmp_path / "x.csv").read_text() == "image,class,class_index,score,rank,error\nx.png,,,,,\n"


def test_rows_of_detectors_and_segmenters() -> None:
    from stvit_cli.tasks.detection.predict import Detection, DetectionPrediction
    from stvit_cli.tasks.segmentation.predict import ClassShare, SegmentationPrediction

    code = {"size": [4, 8], "counts": "05"}
    found = DetectionPrediction("a.png", 8, 4, (Detection("cat", 0, 0.9, (1.0, 2.0, 3.0, 4.0), code),))
    (row,) = found.to_rows()
    assert row | {"error": 0} == {
        **{
            "image": "a.png",
            "class": "cat",
            "class_index": 0,
            "score": 0.9,
            "left": 1.0,
            "top": 2.0,
            "right": 3.0,
            "bottom": 4.0,
        },
        **{"mask": "05", "image_width": 8, "image_height": 4, "error": 0},
    }
    (empty,) = DetectionPrediction("a.png", 8, 4).to_rows()
    assert empty.keys() == row.keys()
    assert (empty["image"], empty["class"], empty["image_width"]) == ("a.png", None, 8)
    shares = (ClassShare("sky", 3, 12, 0.75), ClassShare("sea", 4, 4, 0.25))
    rows = SegmentationPrediction("b.png", np.zeros((4, 4), np.uint16), shares).to_rows()
    assert [(row["class"], row["number"], row["share"]) for row in rows] == [("sky", 3, 0.75), ("sea", 4, 0.25)]
