"""The row of an evaluation: of one width, within 80 columns for every task, the best marked without colour too."""

from __future__ import annotations

import pytest

from stvit_cli.engine.eval_rows import EvalRows
from stvit_cli.engine.schedule import Timeline
from stvit_cli.tasks.detection.metrics import METRICS

TIMELINE = Timeline(num_steps=300 * 50, steps_per_epoch=50, eval_every=50)
BOXES = {f"box_{name}": 12.5 for name in METRICS}
MASKS = {f"mask_{name}": 10.0 for name in METRICS}
TASKS = {
    "classification": ({"top1": 80.0, "top5": 95.0, "loss": 0.7}, "top1", ["val loss", "top-1 %", "top-5 %"]),
    "multi-label": (
        {"map": 80.0, "f1_micro": 60.0, "f1_macro": 50.0, "loss": 0.7},
        "map",
        ["val loss", "mAP %", "F1 micro %", "F1 macro %"],
    ),
    "boxes": (BOXES, "box_ap", ["box AP %", "box AP50 %"]),
    "masks": (BOXES | MASKS, "box_ap", ["box AP %", "box AP50 %", "mask AP %", "mask AP50 %"]),
    "segmentation": (
        {"miou": 40.0, "pixel_accuracy": 80.0, "class_accuracy": 50.0, "iou/sky": 90.0},
        "miou",
        ["mIoU %", "pixel accuracy %", "class accuracy %"],
    ),
    "another task": ({"chance": 80.0}, "chance", ["chance"]),
}


def averaged(metrics: dict[str, float]) -> dict[str, float]:
    return metrics | {f"ema_{name}": value for name, value in metrics.items()}


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("with_ema", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_rows_of_every_task_fit_and_stay_aligned(task: str, with_ema: bool, width: int) -> None:
    metrics, main, heads = TASKS[task]
    metrics = averaged(metrics) if with_ema else metrics
    rows = EvalRows(main, TIMELINE, width)
    lines = rows.lines(1, metrics | {"train_loss": 2.0, "num_images": 5000}, True, "2 d 14 h")
    lines += rows.lines(137, dict.fromkeys(metrics, 100.0) | {"train_loss": 123456.0, "num_images": 5000}, False, "59 min 59 s")
    lines += rows.lines(300, dict.fromkeys(metrics, -1.0) | {"train_loss": float("nan"), "num_images": 5000}, False, "0 s")
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= min(width, 80)
    assert [line[0] for line in lines] == [" ", "*", " ", " "]
    assert rows.columns is not None
    assert len(rows.columns) <= 6
    assert lines[0].startswith("  epoch  ")
    assert lines[0].endswith("  time left") or width == 40
    assert main in rows.columns
    assert (f"ema_{main}" in rows.columns) == with_ema
    if width >= 80 and not with_ema:
        assert all(f"  {head}" in lines[0] for head in heads)


def test_part_of_an_epoch_keeps_the_width() -> None:
    rows = EvalRows("miou", Timeline(num_steps=160_000, steps_per_epoch=1263, eval_every=16_000))
    lines = rows.lines(12.668, {"miou": 4.0}, True, "-") + rows.lines(126.68, {"miou": 44.0}, True, "-")
    assert len({len(line) for line in lines}) == 1
    assert "12.67" in lines[1]


def test_a_metric_that_is_missing_later_leaves_its_column() -> None:
    rows = EvalRows("top1", TIMELINE)
    header, first = rows.lines(1, {"top1": 1.0, "train_loss": 1.0}, False, "-")
    (second,) = rows.lines(2, {"top1": 1.0}, False, "-")
    assert len(header) == len(first) == len(second)
