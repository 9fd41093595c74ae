"""COCO's figures: truth gives all of them, and pycocotools alone says the same of what is written."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stvit_cli.data.coco import CocoImages, DetectionEvalSet, decode_mask, encode_mask, ground_truth
from stvit_cli.data.coco_index import CocoIndex, read_coco
from stvit_cli.data.shapes import write_coco_tree
from stvit_cli.errors import UserError
from stvit_cli.tasks.detection.metrics import METRICS, Results, as_result, coco_metrics, require_writable_results, write_results
from stvit_cli.tasks.detection.task import DetectionEvaluator


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes; the first is stripped of its objects, and the largest object of the second is a crowd."""
    root = tmp_path_factory.mktemp("scenes") / "tree"
    write_coco_tree(root, (1, 12), 160, seed=5)
    path = _json(root)
    content = json.loads(path.read_text())
    content["annotations"] = [annotation for annotation in content["annotations"] if annotation["image_id"] != 1]
    max((a for a in content["annotations"] if a["image_id"] == 2), key=lambda a: a["area"])["iscrowd"] = 1
    path.write_text(json.dumps(content))
    return root


def _json(root: Path) -> Path:
    return root / "annotations" / "instances_val2017.json"


def _index(root: Path) -> CocoIndex:
    return read_coco(_json(root), root / "val2017")


def _truth_as_results(root: Path) -> Results:
    results = []
    for a in json.loads(_json(root).read_text())["annotations"]:
        left, top, width, height = a["bbox"]
        if not a["iscrowd"]:
            box = (left, top, left + width, top + height)
            results.append(as_result(a["image_id"], a["category_id"], 0.9, box, a["segmentation"]))
    return results


def _imperfect_results(root: Path, seed: int = 0) -> Results:
    """Truth shifted a little, with other scores, some wrong classes and some left out; and boxes where nothing is."""
    generator = np.random.RandomState(seed)
    results = []
    for entry in _truth_as_results(root):
        if generator.rand() < 0.2:
            continue
        mask = decode_mask(entry["segmentation"], *entry["segmentation"]["size"])
        shift = int(generator.randint(0, 5))
        left, top, width, height = entry["bbox"]
        box = (left + shift, top, left + shift + width, top + height)
        category = entry["category_id"] if generator.rand() < 0.8 else 8
        moved = encode_mask(np.roll(mask, shift, axis=1).astype(bool))
        results.append(as_result(entry["image_id"], category, float(generator.rand()), box, moved))
        results.append(as_result(1, 4, float(generator.rand()), box, moved | {"size": entry["segmentation"]["size"]}))
    size = read_coco(_json(root), root / "val2017").sizes[0].tolist()
    empty = encode_mask(np.ones(size, dtype=bool))
    return [entry if entry["image_id"] != 1 else entry | {"segmentation": empty} for entry in results]


def test_truth_fed_back_gives_all(tree: Path) -> None:
    figures = dict(coco_metrics(_index(tree), _truth_as_results(tree)))
    assert len(figures) == 24
    for kind in ("box", "mask"):
        for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium"):
            assert figures[f"{kind}_{name}"] == pytest.approx(100)
        assert figures[f"{kind}_ap_large"] == -1  # there is no figure of 96 x 96 pixels


def test_pycocotools_alone_says_the_same_of_the_written_files(tree: Path, tmp_path: Path) -> None:
    results = _imperfect_results(tree)
    figures = dict(coco_metrics(_index(tree), results))
    assert 10 < figures["mask_ap"] < 90
    written = write_results(tmp_path / "new" / "x.json", results)
    assert [path.name for path in written] == ["x.bbox.json", "x.segm.json"]
    for path, prefix, kind in zip(written, ("box", "mask"), ("bbox", "segm"), strict=True):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(_json(tree)))
            alone = COCOeval(truth, truth.loadRes(str(path)), kind)
            alone.evaluate()
            alone.accumulate()
            alone.summarize()
        expected = [100 * value if value >= 0 else -1 for value in alone.stats.tolist()]
        assert [figures[f"{prefix}_{name}"] for name in METRICS] == expected
        assert {entry["category_id"] for entry in json.loads(path.read_text())} <= {1, 2, 4, 8}


def test_any_number_of_processes_gives_the_same_figures(tree: Path) -> None:
    images = CocoImages(read_coco(_json(tree), tree / "val2017"))
    results = _imperfect_results(tree)
    evaluator = DetectionEvaluator(DetectionEvalSet(images))
    ids = [images.image_id(i) for i in range(len(images))]

    def state(rank: int, world: int) -> tuple[int, list[dict[str, Any]]]:
        mine = ids[rank::world]
        return len(mine), [entry for number in mine for entry in results if entry["image_id"] == number]

    one = dict(evaluator.compute([state(0, 1)]))
    assert one["num_images"] == 12
    for world in (2, 3, 13):
        assert dict(evaluator.compute([state(rank, world) for rank in range(world)])) == one


def test_predictions_hold_what_was_found_and_what_is_there(tree: Path) -> None:
    """Their metrics are the evaluation's; see the tests of `DetectionPredictions.statistics`."""
    images = CocoImages(read_coco(_json(tree), tree / "val2017"))
    results, index = _imperfect_results(tree), images.index
    evaluator = DetectionEvaluator(DetectionEvalSet(images))
    found = evaluator.predictions([(5, results[1::2]), (7, results[::2])])  # of two processes
    assert list(found.images) == list(index.file_names)
    assert found.sizes.tolist() == index.sizes[:, ::-1].tolist()
    objects = [(number, entry) for number in range(len(index)) for entry in index.annotations(number)]
    assert found.objects.image.tolist() == [number for number, _ in objects]
    assert found.objects.box.tolist() == [entry["box"] for _, entry in objects]
    assert found.objects.label.tolist() == [entry["label"] - 1 for _, entry in objects]
    truth = ground_truth(index)
    assert found.objects.area.tolist() == [truth.anns[number + 1]["area"] for number in range(len(objects))]
    assert len(found.detections) == len(results)
    assert (np.diff(found.detections.image) >= 0).all()
    for position in (0, len(index) - 1):
        own = [entry for entry in results[1::2] + results[::2] if entry["image_id"] == index.image_ids[position]]
        chosen = found.detections.image == position
        assert found.detections.box[chosen].tolist() == [entry["bbox"] for entry in own]
        assert found.detections.score[chosen].tolist() == pytest.approx([entry["score"] for entry in own])
    number = next(i for i, code in enumerate(found.objects.masks) if code is not None)
    expected = decode_mask(objects[number][1]["segmentation"], *index.sizes[objects[number][0]].tolist())
    assert (decode_mask(found.objects.masks[number], *expected.shape) == expected).all()


def test_nothing_found_is_nothing_right(tree: Path) -> None:
    figures = dict(coco_metrics(_index(tree), []))
    assert figures["box_ap"] == figures["mask_ap50"] == 0


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"detection.results_json"):
        write_results(tmp_path / "file" / "x.json", [])


def test_results_that_could_not_be_written_are_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.segm.json").mkdir()
    for name in ("file/x.json", "taken.json", f"{'x' * 300}.json"):
        with pytest.raises(UserError, match=r"detection.results_json: .* cannot be written"):
            require_writable_results(tmp_path / name)
    require_writable_results(tmp_path / "new" / "x.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.segm.json"]
