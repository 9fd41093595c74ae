"""`stvit compare`: runs beside each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import stvit_cli
from stvit_cli.analysis.comparison.images import beside
from stvit_cli.analysis.comparison.runs import ComparedRun, short_names
from stvit_cli.analysis.comparison.sections import _metrics
from stvit_cli.engine.evaluation import Evaluated
from stvit_cli.engine.kept_evaluation import write_evaluation
from stvit_cli.engine.run_dir import RunDir
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.tasks.bootstrap import mcnemar
from stvit_cli.tasks.classification.predictions import ClassificationPredictions
from stvit_cli.tasks.detection.image_scores import image_scores as of_detections
from stvit_cli.tasks.detection.predictions import Boxes, DetectionPredictions
from stvit_cli.tasks.report_parts import TablePart, Thumbnail
from stvit_cli.tasks.segmentation.image_scores import image_scores as of_segmentation
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions

NAMES = ("cat", "</script><img src=x onerror=alert(1)>")
N = 40


def predictions(seed: int, *, images: int = N, names: tuple[str, ...] = NAMES) -> ClassificationPredictions:
    target = (np.arange(images) % len(names)).astype(np.int32)
    right = np.random.default_rng(seed).random(images) < 0.8
    first = np.where(right, target, 1 - target).astype(np.int32)
    top = np.linspace(0.5, 1, images, dtype=np.float32)
    own = np.where(right, top, 1 - top).astype(np.float32)
    return ClassificationPredictions(
        [f"{names[label]}/{index}.png" for index, label in enumerate(target.tolist())],
        names,
        target,
        np.stack([first, 1 - first], 1),
        np.stack([top, 1 - top], 1),
        own,
        (~right).astype(np.int32),
        -np.log(np.maximum(own, 1e-6)).astype(np.float64),
    )


def make_run(path: Path, found: ClassificationPredictions, *words: str) -> Path:
    """Write what a run leaves that a comparison reads; its data are nowhere."""
    import torch

    from stvit_cli.recipe import io as recipe_io

    run = RunDir(path)
    path.mkdir(parents=True)
    run.write_recipe(recipe_io.from_text("name: test", ["data.dir=/nowhere", *words]))
    rows = [{"kind": "train", "step": step, "epoch": step / 5, "loss": 1 / step, "lr": 0.1} for step in range(1, 11)] + [
        {"kind": "eval", "step": step, "epoch": step / 5, "top1": 50.0 + step, "loss": 1.0} for step in (5, 10)
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = WeightsInfo("stvit-nano", num_classes=len(found.class_names), class_names=tuple(found.class_names))
    save_weights(run.best, {"x": torch.zeros(1)}, info)
    top1 = 100 * float((found.target_rank == 0).mean())
    metrics = {"num_images": len(found.images), "top1": top1, "loss": float(found.loss.mean())}
    write_evaluation(run, "classification", 10, Evaluated(metrics, lambda: found), ())
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return make_run(tmp_path / "a", predictions(1)), make_run(
        tmp_path / "b", predictions(2), "optim.lr=0.5", "model.name=stvit-b"
    )


def test_metrics_stand_beside_each_other_with_paired_intervals(pair: tuple[Path, Path]) -> None:
    found = stvit_cli.compare(pair)
    a, b = (predictions(seed).target_rank == 0 for seed in (1, 2))
    first, second = (row for row in found.to_rows() if row["metric"] == "top1")
    assert (first["run"], first["value"], first["difference"]) == ("a", 100 * a.mean(), None)
    assert second["value"] == 100 * b.mean()
    assert second["difference"] == pytest.approx(100 * (b.mean() - a.mean()))
    assert second["low"] < second["difference"] < second["high"]
    assert second["p_value"] == mcnemar(int((a & ~b).sum()), int((~a & b).sum()))
    differing = {row["image"] for row in found.images}
    names = predictions(1).images
    assert differing == {names[index] for index in np.flatnonzero(a != b)}
    assert found.notes == []
    assert {row["key"] for row in found.recipes} == {"optim.lr", "model.name"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_page_holds_hostile_names_as_text_and_is_the_same_again(pair: tuple[Path, Path]) -> None:
    html = stvit_cli.compare(pair).to_html()
    assert html == stvit_cli.compare(pair).to_html()
    assert "<img src=x" not in html
    assert "onerror" in html
    assert html.count("<script") == html.count("</script>")
    assert "cannot be opened where the run had them" in html


def test_the_page_speaks_of_mcnemar_where_there_is_a_p_value(pair: tuple[Path, Path]) -> None:
    found = stvit_cli.compare(pair)
    names = [row["run"] for row in found.runs]
    runs = [SimpleNamespace(name=name, found=None, images="val") for name in names]
    without = [row | {"p_value": None} for row in found.metrics]
    notes = [_metrics(cast(Any, runs), cast(Any, runs[1:]), rows).parts[0] for rows in (found.metrics, without)]
    assert ["McNemar" in cast(TablePart, part).note for part in notes] == [True, False]


def test_pandas_takes_the_rows(pair: tuple[Path, Path]) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(stvit_cli.compare(pair).to_rows()).pivot(index="metric", columns="run", values="value")
    assert list(table.columns) == ["a", "b"]


@pytest.mark.parametrize(
    ("other", "words", "note"),
    [
        (predictions(3, images=20), [], "different data (40 and 20 images)"),
        (predictions(3, names=("cat", "dog")), [], "different classes (other names, or another order)"),
        (None, ["task=detection", "data.kind=coco"], "a is a run of classification, c of detection"),
    ],
)
def test_runs_that_cannot_be_paired_are_compared_as_far_as_that_goes(
    pair: tuple[Path, Path], tmp_path: Path, other: ClassificationPredictions | None, words: list[str], note: str
) -> None:
    third = make_run(tmp_path / "c", other or predictions(1), *words)
    found = stvit_cli.compare([*pair, third])
    assert any(note in line for line in found.notes)
    rows = {row["run"]: row for row in found.metrics if row["metric"] == "loss"}
    assert rows["c"]["difference"] is None
    assert rows["c"]["value"] is not None
    assert rows["b"]["difference"] is not None
    assert {section.id for section in found.sections} == {"runs", "metrics", "images-1", "curves", "recipes", "command"}
    assert note.replace("'", "&#x27;") in found.to_html()


def test_a_run_that_cannot_be_evaluated_is_compared_by_its_recipe_and_curves(pair: tuple[Path, Path]) -> None:
    (pair[1] / "evaluation.json").unlink()
    found = stvit_cli.compare(pair)
    assert found.notes[0].startswith("b cannot be evaluated: ")
    assert [row["evaluated"] for row in found.runs] == [True, False]
    assert next(row for row in found.metrics if (row["run"], row["metric"]) == ("b", "top1"))["value"] == 60


def test_the_same_run_twice_has_no_difference(pair: tuple[Path, Path]) -> None:
    found = stvit_cli.compare([pair[0], pair[0]])
    assert [row["run"] for row in found.runs] == ["a", "a (2)"]
    assert found.notes == ["a (2) is the same run as a."]
    assert {row["difference"] for row in found.metrics if row["run"] == "a (2)"} == {0.0}
    assert found.images == []
    assert "Both are equally right about all 40 images." in found.to_html()


def test_runs_of_the_same_name_are_told_apart() -> None:
    assert short_names([Path("x/a/run"), Path("x/b/run"), Path("y")]) == ["a/run", "b/run", "y"]
    assert short_names([Path("run"), Path("run"), Path("run")]) == ["run", "run (2)", "run (3)"]


def test_what_is_no_run_is_refused(stvit, pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two runs or more"):
        stvit_cli.compare(pair[:1])
    for words, message in (
        ([pair[0], tmp_path / "nothing"], "is not the directory of a run: there is no such directory"),
        ([pair[0], tmp_path], "holds no recipe.yaml"),
        ([*pair, "--output", tmp_path / "x.pdf"], "expected a name that ends in .html"),
        ([*pair, "--output", tmp_path / "no" / "x.html"], "cannot be written"),
    ):
        ended = stvit("compare", *words)
        assert ended.code == 2
        assert message in ended.err
        assert len(ended.err.splitlines()) <= 6
    assert not (tmp_path / "compare.html").exists()


def test_the_command_prints_a_table_and_writes_the_page(stvit, pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "c")
    ended = stvit("compare", *pair, tmp_path / "c", "--output", tmp_path / "x.html", "--json", tmp_path / "x.json")
    assert ended.code == 0, ended.err
    assert (tmp_path / "x.html").read_text().startswith("<!")
    assert {row["run"] for row in json.loads((tmp_path / "x.json").read_text())["metrics"]} == {"a", "b", "c"}
    head = next(line for line in ended.out.splitlines() if line.startswith("metric"))
    assert head.split() == ["metric", "a", "b", "difference", "c", "difference"]
    assert "right alone" in ended.out


def boxes(image: list[int], label: list[int], left: list[float], score: float) -> Boxes:
    n = len(image)
    box = np.array([[x, 0.0, 10.0, 10.0] for x in left]).reshape(-1, 4)
    ones = np.ones(n)
    return Boxes(
        np.array(image, np.int32), np.array(label, np.int32), box, np.full(n, score, np.float32), ones < 0, 100 * ones, [None] * n
    )


def test_scores_of_a_detector_s_images_are_f1() -> None:
    """Right; one found and one missed; nothing there and nothing found; nothing there and one found."""
    objects = boxes([0, 1, 1], [0, 1, 0], [0, 0, 50], 1.0)
    found = boxes([0, 1, 3], [0, 1, 0], [0, 1, 0], 0.9)
    sizes = np.full((4, 2), 100, np.int32)
    scores = of_detections(DetectionPredictions(list("abcd"), ("x", "y"), [1, 2, 3, 4], sizes, objects, found))
    assert scores.score.tolist() == pytest.approx([1, 2 / 3, 1, 0])
    assert scores.describe(1).startswith("1 right, 0 wrong, 1 missed")
    assert [scores.describe_truth(index) for index in range(3)] == ["1 object", "2 objects", "0 objects"]
    other = DetectionPredictions(list("abcd"), ("x", "y"), [1, 2, 3, 4], sizes, found, found)
    assert of_detections(other).truth != scores.truth


def test_truth_stands_beside_what_each_run_says() -> None:
    def drawn(truth: bytes, said: bytes) -> Callable[[int], Sequence[Thumbnail]]:
        return lambda index: [Thumbnail(truth, "truth"), Thumbnail(said, "prediction"), Thumbnail(b"", "error map")]

    a, b = (SimpleNamespace(name=name) for name in "ab")
    shots = beside(cast(ComparedRun, a), drawn(b"t", b"1"), cast(ComparedRun, b), drawn(b"t", b"2"))(0)
    assert [(shot.label, shot.data) for shot in shots] == [("truth", b"t"), ("a", b"1"), ("b", b"2")]
    moved = beside(cast(ComparedRun, a), lambda index: (), cast(ComparedRun, b), drawn(b"t", b"2"))(0)
    assert [shot.label for shot in moved] == ["truth", "b"]


def test_scores_of_a_segmenter_s_images_are_their_mean_iou() -> None:
    def made(pixels: list[int]) -> SegmentationPredictions:
        columns = [np.array(column) for column in ([0, 0, 1], [0, 1, 1], [0, 0, 1], pixels)]
        kinds = [np.int32, np.int16, np.int16, np.int64]
        return SegmentationPredictions(
            ["a", "b", "c"], ("x", "y"), *(column.astype(kind) for column, kind in zip(columns, kinds, strict=True))
        )

    scores = of_segmentation(made([6, 2, 5]))
    assert scores.score.tolist() == pytest.approx([(6 / 8 + 0) / 2, 1, 1])
    assert of_segmentation(made([5, 3, 5])).truth != scores.truth
