"""Metrics as a function of the images: figures of pycocotools, where images count once, several times or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.detections import made_coco, made_predictions

from stvit_cli.data.coco_index import read_coco
from stvit_cli.tasks.detection.average_precision import AveragePrecision, mean
from stvit_cli.tasks.detection.matching import AREAS, Overlaps, match
from stvit_cli.tasks.detection.metrics import coco_metrics
from stvit_cli.tasks.detection.statistics import DetectionStatistics


@pytest.mark.parametrize("seed", range(9))
def test_all_ones_give_the_figures_of_pycocotools(tmp_path: Path, seed: int) -> None:
    masks = seed % 3 != 0
    results = made_coco(tmp_path / "a.json", 3 + 2 * seed, seed=seed, masks=masks)
    index = read_coco(tmp_path / "a.json", None)
    expected = dict(coco_metrics(index, results, masks=masks))
    statistics = DetectionStatistics(made_predictions(index, results))
    found = dict(zip(statistics.names, statistics(np.ones(len(index), dtype=np.int64)), strict=True))
    assert len(found) == (8 if masks else 4)
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-9), name
    overlaps = Overlaps(made_predictions(index, results), "segm" if masks else "bbox")
    for size in ("small", "medium", "large"):
        part, ones = AveragePrecision(match(overlaps, AREAS[size])), np.ones(len(index), dtype=np.int64)
        for name, value in (("ap", mean(part.precision(ones))), ("ar", mean(part.recall(ones)))):
            wanted = expected[f"{'mask' if masks else 'box'}_{name}_{size}"]
            assert value == pytest.approx(np.nan if wanted == -1 else wanted, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_an_image_that_counts_twice_is_two_images_for_pycocotools(tmp_path: Path, seed: int) -> None:
    results = made_coco(tmp_path / "a.json", 9, seed=seed, equal_scores=False)
    index = read_coco(tmp_path / "a.json", None)
    counts = np.random.default_rng(seed).integers(0, 4, len(index))
    content = json.loads((tmp_path / "a.json").read_text())
    copies = [(image, 1000 * copy + image["id"]) for image, n in zip(content["images"], counts, strict=True) for copy in range(n)]
    repeated = {"images": [], "annotations": [], "categories": content["categories"]}
    more = []
    for image, new_id in copies:
        repeated["images"].append(image | {"id": new_id, "file_name": f"{new_id}.png"})
        for entries, target in ((content["annotations"], repeated["annotations"]), (results, more)):
            target += [entry | {"image_id": new_id} for entry in entries if entry["image_id"] == image["id"]]
    for number, annotation in enumerate(repeated["annotations"]):
        annotation["id"] = number + 1
    (tmp_path / "b.json").write_text(json.dumps(repeated))
    expected = dict(coco_metrics(read_coco(tmp_path / "b.json", None), more))
    statistics = DetectionStatistics(made_predictions(index, results))
    for name, value in zip(statistics.names, statistics(counts), strict=True):
        assert value == pytest.approx(expected[name], abs=1e-9), name


def test_of_more_than_100_detections_of_a_class_the_best_100_count(tmp_path: Path) -> None:
    results = made_coco(tmp_path / "a.json", 2, 1, seed=1, masks=False)
    entry = results[0]
    shifts = np.random.default_rng(0).random(150)
    results += [entry | {"score": float(np.float32(0.9 * s)), "bbox": [value + 3 * s for value in entry["bbox"]]} for s in shifts]
    index = read_coco(tmp_path / "a.json", None)
    overlaps = Overlaps(made_predictions(index, results))
    statistics = DetectionStatistics(overlaps.predictions)
    value = statistics(np.ones(2, dtype=np.int64))[0]
    assert value == pytest.approx(dict(coco_metrics(index, results, masks=False))["box_ap"], abs=1e-9)
    assert max(len(image.detections) for image in overlaps.images) == 100


def test_without_annotations_there_are_no_metrics_and_without_an_image_of_a_class_none_of_it(tmp_path: Path) -> None:
    results = made_coco(tmp_path / "a.json", 6, seed=2)
    index = read_coco(tmp_path / "a.json", None)
    predictions = made_predictions(index, results)
    assert np.isnan(DetectionStatistics(predictions)(np.zeros(6, dtype=np.int64))).all()
    content = json.loads((tmp_path / "a.json").read_text()) | {"annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    bare = DetectionStatistics(made_predictions(read_coco(tmp_path / "a.json", None), results))
    assert bare.names == ()
    assert bare(np.ones(6, dtype=np.int64)).shape == (0,)


def test_more_masks_than_pycocotools_takes_at_once(tmp_path: Path) -> None:
    results = made_coco(tmp_path / "a.json", 3, seed=1)
    index = read_coco(tmp_path / "a.json", None)
    results = results * (300 // len(results) + 1)
    statistics = DetectionStatistics(made_predictions(index, results))
    found = dict(zip(statistics.names, statistics(np.ones(3, dtype=np.int64)), strict=True))
    assert found["mask_ap"] == pytest.approx(dict(coco_metrics(index, results))["mask_ap"], abs=1e-9)
