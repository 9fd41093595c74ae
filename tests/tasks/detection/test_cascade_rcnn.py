"""The cascade against mmdetection's formulas by hand: what each stage learns, what it hands on, what the three say together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stvit_cli.tasks.detection.cascade_rcnn import (
    CODER_WEIGHTS,
    GIOU_WEIGHT,
    CascadeHeads,
    box_loss,
    drop_ground_truth,
    refine,
)
from stvit_cli.tasks.detection.detector import create_detector
from stvit_cli.tasks.detection.roi import BoxMaskHeads

SMALL: dict[str, Any] = {"fc_dim": 8, "num_samples": 16, "score_threshold": 0.0, "nms_threshold": 0.5, "max_detections": 100}
SHAPES = [(64, 64)]


@pytest.mark.parametrize(("name", "millions"), [("stvit-s", 81.96), ("stvit-b", 108.18)])
def test_as_many_parameters_as_the_authors_backbone_under_the_cascade(name: str, millions: float) -> None:
    with torch.device("meta"):
        detector = create_detector(name, 80, head="cascade-mask-rcnn")
    assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(millions, rel=0.001)


def test_each_stage_asks_for_more_and_corrects_less() -> None:
    stages = [stage for stage in CascadeHeads(8, 3, **SMALL).stages if isinstance(stage, BoxMaskHeads)]
    assert [stage.proposal_matcher.high_threshold for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.proposal_matcher.low_threshold for stage in stages] == [0.5, 0.6, 0.7]
    deviations = [tuple(round(1 / weight, 3) for weight in weights) for weights in CODER_WEIGHTS]
    assert deviations == [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    assert [stage.box_coder.weights for stage in stages] == list(CODER_WEIGHTS)


def _giou(a: Tensor, b: Tensor) -> float:
    """Of two boxes: intersection by union, less the share of the hull that is in neither."""
    area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)  # noqa: E731
    inner = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    hull = [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
    union = area(a) + area(b) - area(inner)
    return float(area(inner) / union - (area(hull) - union) / area(hull))


def test_box_loss_is_ten_giou_of_the_decoded_boxes_over_all_regions() -> None:
    boxes = [torch.tensor([[10.0, 10, 30, 30], [0, 0, 20, 10]]), torch.tensor([[5.0, 5, 25, 45]])]
    targets = [{"boxes": torch.tensor([[12.0, 8, 36, 28]])}, {"boxes": torch.zeros(0, 4)}]
    regression = torch.zeros(3, 3, 4)
    regression[0, 2] = torch.tensor([1.0, 0, 0, 0])  # by 1 / 10 of the width: 2 pixels to the right
    regression[0, 1] = 50  # another class's
    coder = CascadeHeads(8, 2, **SMALL).stages[0].box_coder
    matched = [torch.tensor([0, 0]), torch.tensor([0])]
    loss = box_loss(coder, regression.flatten(1), boxes, torch.tensor([2, 0, 0]), matched, targets)
    expected = GIOU_WEIGHT * (1 - _giou(torch.tensor([12.0, 10, 32, 30]), targets[0]["boxes"][0])) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_boxes_move_as_their_class_says_and_stay_within_the_image() -> None:
    coder = CascadeHeads(8, 2, **SMALL).stages[0].box_coder
    regression = torch.zeros(2, 3, 4)
    regression[0, 1], regression[1, 2] = torch.tensor([5.0, 0, 0, 0]), torch.tensor([0.0, 9, 0, 0])
    boxes = [torch.tensor([[10.0, 10, 30, 30], [40, 40, 60, 60]])]
    (moved,) = refine(coder, regression.flatten(1), boxes, torch.tensor([1, 2]), SHAPES)
    assert torch.allclose(moved, torch.tensor([[20.0, 10, 40, 30], [40, 58, 60, 64]]), atol=1e-4)
    (stayed,) = refine(coder, regression.flatten(1), boxes, torch.tensor([2, 1]), SHAPES)
    assert torch.allclose(stayed, boxes[0], atol=1e-4)


def test_true_boxes_are_not_handed_on() -> None:
    true = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    before = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 5], [5, 6, 7, 8]])
    refined = torch.arange(12.0).reshape(3, 4)
    assert drop_ground_truth(refined, before, {"boxes": true}).tolist() == [[4, 5, 6, 7]]
    assert len(drop_ground_truth(refined, before, {"boxes": torch.zeros(0, 4)})) == 3


def _features() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {str(i): torch.randn(1, 8, 16 >> i, 16 >> i) for i in range(4)}


def test_losses_of_later_stages_weigh_less_and_no_gradient_goes_through_the_boxes() -> None:
    heads = CascadeHeads(8, 2, **SMALL).train()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = 1
    targets = [{"boxes": torch.tensor([[10.0, 10, 40, 40]]), "labels": torch.tensor([2]), "masks": masks}]
    proposals = [torch.tensor([[9.0, 9, 41, 40], [0, 0, 20, 20], [30, 30, 64, 64]], requires_grad=True)]
    torch.manual_seed(1)
    _, losses = heads(_features(), proposals, SHAPES, targets)
    assert sorted(losses) == sorted(f"{name}_{number}" for name in ("class", "box", "mask") for number in (1, 2, 3))
    # At the start the classes are equally likely, so that every stage's cross-entropy is log 3, by its weight.
    for number, weight in ((1, 1.0), (2, 0.5), (3, 0.25)):
        assert losses[f"class_{number}"].item() == pytest.approx(weight * torch.tensor(3.0).log().item(), rel=0.05)
    (losses["class_2"] + losses["class_3"]).backward()
    assert heads.stages[0].box_predictor.bbox_pred.weight.grad is None


def test_the_stages_logits_are_averaged_raw_and_their_masks_as_probabilities() -> None:
    heads = CascadeHeads(8, 2, **SMALL).eval()
    biases = ([0.0, 4.0, 0.0], [0.0, 1.0, 0.0], [0.0, -2.0, 0.0])
    logits = (-2.0, 0.0, 5.0)
    for stage, bias, logit in zip(heads.stages, biases, logits, strict=True):
        predictor, last = stage.box_predictor, stage.mask_head[1].mask_fcn_logits
        for parameter in (predictor.cls_score.weight, predictor.bbox_pred.weight, last.weight):
            torch.nn.init.zeros_(parameter)
        predictor.cls_score.bias.data = torch.tensor(bias)
        last.bias.data.fill_(logit)
    with torch.no_grad():
        (found,), _ = heads(_features(), [torch.tensor([[10.0, 10, 40, 40]])], SHAPES)
    mean = torch.tensor(biases).mean(0).softmax(0)
    assert found["labels"].tolist() == [1, 2]
    assert found["scores"].tolist() == pytest.approx(mean[1:].tolist(), rel=1e-5)
    assert torch.allclose(found["boxes"], torch.tensor([[10.0, 10, 40, 40]] * 2), atol=1e-4)
    expected = torch.tensor(logits).sigmoid().mean()
    assert torch.allclose(found["masks"], expected.expand(2, 1, 28, 28), atol=1e-5)


def test_the_cascade_through_the_command_line(stvit: Any, coco_tree: Path, tmp_path: Path) -> None:
    words = ["detection.short_sides=[64]", "detection.long_side=96", "detection.channels=16", "detection.fc_dim=16"]
    words += ["data.num_workers=0", "train.device=cpu", "train.global_batch_size=2", "schedule.epochs=1", "data.kind=coco"]
    run = tmp_path / "run"
    report = ("--json", tmp_path / "figures.json")
    ended = stvit("train", "--recipe", "shapes-cascade-mask-rcnn", "--data", coco_tree, "--output", run, *report, *words)
    assert ended.code == 0, ended.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["num_images"] == 2
    assert figures["steps"] == 2
    ended = stvit("eval", "--weights", run / "last.safetensors", "--data", coco_tree, *report, "train.device=cpu")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "figures.json").read_text())["box_ap"] == pytest.approx(figures["last_box_ap"], abs=1e-6)
