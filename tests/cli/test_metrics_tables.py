"""What ``stvit eval`` prints: small tables, in the words of the training's rows; JSON keeps the names of the code."""

from __future__ import annotations

import pytest

from stvit_cli.cli.metrics_tables import print_metrics
from stvit_cli.tasks.detection.metrics import METRICS

Captured = pytest.CaptureFixture[str]


def printed(capsys: Captured, results: dict[str, object]) -> list[str]:
    print_metrics(results)
    return capsys.readouterr().out.splitlines()


def test_a_detector_has_a_row_for_boxes_and_one_for_masks(capsys: Captured) -> None:
    values = {f"{kind}_{name}": float(10 * i + k) for k, kind in enumerate(("box", "mask")) for i, name in enumerate(METRICS)}
    lines = printed(capsys, {"task": "detection", "num_images": 5000, **values, "box_ap_large": -1.0})
    assert [line.split() for line in lines] == [
        ["detection,", "5000", "images"],
        ["in", "%", "AP", "AP50", "AP75", "AP", "small", "AP", "medium", "AP", "large"],
        ["box", "0.00", "10.00", "20.00", "30.00", "40.00", "-"],
        ["mask", "1.00", "11.00", "21.00", "31.00", "41.00", "51.00"],
        ["in", "%", "AR", "1", "AR", "10", "AR", "100", "AR", "small", "AR", "medium", "AR", "large"],
        ["box", "60.00", "70.00", "80.00", "90.00", "100.00", "110.00"],
        ["mask", "61.00", "71.00", "81.00", "91.00", "101.00", "111.00"],
        ["-:", "no", "objects", "of", "that", "size"],
    ]
    assert max(map(len, lines)) <= 80
    boxes_alone = printed(capsys, {"task": "detection", "num_images": 1, **{f"box_{name}": 1.0 for name in METRICS}})
    assert [line.split()[0] for line in boxes_alone] == ["detection,", "in", "box", "in", "box"]


def test_a_detector_without_annotations_has_the_number_of_its_detections(capsys: Captured) -> None:
    lines = printed(capsys, {"task": "detection", "num_images": 1, "num_detections": 7})
    assert lines == ["detection, 1 image", "detections  7"]


def test_a_classifier_has_a_line_for_each_metric_with_its_unit(capsys: Captured) -> None:
    lines = printed(capsys, {"task": "classification", "num_images": 360, "top1": 99.444, "top5": 100.0, "loss": 0.0312})
    assert lines == ["classification, 360 images", "top-1     99.4 %", "top-5     100.0 %", "val loss  0.031"]


@pytest.mark.parametrize("count", [3, 20, 150])
def test_a_segmenter_has_its_classes_the_worst_first_where_there_are_many(capsys: Captured, count: int) -> None:
    iou = {f"iou/class {i}": 90.0 - i / 2 for i in range(count)}
    lines = printed(
        capsys, {"task": "segmentation", "num_images": 2000, "miou": 45.0, "pixel_accuracy": 80.0, "class_accuracy": 55.0, **iou}
    )
    assert lines[:4] == [
        "segmentation, 2000 images",
        "mIoU            45.00 %",
        "pixel accuracy  80.00 %",
        "class accuracy  55.00 %",
    ]
    rows = [line.rsplit(None, 1) for line in lines if line.startswith("class ") and line[6].isdigit()]
    values = [float(value) for _, value in rows]
    if count <= 20:
        assert values == list(iou.values())
        assert "--json" not in "".join(lines)
    else:
        assert values == sorted(iou.values())[:20]
        assert "The 20 of 150 classes with the lowest IoU (--json FILE has all)" in lines


def test_a_hostile_class_name_is_one_cell(capsys: Captured) -> None:
    lines = printed(capsys, {"task": "segmentation", "num_images": 2, "miou": 45.0, "iou/a\x1b[2J\nb": 1.0})
    assert lines[-1].split() == ["a\\x1b[2J\\nb", "1"]
