"""COCO files as people have them: nothing wrong reaches training or pycocotools, and what does not count is said."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stvit_cli.data.coco import CocoImages, ground_truth
from stvit_cli.data.coco_index import CocoIndex, read_coco
from stvit_cli.errors import UserError
from stvit_cli.recipe import DataSection, DetectionSection, ShapesSection
from stvit_cli.tasks.detection.data import build_detection, build_detection_eval_set
from stvit_cli.tasks.detection.metrics import METRICS, as_result, coco_metrics
from stvit_cli.tasks.detection.task import DetectionEvaluator

Content = dict[str, Any]
SQUARE = [[10, 5, 20, 5, 20, 15, 10, 15]]
BOX = [10, 5, 10, 10]


def _annotation(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": 70,
        "category_id": 3,
        "bbox": BOX,
        "segmentation": SQUARE,
        "iscrowd": 0,
        "area": 100,
    } | fields


def _content(*annotations: dict[str, Any]) -> Content:
    """Two categories, two images of 40 x 30 pixels."""
    return {
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "images": [{"id": number, "file_name": f"{number}.png", "height": 30, "width": 40} for number in (70, 80)],
        "annotations": list(annotations) or [_annotation()],
    }


def _written(folder: Path, content: Content) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


def _read(folder: Path, content: Content, **options: Any) -> CocoIndex:
    return read_coco(_written(folder, content), None, **options)


def _refused(folder: Path, content: Content, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        _read(folder, content, **options)
    assert 1 <= len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


@pytest.mark.parametrize("fields", [{"iscrowd": None}, {"area": None}, {"iscrowd": 0.0}, {"iscrowd": False}, {"id": None}])
def test_null_is_as_missing_in_training_and_evaluation(tmp_path: Path, fields: dict[str, Any]) -> None:
    index = _read(tmp_path, _content(_annotation(**fields)))
    assert len(index.objects(0)) == 1
    (annotation,) = ground_truth(index).anns.values()
    assert (annotation["iscrowd"], annotation["area"]) == (0, 100)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"iscrowd": "0"}, "annotation 1: iscrowd is '0' (text), expected the number 0 or 1"),
        ({"iscrowd": [1]}, "iscrowd is [1] (a list)"),
        ({"iscrowd": 2}, "iscrowd is 2 (a whole number)"),
        ({"area": "100"}, "annotation 1: area is '100' (text)"),
        ({"area": True}, "area is True (true or false)"),
        ({"area": -4}, "area is -4 (a whole number)"),
        ({"area": float("nan")}, "area is nan (a number)"),
        ({"bbox": None}, "bbox is None (null or missing)"),
        ({"bbox": "10 5 10 10"}, "bbox is '10 5 10 10' (text)"),
        ({"bbox": [10, 5, "10", 10]}, "bbox[2] is '10' (text), expected a number of pixels"),
        ({"bbox": [10, None, 10, 10]}, "bbox[1] is None (null or missing)"),
        ({"bbox": [True, 5, 10, 10]}, "bbox[0] is True (true or false)"),
        ({"segmentation": [0]}, "segmentation is [0] (a list)"),
        ({"segmentation": [[], [1, 2]]}, "segmentation is [[], [1, 2]] (a list)"),
        ({"segmentation": [["1", 2, 3, 4, 5, 6]]}, "expected polygons"),
        ({"segmentation": {"size": [30, 40], "counts": "\u00e9" * 9}}, "the runs of its mask come to"),
        ({"segmentation": {"size": [30, 40], "counts": "o" * 100_000}}, "the runs of its mask come to"),
        ({"segmentation": {"size": None, "counts": [1200]}}, "its mask has size None (null or missing)"),
        ({"image_id": None}, "annotation 1 is of image None (null or missing), which is not in the file"),
        ({"image_id": "x"}, "is of image 'x' (text), which is not in the file (there ids are such as 70 (a whole number))"),
        ({"image_id": True}, "is of image True (true or false)"),
        ({"category_id": "dog"}, "is of category 'dog' (text), which is not in the file"),
        ({"category_id": 3.5}, "is of category 3.5 (a number)"),
        ({"id": "a\x1b[2J"}, r"annotation 'a\x1b[2J' (text) at index 0: iscrowd is 7"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_annotation(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    content = _content(_annotation(**{"iscrowd": 7, **fields} if "id" in fields else fields))
    message = _refused(tmp_path, content)
    assert said in message
    assert str(tmp_path / "a.json") in message
    assert "\x1b" not in message


def test_whole_numbers_and_text_ids_are_taken_where_it_is_plain_what_they_mean(tmp_path: Path) -> None:
    content = _content(_annotation(image_id="70", category_id=3.0), _annotation(2, image_id=80.0, category_id="9"))
    content["images"][1] |= {"id": "80", "height": 30.0, "width": 40.0}
    content["categories"][1]["id"] = "9"
    content["annotations"][1]["segmentation"] = {"size": [30.0, 40.0], "counts": [0.0, 1200.0]}
    index = _read(tmp_path, content)
    assert [[entry["label"] for entry in index.objects(i)] for i in range(2)] == [[1], [2]]
    assert index.sizes.tolist() == [[30, 40], [30, 40]]
    assert index.sizes.dtype == np.int64
    results = [as_result(70, 3, 0.9, (10, 5, 20, 15), {"size": [30, 40], "counts": [155, 1045]})]
    results.append(as_result("80", "9", 0.9, BOX, index.objects(1)[0]["segmentation"]))
    found = [entry | {"segmentation": _coded(entry["segmentation"])} for entry in results]
    assert dict(coco_metrics(index, found))["box_ap50"] > 0


def _coded(segmentation: dict[str, Any]) -> dict[str, Any]:
    return dict(rle.frPyObjects(segmentation, 30, 40))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"id": "70"}, "the image 80.png has the id '70' (text), as 70.png has; each needs one of its own"),
        ({"id": True}, "the id True (true or false)"),
        ({"id": None}, "the id None (null or missing)"),
        ({"width": "40"}, "its width is '40' (text)"),
        ({"height": None}, "its height is None (null or missing)"),
        ({"height": 30.5}, "its height is 30.5 (a number)"),
        ({"width": True}, "its width is True (true or false)"),
        ({"height": 10**9}, "expected at most 1000000 pixels a side"),
        ({"height": 10**5, "width": 10**5}, "million in all"),
        ({"file_name": 80}, "its file_name is 80 (a whole number)"),
    ],
)
def test_an_image_whose_entry_is_not_as_it_should_be(tmp_path: Path, image: dict[str, Any], said: str) -> None:
    content = _content()
    content["images"][1] |= image
    assert said in _refused(tmp_path, content)


@pytest.mark.parametrize(
    "name", ["../80.png", "a/../../80.png", "/etc/passwd", "80.png\0", "..", "..\\80.png", "C:\\81.png", "\\\\host\\81.png"]
)
def test_a_file_name_never_leads_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for place in (tmp_path, folder):
        for number in (70, 80):
            Image.new("RGB", (40, 30)).save(place / f"{number}.png")
    content = _content()
    content["images"][1]["file_name"] = name
    path = _written(tmp_path, content)
    with pytest.raises(UserError, match="expected a path below the folder of the images") as caught:
        read_coco(path, folder)
    assert "\0" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6
    content["images"][1]["file_name"] = "..80..png"
    (folder / "..80..png").write_bytes((folder / "80.png").read_bytes())
    assert len(read_coco(_written(tmp_path, content), folder)) == 2


HOSTILE = [
    [[10, 5, float("nan"), 5, 20, 15, 10, 15]],
    [[10, 5, 20, 5, 20, float("nan"), 10, 15]],
    [[float("nan"), 5, 20, 5, 20, 15, 10, 15]],
    [[10, 5, float("inf"), 5, 20, 15, 10, 15]],
    [[10, 5, 20, float("-inf"), 20, 15, 10, 15]],
    [[10, 5, 2e8, 5, 20, 15, 10, 15]],
    [[10, 5, 20, -2e8, 20, 15, 10, 15]],
    [[10, 5, 10**400, 5, 20.5, 15, 10, 15]],
    [[10, 5, float("nan"), 10**400, 20.5, 15, 10, 15]],
    [SQUARE[0], [10, 5, 300, 5, 20, 15]],
]


@pytest.mark.parametrize("polygons", HOSTILE)
@pytest.mark.parametrize("crowd", [0, 1])
def test_a_polygon_that_is_not_finite_or_far_away_is_refused_before_pycocotools_sees_it(
    tmp_path: Path, polygons: Any, crowd: int
) -> None:
    content = _content(_annotation(), _annotation(7, segmentation=polygons, iscrowd=crowd, area=None))
    message = _refused(tmp_path, content)
    assert "a.json: annotation 7: its polygon has the coordinate" in message
    assert "detection.invalid_annotations=skip" in message
    index = _read(tmp_path, content, invalid="skip")
    assert len(ground_truth(index).anns) == 1
    assert len(index.objects(0)) == 1


def test_a_polygon_whose_outline_would_take_gigabytes_is_refused(tmp_path: Path) -> None:
    zigzag = [x for i in range(40_000) for x in (39 * (i % 2) + 0.5, 29 * (i % 3) / 3)]
    assert len(_read(tmp_path, _content(_annotation(segmentation=[zigzag]))).objects(0)) == 1
    zigzag *= 2
    assert "its polygon of 80000 points is 3" in _refused(tmp_path, _content(_annotation(segmentation=[zigzag])))


def test_what_is_left_out_is_counted_by_reason_and_counts_in_the_evaluation_as_pycocotools_has_it(tmp_path: Path) -> None:
    content = _content(
        _annotation(1),
        _annotation(2, iscrowd=1),
        _annotation(3, bbox=[10, 5, 0, 9]),
        _annotation(4, bbox=[10, 5, 0.4, 9]),
        _annotation(5, bbox=[20, 15, -10, -10]),
        _annotation(6, bbox=[float("nan"), 5, 10, 10]),
        _annotation(7, bbox=[10, 5, float("inf"), 10]),
    )
    index = _read(tmp_path, content)
    (note,) = index.notes(of_training=True)
    assert note.startswith("a.json: 6 annotations are left out of the training: ")
    for part in ("2 with a box of less than a pixel", "2 with NaN or Infinity in the box", "1 of a crowd", "1 with a box of neg"):
        assert part in note
    (note,) = index.notes(of_training=False)
    assert note.startswith("a.json: 3 annotations are left out of the evaluation: ")
    assert "crowd" not in note
    assert [entry["id"] for entry in index.objects(0)] == [1]
    assert [entry["iscrowd"] for entry in ground_truth(index).anns.values()] == [0, 1, 0, 0]
    assert _read(tmp_path, _content()).notes(of_training=True) == []


def test_boxes_given_as_corners_are_asked_about(tmp_path: Path) -> None:
    content = _content(
        _annotation(1, bbox=[2, 3, 12, 14]), _annotation(2, bbox=[22, 5, 30, 15]), _annotation(3, bbox=[15, 20, 38, 28])
    )
    for of_training in (True, False):
        (note,) = _read(tmp_path, content).notes(of_training=of_training)
        assert "2 of 3 boxes reach beyond their image: are they corners?" in note
    content["annotations"][2]["bbox"] = [-5, 20, 20, 30]
    (note,) = _read(tmp_path, content).notes(of_training=True)
    assert "2 of 3 boxes reach beyond their image; they are clipped" in note
    rounded = _content(_annotation(1, bbox=[-0.3, 0, 40.9, 30.4]))
    assert _read(tmp_path, rounded).notes(of_training=True) == []


def test_an_annotation_without_a_usable_mask_is_skipped_and_counted_where_that_is_asked_for(tmp_path: Path) -> None:
    content = _content(
        _annotation(1),
        _annotation(2, segmentation="none"),
        _annotation(3, segmentation=[[1, 2, 3, 4]]),
        _annotation(4, image_id=5),
        _annotation(5, area="100"),
        _annotation(6, bbox=[90, 5, 10, 10]),
    )
    message = _refused(tmp_path, content)
    assert "annotation 2: segmentation is 'none'" in message
    assert "2 without a usable mask, 1 of an image that is not" in message
    assert "detection.invalid_annotations=skip" in message
    index = _read(tmp_path, content, invalid="skip")
    assert [entry["id"] for entry in index.objects(0)] == [1]
    assert len(ground_truth(index).anns) == 1
    for of_training in (True, False):
        (note,) = index.notes(of_training=of_training)
        assert "5 annotations are left out of" in note
        assert "2 without a usable mask" in note


def _random_content(generator: np.random.Generator) -> Content:
    """Objects of all kinds that a clean file has: crowds, tiny boxes, empty images, ids in no order, several polygons."""
    content = _content(_annotation())
    ids = generator.permutation(np.arange(1, 13)).tolist()
    content["images"] = [{"id": number, "file_name": f"{number}.png", "height": 30, "width": 40} for number in ids]
    content["annotations"] = []
    for number in range(1, 61):
        left, top = generator.uniform(-2, 30), generator.uniform(0, 20)
        across, down = generator.choice([0.0, 0.5, 6.25, 12.125, 20]), generator.uniform(0.2, 12)
        polygons = [
            [left, top, left + across, top, left + across, top + down, left, top + down + 0.3],
            generator.uniform(0, 30, 10).round(2).tolist(),
        ][: generator.integers(1, 3)]
        counts = generator.multinomial(1200, [0.5, 0.1, 0.3, 0.1]).tolist()
        content["annotations"].append(
            _annotation(
                number,
                image_id=int(generator.choice(ids[:10])),
                category_id=int(generator.choice([3, 9])),
                bbox=[left, top, across, down],
                segmentation={"size": [30, 40], "counts": counts} if number % 5 == 0 else polygons,
                iscrowd=int(number % 5 == 0),
                area=float(generator.uniform(0, 12000)),
            )
        )
    return content


def test_of_a_clean_file_the_figures_are_those_of_pycocotools_on_the_raw_file(tmp_path: Path) -> None:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        content = _random_content(generator)
        path = _written(tmp_path, content)
        results = []
        for entry in content["annotations"]:
            left, top, across, down = entry["bbox"]
            shift, score = generator.integers(0, 4), float(generator.choice([0.3, 0.5, 0.9]))  # many scores are the same
            box = (left + shift, top, left + shift + max(across, 1), top + down)
            mask = np.zeros((30, 40), dtype=np.uint8, order="F")
            mask[int(top) : int(top + down + 1), max(int(left + shift), 0) : int(left + shift + across + 1)] = 1
            category = int(generator.choice([3, 9]))
            results.append(as_result(entry["image_id"], category, score, box, rle.encode(mask)))
        figures = dict(coco_metrics(read_coco(path, None), results))
        for prefix, kind, other in (("box", "bbox", "segmentation"), ("mask", "segm", "bbox")):
            with contextlib.redirect_stdout(io.StringIO()):
                truth = COCO(str(path))
                mine = [{key: value for key, value in entry.items() if key != other} for entry in results]
                alone = COCOeval(truth, truth.loadRes(mine), kind)
                alone.evaluate()
                alone.accumulate()
                alone.summarize()
            expected = [100 * value if value >= 0 else -1 for value in alone.stats.tolist()]
            assert [figures[f"{prefix}_{name}"] for name in METRICS] == expected
            assert 0 < figures[f"{prefix}_ap50"] < 100


def test_ids_of_mixed_types_are_evaluated(tmp_path: Path) -> None:
    content = _content(_annotation(1), _annotation(2, image_id="b"))
    content["images"][1]["id"] = "b"
    index = _read(tmp_path, content)
    mask = _coded({"size": [30, 40], "counts": [155, 100, 945]})
    results = [as_result(number, 3, 0.9, (10, 5, 20, 15), mask) for number in (70, "b")]
    assert dict(coco_metrics(index, results))["box_ap"] == pytest.approx(100)


def _oriented(folder: Path, orientation: int, size: tuple[int, int], suffix: str = ".jpg") -> CocoImages:
    """One image of 40 x 30 pixels as stored, white on its upper left as stored, annotated with a size (height, width)."""
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(folder / f"a{suffix}", exif=exif)
    segmentation = {"size": list(size), "counts": [0, 1200]}
    content = _content(_annotation(segmentation=segmentation, bbox=[0, 0, 10, 10]))
    content["images"] = [{"id": 70, "file_name": f"a{suffix}", "height": size[0], "width": size[1]}]
    return CocoImages(read_coco(_written(folder, content), folder))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_on_its_side_with_its_stored_size_is_refused_naming_the_orientation(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    images = _oriented(tmp_path, orientation, (30, 40), suffix)
    with pytest.raises(UserError) as caught:
        images.open(0)
    message = str(caught.value)
    assert f"has the EXIF orientation {orientation} (" in message
    assert "upright it is 30 x 40 pixels, as stored 40 x 30" in message
    assert "detection.exif_orientation=ignore" in message
    assert len(message.splitlines()) <= 6
    images.exif_orientation = "ignore"
    assert images.open(0).size == (40, 30)
    assert np.asarray(images.open(0))[2, 2].min() > 200
    upright = _oriented(tmp_path, orientation, (40, 30), suffix)
    assert upright.open(0).size == (30, 40)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_image_turned_by_180_degrees_or_mirrored_does_not_pass_without_a_word(tmp_path: Path, orientation: int) -> None:
    images = _oriented(tmp_path, orientation, (30, 40))
    with pytest.raises(UserError, match=rf"(?s)EXIF orientation {orientation} \(.*which does not tell which of the two"):
        images.open(0)
    images.exif_orientation = "ignore"
    assert np.asarray(images.open(0))[2, 2].min() > 200
    images.exif_orientation = "apply"
    assert np.asarray(images.open(0))[2, 2].max() < 50
    assert _oriented(tmp_path, 1, (30, 40)).open(0).size == (40, 30)


def _sections(folder: Path, **detection: Any) -> tuple[DataSection, DetectionSection, ShapesSection]:
    section = DetectionSection(train_json="a.json", val_json="a.json", train_images=".", val_images=".", **detection)
    return DataSection(kind="coco", dir=str(folder)), section, ShapesSection()


@pytest.mark.parametrize("how", ["missing", "null", "empty"])
def test_a_file_without_annotations_is_answered_with_results_and_no_figures(tmp_path: Path, how: str) -> None:
    content = _content()
    content["annotations"] = {"missing": (), "null": None, "empty": []}[how]
    if how == "missing":
        del content["annotations"]
    _written(tmp_path, content)
    for number in (70, 80):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match=r"no annotations to evaluate against.\ndetection.results_json=FILE"):
        build_detection_eval_set(*_sections(tmp_path), ("cat", "dog"))
    results = tmp_path / "found.json"
    val_set = build_detection_eval_set(*_sections(tmp_path, results_json=str(results)), ("cat", "dog"))
    entry = as_result(80, 9, 0.5, (1, 2, 3, 4), _coded({"size": [30, 40], "counts": [0, 1200]}))
    entry["segmentation"]["counts"] = entry["segmentation"]["counts"].decode()
    figures = dict(DetectionEvaluator(val_set, str(results)).compute([(2, [entry])]))
    assert figures == {"num_images": 2, "num_detections": 1}
    assert json.loads((tmp_path / "found.bbox.json").read_text())[0]["image_id"] == 80
    with pytest.raises(UserError, match=r"no list of objects 'annotations'|it has no annotations"):
        build_detection(*_sections(tmp_path, results_json=str(results)), 0.5, 0)


def test_keys_reach_both_sets(tmp_path: Path) -> None:
    _written(tmp_path, _content(_annotation(), _annotation(2, segmentation=[[1, 2]])))
    for number in (70, 80):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    data = build_detection(*_sections(tmp_path, invalid_annotations="skip", exif_orientation="ignore"), 0.5, 0)
    assert len(data.train_set) == 1
    assert data.train_set.images.exif_orientation == data.val_set.images.exif_orientation == "ignore"
    val_set = build_detection_eval_set(*_sections(tmp_path, invalid_annotations="skip", exif_orientation="apply"), ("cat", "dog"))
    assert val_set.images.exif_orientation == "apply"


def test_an_evaluation_says_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from stvit_cli.models.weights.file import WeightsInfo
    from stvit_cli.recipe import io as recipe_io
    from stvit_cli.tasks.detection.task import build_detection_evaluation

    _written(tmp_path, _content(_annotation(), _annotation(2, bbox=[20, 15, -10, -10])))
    for number in (70, 80):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{number}.png")
    keys = [f"data.dir={tmp_path}", "detection.val_json=a.json", "detection.val_images=."]
    info = WeightsInfo("stvit-nano", task="detection", num_classes=2, class_names=("cat", "dog"))
    build_detection_evaluation(recipe_io.load("coco-mask-rcnn-1x", keys), info)
    assert "a.json: 1 annotation is left out of the evaluation: 1 with a box of negative size." in caplog.text


@pytest.mark.parametrize("absent", [None, [], [[]], {}, "missing"])
def test_an_annotation_without_a_polygon_is_an_object_with_a_box_alone(tmp_path: Path, absent: Any) -> None:
    unmasked = _annotation(2, segmentation=absent, area=None, bbox=[2, 3, 8, 5])
    if absent == "missing":
        del unmasked["segmentation"]
    index = _read(tmp_path, _content(_annotation(1), unmasked))
    assert (index.num_objects.tolist(), index.num_masks.tolist(), index.has_masks) == ([2, 0], [1, 0], True)
    targets = CocoImages(index).targets(0)
    assert targets["has_mask"].tolist() == [True, False]
    assert targets["masks"].sum((1, 2)).tolist() == [100, 0]
    assert targets["boxes"].tolist() == [[10, 5, 20, 15], [2, 3, 10, 8]]
    assert [annotation["area"] for annotation in ground_truth(index).anns.values()] == [100, 40]
    assert index.notes(of_training=True) == ["a.json: objects without a mask: 1 of 2, trained by class and box alone."]
    assert "left out of the mask metrics" in index.notes(of_training=False)[0]
    assert index.notes(of_training=True, masks=False) == []


def test_of_a_mixed_file_the_mask_metrics_are_those_of_pycocotools_with_the_boxes_of_objects_without_masks_ignored(
    tmp_path: Path,
) -> None:
    """The box metrics are those of the same file with any mask: they do not look at it."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        content = _random_content(generator)
        results = []
        for entry in content["annotations"]:
            left, top, across, down = entry["bbox"]
            mask = np.zeros((30, 40), dtype=np.uint8, order="F")
            mask[int(top) : int(top + down + 1), max(int(left), 0) : int(left + across + 1)] = 1
            score, box = float(generator.choice([0.3, 0.5, 0.9])), (left + 1, top, left + 1 + max(across, 1), top + down)
            results.append(as_result(entry["image_id"], entry["category_id"], score, box, rle.encode(mask)))
        complete = dict(coco_metrics(_read(tmp_path, content), results))
        ignored = json.loads(json.dumps(content))
        for mixed, other in zip(content["annotations"], ignored["annotations"], strict=True):
            if mixed["id"] % 3 == 0:
                mixed["segmentation"] = []
                left, top, across, down = other["bbox"]
                left, top, right, bottom = max(left, 0), max(top, 0), min(left + across, 40), min(top + down, 30)
                other |= {"iscrowd": 1, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}
        metrics = dict(coco_metrics(_read(tmp_path, content), results))
        (tmp_path / "ignored.json").write_text(json.dumps(ignored))
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(tmp_path / "ignored.json"))
            mine = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
            alone = COCOeval(truth, truth.loadRes(mine), "segm")
            alone.evaluate()
            alone.accumulate()
            alone.summarize()
        expected = [100 * value if value >= 0 else -1 for value in alone.stats.tolist()]
        assert [metrics[f"mask_{name}"] for name in METRICS] == expected
        assert metrics["mask_ap50"] != complete["mask_ap50"]
        assert all(metrics[f"box_{name}"] == complete[f"box_{name}"] for name in METRICS)


def test_what_is_found_in_the_box_of_an_object_without_a_mask_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    index = _read(tmp_path, _content(_annotation(1), _annotation(2, image_id=80, segmentation=None)))
    mask = _coded({"size": [30, 40], "counts": [155, 100, 945]})
    square = rle.frPyObjects([[10, 5, 20, 5, 20, 15, 10, 15]], 30, 40)[0]
    results = [as_result(70, 3, 0.5, (10, 5, 20, 15), square), as_result(80, 3, 0.9, (10, 5, 20, 15), square)]
    metrics = dict(coco_metrics(index, results))
    assert metrics["mask_ap"] == pytest.approx(100)
    outside = as_result(
        80, 3, 0.9, (10, 5, 20, 15), mask | {"counts": rle.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))["counts"]}
    )
    assert dict(coco_metrics(index, [results[0], outside]))["mask_ap"] < 100


def test_without_a_mask_in_the_file_or_in_the_model_there_are_box_metrics_alone(tmp_path: Path) -> None:
    bare = _read(tmp_path, _content(_annotation(1, segmentation=[])))
    masked = _read(tmp_path, _content(_annotation(1)))
    results = [as_result(70, 3, 0.5, (10, 5, 20, 15))]
    for metrics in (dict(coco_metrics(bare, results)), dict(coco_metrics(masked, results, masks=False))):
        assert list(metrics) == [f"box_{name}" for name in METRICS]
        assert metrics["box_ap"] == pytest.approx(100)
