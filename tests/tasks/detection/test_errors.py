"""Types of errors by hand: TIDE's definitions, the confusion with the background, and the score threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.detections import made_boxes

from stvit_cli.tasks.detection.confusion import find_pairs
from stvit_cli.tasks.detection.errors import ERROR_TYPES, ap_gains, find_errors
from stvit_cli.tasks.detection.matching import Matching, Overlaps, match
from stvit_cli.tasks.detection.predictions import DetectionPredictions
from stvit_cli.tasks.detection.thresholds import SCORES, score_curves

BOX, NEAR, FAR = [10, 10, 20, 20], [20, 10, 20, 20], [60, 60, 20, 20]  # NEAR has an IoU of 1/3 with BOX
NAMES = [kind.name for kind in ERROR_TYPES]


def _matched(objects: list[dict[str, Any]], found: list[dict[str, Any]], num_images: int = 9) -> tuple[Overlaps, Matching]:
    predictions = DetectionPredictions(
        images=[f"{index}.png" for index in range(num_images)],
        class_names=["cat", "dog"],
        image_ids=list(range(num_images)),
        sizes=np.full((num_images, 2), 100, dtype=np.int32),
        objects=made_boxes(objects),
        detections=made_boxes(found),
    )
    overlaps = Overlaps(predictions)
    return overlaps, match(overlaps)


def _object(image: int, label: int = 0, box: list[int] = BOX, **more: Any) -> dict[str, Any]:
    return {"image": image, "label": label, "bbox": box} | more


def _found(image: int, score: float, label: int = 0, box: list[int] = BOX) -> dict[str, Any]:
    return {"image": image, "label": label, "bbox": box, "score": score}


CASES = {
    "right": ([_object(0)], [_found(0, 0.9)], {}),
    "class": ([_object(0)], [_found(0, 0.9, label=1)], {"class": 1}),
    "localization": ([_object(0)], [_found(0, 0.9, box=NEAR)], {"localization": 1}),
    "both": ([_object(0)], [_found(0, 0.9, label=1, box=NEAR)], {"both": 1, "missed": 1}),
    "duplicate": ([_object(0)], [_found(0, 0.9), _found(0, 0.8)], {"duplicate": 1}),
    "background": ([_object(0)], [_found(0, 0.9), _found(0, 0.8, box=FAR)], {"background": 1}),
    "background of an image without objects": ([_object(1)], [_found(0, 0.9)], {"background": 1, "missed": 1}),
    "missed": ([_object(0), _object(0, box=FAR)], [_found(0, 0.9)], {"missed": 1}),
    "bad box beside a right one": ([_object(0)], [_found(0, 0.9), _found(0, 0.8, box=NEAR)], {"localization": 1}),
    "bad box before wrong class": (
        [_object(0), _object(0, 1, NEAR)],
        [_found(0, 0.9, box=NEAR), _found(0, 0.8), _found(0, 0.7, 1, NEAR)],
        {"localization": 1},
    ),
    "crowd": ([_object(0, box=[0, 0, 50, 50], iscrowd=1), _object(1)], [_found(0, 0.9), _found(1, 0.8)], {}),
    "crowd of another class": (
        [_object(0, 1, [0, 0, 50, 50], iscrowd=1), _object(1)],
        [_found(0, 0.9), _found(1, 0.8)],
        {"background": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_error_has_its_type(name: str) -> None:
    objects, found, expected = CASES[name]
    errors = find_errors(*_matched(objects, found))
    assert {kind: count for kind, count in zip(NAMES, errors.counts(), strict=True) if count} == expected


def test_detections_below_the_threshold_are_as_if_they_were_not_there() -> None:
    overlaps, matching = _matched([_object(0), _object(1)], [_found(0, 0.9), _found(0, 0.3), _found(1, 0.2)])
    assert find_errors(overlaps, matching, 0.1).counts() == [0, 0, 0, 1, 0, 0]
    assert find_errors(overlaps, matching, 0.25).counts() == [0, 0, 0, 1, 0, 1]
    assert find_errors(overlaps, matching, 0.5).counts() == [0, 0, 0, 0, 0, 1]


def test_what_each_type_costs() -> None:
    # Two objects; the better-scored detection is wrong, so AP50 is about half of what it can be.
    objects, right = [_object(0), _object(1)], _found(0, 0.5)
    half = 100 * 51 / 101  # precision 1 at the recalls 0, 0.01, ... 0.5
    for wrong, kind in (
        (_found(1, 0.9, label=1), "class"),
        (_found(1, 0.9, box=NEAR), "localization"),
        (_found(1, 0.9, box=FAR), "background"),
        (_found(1, 0.9, label=1, box=NEAR), "both"),
    ):
        label = wrong["label"]
        overlaps, matching = _matched(objects, [right, wrong])
        gains = dict(zip(NAMES, ap_gains(matching, find_errors(overlaps, matching)), strict=True))
        base = half if label else half / 2  # a wrong detection of another class costs that class, which has no objects here
        assert gains[kind] == pytest.approx(100 - base if kind in ("class", "localization") else half - base), kind
        assert all(value == 0 for name, value in gains.items() if name not in (kind, "missed"))
        missed = 100 - base if label else 50 - base
        assert gains["missed"] == pytest.approx(missed if kind in ("both", "background") else 0), kind
    overlaps, matching = _matched([_object(0)], [])
    assert ap_gains(matching, find_errors(overlaps, matching))[-1] == 100


def test_an_object_is_corrected_once_and_by_the_highest_score() -> None:
    # Corrected to a cat, the lower score is right and the higher one is taken away.
    overlaps, matching = _matched([_object(0)], [_found(0, 0.9, 1), _found(0, 0.8, 1), _found(0, 0.7, box=FAR)])
    gains = dict(zip(NAMES, ap_gains(matching, find_errors(overlaps, matching)), strict=True))
    assert gains["class"] == pytest.approx(100)


def test_the_confusion_has_each_object_and_each_detection_once() -> None:
    overlaps, matching = _matched(
        [_object(0), _object(0, 1, FAR), _object(1), _object(2), _object(3, iscrowd=1)],
        [
            _found(0, 0.9),
            _found(0, 0.8, 1),  # a second one, of another class, on a cat that is found
            _found(0, 0.7, 0, FAR),  # a cat where a dog is
            _found(1, 0.6, 0, FAR),
            _found(2, 0.1),  # below the threshold
            _found(3, 0.9),  # in a crowd
        ],
    )
    errors = find_errors(overlaps, matching, 0.5)
    pairs = find_pairs(overlaps, matching, errors, 0.5)
    assert pairs.matrix(2).tolist() == [
        [1, 0, 2],  # cats: one found, two not
        [1, 0, 0],
        [1, 1, 0],
    ]


def test_the_recommended_threshold_is_in_the_middle_of_those_with_the_largest_f1() -> None:
    _, matching = _matched([_object(0), _object(1)], [_found(0, 0.8), _found(1, 0.7), _found(2, 0.3), _found(3, 0.2)])
    curves = score_curves(matching)
    assert SCORES[curves.best] == 0.5
    assert (curves.precision[50], curves.recall[50], curves.f1[50]) == (1, 1, 1)
    assert curves.precision[0] == 0.5
    assert curves.recall[75] == 0.5
    assert np.isnan(curves.precision[95])
    assert np.isnan(score_curves(matching, 1).recall).all()
    assert score_curves(matching, 0).f1[30] == pytest.approx(4 / 5)  # a score of 0.3 counts from 0.3
