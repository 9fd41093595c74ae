"""Predictions of evaluations are read back as they were written, from CSV and from Parquet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stvit_cli.errors import UserError
from stvit_cli.tasks.classification.predictions import (
    ClassificationPredictions,
    MultiLabelPredictions,
    read_classification_predictions,
)
from stvit_cli.tasks.detection.predictions import Boxes, DetectionPredictions, read_detection_predictions
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions, read_segmentation_predictions

HOSTILE = [
    "a, b.png",
    'quote".png',
    "line\nbreak.png",
    "carriage\rreturn\r\n.png",
    " spaces .png",
    "\\back\\slash.png",
    "<img onerror=x>.png",
    "=1+1.png",
    "caf\udce9 \uf8ff.png",  # a name in Latin-1, and the character that marks such
    "日本.png",
    "null",
    "",
]
CLASS_NAMES = ("cat", "cat", "a;b, c", 'd"\n', "", "=e", "f")


def classification() -> ClassificationPredictions:
    random = np.random.default_rng(0)
    n, k = len(HOSTILE), len(CLASS_NAMES)
    return ClassificationPredictions(
        HOSTILE,
        CLASS_NAMES,
        target=random.integers(0, k, n, dtype=np.int32),
        labels=np.stack([random.permutation(k)[:5] for _ in range(n)]).astype(np.int32),
        scores=random.random((n, 5), dtype=np.float32),
        target_score=np.float32(10) ** random.uniform(-40, 0, n).astype(np.float32),
        target_rank=random.integers(0, k, n, dtype=np.int32),
        loss=10 ** random.uniform(-300, 5, n),
    )


def multi_label() -> MultiLabelPredictions:
    random = np.random.default_rng(1)
    shape = len(HOSTILE), len(CLASS_NAMES)
    target = random.random(shape) < 0.3
    target[0] = False  # an image without a label
    return MultiLabelPredictions(HOSTILE, CLASS_NAMES, target, random.random(shape, dtype=np.float32), random.random(shape[0]))


def boxes(image: list[int], *, masks: bool, score: float | None = None) -> Boxes:
    random, n = np.random.default_rng(len(image)), len(image)
    code = {"size": [9, 7], "counts": "0\\aQ`0?"}  # a backslash is one of the characters of a run-length code
    return Boxes(
        np.array(image, np.int32),
        random.integers(0, len(CLASS_NAMES), n).astype(np.int32),
        random.normal(size=(n, 4)) * 100,
        random.random(n, dtype=np.float32) if score is None else np.full(n, score, np.float32),
        random.random(n) < 0.5,
        random.random(n) * 1e5,
        [dict(code) if masks and number % 2 else None for number in range(n)],
    )


def detection(*, masks: bool = True) -> DetectionPredictions:
    """Images without any box are the first, the last and one between."""
    n = len(HOSTILE)
    ids = [7, "7", "a\n", 2**40, -1, *range(100, 100 + n - 5)]
    found = boxes([1, 1, 1, 3, 4], masks=masks)
    return DetectionPredictions(
        HOSTILE, CLASS_NAMES, ids, np.full((n, 2), (7, 9), np.int32), boxes([1, 2, 2, 4], masks=masks, score=1), found
    )


def segmentation() -> SegmentationPredictions:
    return SegmentationPredictions(
        ["same.png", *HOSTILE, "same.png"],
        CLASS_NAMES,
        np.array([1, 1, 2, 9], np.int32),
        np.array([0, 6, 2, 1], np.int16),
        np.array([6, 0, 2, 1], np.int16),
        np.array([1, 2**40, 3, 4], np.int64),
    )


CASES: list[tuple[Callable[[], Any], Callable[[Path, Any], Any]]] = [
    (classification, read_classification_predictions),
    (multi_label, read_classification_predictions),
    (detection, read_detection_predictions),
    (lambda: detection(masks=False), read_detection_predictions),
    (segmentation, read_segmentation_predictions),
]


def same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for field in dataclasses.fields(expected):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        if dataclasses.is_dataclass(wanted):
            same(value, wanted)
        elif isinstance(wanted, np.ndarray):
            assert value.dtype == wanted.dtype, field.name
            np.testing.assert_array_equal(value, wanted, err_msg=field.name)
        else:
            assert list(value) == list(wanted), field.name


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(("make", "read"), CASES)
def test_predictions_are_read_back_bit_equal(make: Any, read: Any, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"predictions.{ending}"
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    written = make()
    written.write(path)
    same(read(path, CLASS_NAMES), written)
    first = path.read_bytes()
    written.write(path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [np.float32(1) / 3, np.float32(1e-45), np.float32(3.4028235e38), np.float32(0.1)])
def test_float32_in_csv_is_the_shortest_text_that_is_read_back_the_same(value: np.float32, tmp_path: Path) -> None:
    one = dataclasses.replace(classification(), images=["x"] * len(HOSTILE), target_score=np.full(len(HOSTILE), value))
    one.write(tmp_path / "x.csv")
    found = read_classification_predictions(tmp_path / "x.csv", CLASS_NAMES)
    assert found.target_score.tolist() == one.target_score.tolist()  # type: ignore[union-attr]
    assert f",{value!s}," in (tmp_path / "x.csv").read_text()


def test_tables_are_read_by_pandas_with_the_names_of_classes(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    made = classification()
    made.write(tmp_path / "x.csv")
    table = pandas.read_csv(tmp_path / "x.csv", keep_default_na=False)
    assert table["image"][0] == HOSTILE[0]
    assert table["class_1"].tolist() == [CLASS_NAMES[label] for label in made.labels[:, 0]]
    assert table["loss"].tolist() == pytest.approx(made.loss.tolist())
    assert table["right"].tolist() == (made.target_rank == 0).tolist()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_damaged_or_foreign_tables_are_refused_by_name(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"predictions.{ending}"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_classification_predictions(path, CLASS_NAMES)
    path.write_bytes(b"PAR1 and no more\n\xff")
    with pytest.raises(UserError, match="is damaged"):
        read_classification_predictions(path, CLASS_NAMES)
    segmentation().write(path)
    with pytest.raises(UserError, match="has no column"):
        read_classification_predictions(path, CLASS_NAMES)
    classification().write(path)
    with pytest.raises(UserError, match="class 6 is none of the model's 2"):
        read_classification_predictions(path, CLASS_NAMES[:2])
    with pytest.raises(UserError, match=r"expected a name that ends in \.csv or \.parquet"):
        classification().write(tmp_path / "predictions.xlsx")
