"""The detector's parts against second sources, and the task through the command line: train, resume, evaluate, predict."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.processes import train_by_one_and_by_two
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import roi_align

from stvit_cli import tasks
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.detection.detector import Detector, create_detector, paste_masks
from stvit_cli.tasks.detection.mask_rcnn import BOX_WEIGHTS, box_loss
from stvit_cli.tasks.detection.roi import MultiScaleRoIAlign, mask_loss, mask_targets
from stvit_cli.tasks.detection.rpn import AnchorMatcher
from stvit_cli.tasks.detection.task import create_from_recipe

SMALL: dict[str, Any] = {
    "short_sides": (64,),
    "long_side": 96,
    "channels": 16,
    "fc_dim": 16,
    "anchor_scale": 4.0,
    "num_samples": 16,
    "freeze_batch_norm": False,
}
WORDS = (
    "detection.short_sides=[64]",
    "detection.long_side=96",
    "detection.channels=16",
    "detection.fc_dim=16",
    "data.image_size=64",
    "data.num_workers=0",
    "shapes.num_train=8",
    "shapes.num_val=3",
    "train.device=cpu",
    "train.global_batch_size=4",
    "train.batch_size_per_device=2",
    "schedule.epochs=2",
    "schedule.warmup_steps=1",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep drawn scenes out of the user's cache; one for all tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def _image(height: int = 64, width: int = 80) -> tuple[Tensor, dict[str, Tensor]]:
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 5:30, 10:40], masks[1, 32:60, 30:75] = 1, 1
    boxes = torch.tensor([[10.0, 5, 40, 30], [30, 32, 75, 60]])
    return torch.rand(3, height, width), {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}


@pytest.mark.parametrize(("name", "millions"), [("stvit-s", 44.12), ("stvit-b", 70.33)])
def test_as_many_parameters_as_the_authors_backbone_under_mask_rcnn(name: str, millions: float) -> None:
    with torch.device("meta"):
        detector = create_detector(name, 80)
    assert sum(p.numel() for p in detector.parameters()) / 1e6 == pytest.approx(millions, rel=0.001)


@pytest.mark.parametrize("size", [(1, 20_000), (600, 2)])
def test_a_thin_image_keeps_a_pixel_on_its_short_side(size: tuple[int, int]) -> None:
    height, width = size
    detector = create_detector("stvit-nano", 3, **SMALL)
    target = {"boxes": torch.tensor([[0.0, 0, width, height]]), "labels": torch.tensor([1])}
    for training in (True, False):
        detector.transform.train(training)
        batch, (resized,) = detector.transform([torch.rand(3, *size)], [target | {"masks": torch.ones(1, *size)}])
        assert batch.image_sizes == [(1, 96) if width > height else (96, 1)]
        assert resized["masks"].shape[1:] == batch.image_sizes[0]
        assert resized["masks"].min() == 1
        assert resized["boxes"][0].tolist() == pytest.approx([0, 0, *batch.image_sizes[0][::-1]])
    detector.eval()
    with torch.no_grad():
        (found,) = detector([torch.rand(3, *size)])
    assert (found["boxes"][:, 2:] <= torch.tensor([width, height])).all()


def test_boxes_are_coded_as_mmdetection_codes_them() -> None:
    """Shift of the middle by the size, logarithm of the ratio of sizes, both by the deviations .1 .1 .2 .2."""
    region, true = torch.tensor([[10.0, 20, 50, 40]]), torch.tensor([[14.0, 18, 44, 48]])
    by_hand = [(29 - 30) / 40 / 0.1, (33 - 30) / 20 / 0.1, math.log(30 / 40) / 0.2, math.log(30 / 20) / 0.2]
    coder = BoxCoder(BOX_WEIGHTS)
    coded = coder.encode_single(true, region)
    assert coded[0].tolist() == pytest.approx(by_hand, rel=1e-5)
    assert torch.allclose(coder.decode_single(coded, region), true, atol=1e-4)


def test_box_loss_is_l1_of_the_true_class_over_all_regions() -> None:
    regression = torch.zeros(3, 3, 4)
    regression[0, 2] = torch.tensor([1.0, 2, 3, 4])
    regression[0, 1] = 99  # another class's boxes
    regression[1] = 99  # background
    deltas = torch.tensor([[0.0, 0, 0, 1], [7, 7, 7, 7], [1, 1, 1, 1]])
    loss = box_loss(regression.flatten(1), torch.tensor([2, 0, 1]), deltas)
    assert loss.item() == pytest.approx(((1 + 2 + 3 + 3) + 4) / 3)


def test_proposals_learn_by_l1_or_smooth_l1_over_the_anchors_drawn() -> None:
    labels = [torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 0.0])]  # fewer than are drawn, so all but the third are
    objectness, deltas = torch.randn(6, 1), torch.randn(6, 4)
    targets = [torch.randn(3, 4), torch.randn(3, 4)]
    drawn = [0, 1, 3, 4, 5]
    wanted = torch.tensor([1.0, 0, 0, 0, 0])
    for head, beta in (("mask-rcnn", 0.0), ("cascade-mask-rcnn", 1 / 9)):
        rpn = create_detector("stvit-nano", 2, **(SMALL | {"head": head})).rpn
        classes, boxes = rpn.compute_loss(objectness, deltas, labels, targets)
        probability = objectness.flatten()[drawn].sigmoid()
        by_hand = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log()).mean()
        assert classes.item() == pytest.approx(by_hand.item(), rel=1e-5)
        off = (deltas[0] - targets[0][0]).abs()
        smooth = torch.where(off < beta, 0.5 * off**2 / max(beta, 1e-9), off - 0.5 * beta)
        assert boxes.item() == pytest.approx(smooth.sum().item() / 5, rel=1e-5)


def test_an_object_s_best_anchor_counts_from_an_overlap_of_three_tenths() -> None:
    quality = torch.tensor([[0.75, 0.2, 0.1, 0.1], [0.1, 0.35, 0.31, 0.1], [0.0, 0.1, 0.1, 0.29]])
    # object 0: an ordinary match; object 1: its best anchor, 0.35; object 2: nothing, its best is 0.29
    assert AnchorMatcher()(quality).tolist() == [0, 1, -2, -1]


def test_regions_are_cut_out_aligned_of_the_level_that_suits_their_size() -> None:
    maps = {str(i): torch.rand(2, 4, 128 >> i, 128 >> i) for i in range(4)} | {"pool": torch.rand(2, 4, 8, 8)}
    boxes = [torch.tensor([[8.0, 8, 60, 90], [0, 0, 500, 400]]), torch.tensor([[10.0, 20, 240, 250]])]
    out = MultiScaleRoIAlign(7)(maps, boxes, [(512, 512)] * 2)
    for row, (number, box, level) in enumerate(((0, boxes[0][0], 0), (0, boxes[0][1], 2), (1, boxes[1][0], 2))):
        alone = [box[None] if i == number else box.new_zeros(0, 4) for i in range(2)]
        expected = roi_align(maps[str(level)], alone, 7, 1 / (4 << level), sampling_ratio=0, aligned=True)
        assert torch.allclose(out[row], expected[0])
    assert MultiScaleRoIAlign(7)(maps, [torch.zeros(0, 4)] * 2, [(512, 512)] * 2).shape == (0, 4, 7, 7)


def test_what_a_mask_should_be_is_exact_where_cells_are_pixels() -> None:
    masks = (torch.rand(3, 40, 40) > 0.5).to(torch.uint8)
    wanted = mask_targets(masks, torch.tensor([[4.0, 6, 18, 20], [10, 10, 24, 24]]), torch.tensor([2, 0]), 14)
    assert torch.equal(wanted[0], masks[2, 6:20, 4:18].float())
    assert torch.equal(wanted[1], masks[0, 10:24, 10:24].float())


def test_mask_loss_is_of_the_true_class_and_nothing_without_regions() -> None:
    _, target = _image()
    logits = torch.randn(1, 4, 28, 28, requires_grad=True)
    box, matched = [torch.tensor([[30.0, 32, 58, 60]])], [torch.tensor([1])]
    loss = mask_loss(logits, box, matched, [target])
    wanted = target["masks"][1, 32:60, 30:58].float()
    assert loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits[0, 3], wanted).item(), rel=1e-5)
    empty = torch.zeros(0, 4, 28, 28, requires_grad=True)
    nothing = mask_loss(empty, [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)], [target])
    nothing.backward()
    assert nothing.item() == 0
    assert empty.grad is not None


def test_masks_are_pasted_where_their_boxes_are() -> None:
    probabilities = torch.zeros(2, 1, 28, 28)
    probabilities[0], probabilities[1, :, :14] = 1, 1  # a whole box, the upper half of one
    boxes = torch.tensor([[10.0, 5, 50, 45], [-10, 20, 30, 60]])
    masks = paste_masks(probabilities, boxes, (64, 80))
    expected = torch.zeros(2, 64, 80, dtype=torch.bool)
    expected[0, 5:45, 10:50], expected[1, 20:40, 0:30] = True, True
    for mask, wanted in zip(masks, expected, strict=True):
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9
    assert paste_masks(probabilities[:0], boxes[:0], (64, 80)).shape == (0, 64, 80)


@pytest.mark.parametrize("head", ["mask-rcnn", "cascade-mask-rcnn"])
def test_every_parameter_learns_with_and_without_objects(head: str) -> None:
    detector = create_detector("stvit-nano", 3, **(SMALL | {"head": head}))
    image, target = _image()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 50, 70)}
    for images, targets in (([image, torch.rand(3, 50, 70)], [target, nothing]), ([torch.rand(3, 50, 70)], [nothing])):
        losses = detector(images, targets)
        assert all(value.isfinite() for value in losses.values())
        detector.zero_grad()
        sum(losses.values()).backward()
        assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


def test_detections_are_in_the_images_own_pixels() -> None:
    detector = create_detector("stvit-nano", 3, **(SMALL | {"score_threshold": 0.0})).eval()
    images = [torch.rand(3, 40, 120), torch.rand(3, 200, 90)]
    with torch.no_grad():
        found = detector(images)
    for image, part in zip(images, found, strict=True):
        assert 0 < len(part["boxes"]) <= 100
        assert part["masks"].shape[1:] == (1, 28, 28)
        right, bottom = part["boxes"][:, 2].max(), part["boxes"][:, 3].max()
        assert image.shape[2] * 0.5 < right <= image.shape[2]
        assert image.shape[1] * 0.5 < bottom <= image.shape[1]
        assert set(part["labels"].tolist()) <= {1, 2, 3}
        assert (part["scores"].diff() <= 0).all()


def test_the_backbone_computes_in_half_precision_and_the_rest_does_not() -> None:
    detector = create_detector("stvit-nano", 3, **SMALL)
    seen: dict[str, torch.dtype] = {}
    detector.backbone.body.stages[3].register_forward_hook(lambda m, i, out: seen.update(stage=out.dtype))
    detector.backbone.fpn.register_forward_hook(lambda m, i, out: seen.update(fpn=out["0"].dtype))
    detector.roi_heads.box_head.register_forward_hook(lambda m, i, out: seen.update(head=out.dtype))
    image, target = _image()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector([image], [target])
    assert seen == {"stage": torch.bfloat16, "fpn": torch.float32, "head": torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norms_keep_their_statistics(frozen: bool) -> None:
    detector = create_detector("stvit-nano", 3, **(SMALL | {"freeze_batch_norm": frozen})).train()
    image, target = _image()
    norms = [module for module in detector.backbone.body.modules() if isinstance(module, _BatchNorm)]
    before = torch.cat([norm.running_mean.clone() for norm in norms])
    detector([image], [target])
    assert torch.equal(before, torch.cat([norm.running_mean for norm in norms])) == frozen
    assert all(norm.weight.requires_grad for norm in norms)


def _task(*words: str, weights: Path | None = None) -> Any:
    return tasks.build(recipe_io.load("shapes-mask-rcnn", [*WORDS, *words]), weights=weights)


def test_weights_to_start_from(tmp_path: Path) -> None:
    classifier = create_model("stvit-nano", 7)
    path = tmp_path / "classifier.safetensors"
    save_weights(path, classifier, WeightsInfo("stvit-nano", num_classes=7))
    task = _task(weights=path)
    body = task.model.backbone.body.state_dict()
    assert len(body) > 100
    assert all(torch.equal(value, classifier.state_dict()[name]) for name, value in body.items())
    assert any(f"{len(body)} tensors of the backbone" in note for note in task.notes())

    other = tmp_path / "detector.safetensors"
    save_weights(other, create_from_recipe(recipe_io.load("shapes-mask-rcnn", list(WORDS)), 2), task.weights_info())
    notes = " ".join(_task(weights=other).notes())
    assert "6 tensors are new: the file has other classes" in notes

    save_weights(path, classifier, WeightsInfo("stvit-nano", task="segmentation", num_classes=7))
    with pytest.raises(UserError, match="a model for segmentation; expected one for detection or classification"):
        _task(weights=path)
    with pytest.raises(UserError, match="no weights of this model"):
        _task("detection.head=cascade-mask-rcnn", weights=other)
    assert any("frozen batch norms" in note for note in _task("detection.freeze_batch_norm=true").notes())


def test_norms_do_not_decay_and_biases_do() -> None:
    task = _task()
    groups = task.param_groups(0.05, None)
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decay) == len(list(task.model.parameters()))
    names = {name: decay[id(parameter)] for name, parameter in task.model.named_parameters()}
    assert names["backbone.body.stages.0.blocks.0.norm1.weight"] == names["backbone.body.stem.0.norm.bias"] == 0
    assert names["roi_heads.box_head.fc6.bias"] == names["backbone.fpn.inner_blocks.0.0.weight"] == 0.05


def test_train_resume_evaluate_and_predict(stvit: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = stvit(
        "train",
        "--recipe",
        "shapes-mask-rcnn",
        "--output",
        run,
        "--json",
        tmp_path / "t.json",
        *WORDS,
        "checkpoint.every_steps=1",
        "checkpoint.keep=9",
    )
    assert ended.code == 0, ended.err
    figures = json.loads((tmp_path / "t.json").read_text())
    assert figures["steps"] == 4
    assert figures["num_images"] == 3
    assert 0 <= figures["box_ap"] <= 100

    last = load_file(run / "last.safetensors")
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")
    assert stvit("train", "--resume", run).code == 0
    again = load_file(run / "last.safetensors")
    assert all(torch.equal(again[name], last[name]) for name in last), "resumed, the run is the unbroken one"

    ended = stvit("eval", run, "--json", tmp_path / "e.json", f"detection.results_json={tmp_path / 'found.json'}")
    assert ended.code == 0, ended.err
    evaluated = json.loads((tmp_path / "e.json").read_text())
    assert evaluated["task"] == "detection"
    assert evaluated["mask_ap"] == pytest.approx(figures["mask_ap"], abs=1e-6)
    assert isinstance(json.loads((tmp_path / "found.bbox.json").read_text()), list)

    Image.fromarray(np.full((50, 70, 3), 90, dtype=np.uint8)).save(tmp_path / "p.png")
    ended = stvit(
        "predict",
        tmp_path / "p.png",
        "--weights",
        run,
        "--score-threshold",
        "0",
        "--output",
        tmp_path / "drawn",
        "--json",
        tmp_path / "p.json",
    )
    assert ended.code == 0, ended.err
    (answer,) = json.loads((tmp_path / "p.json").read_text())
    assert (answer["width"], answer["height"]) == (70, 50)
    assert len(answer["objects"]) > 0
    found = answer["objects"][0]
    assert found["name"] in ("circle", "square", "triangle", "star")
    assert found["mask"]["size"] == [50, 70]
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "00000-p.png"))
    assert drawn.shape == (200, 280, 3)  # enlarged, so that names can be read
    assert (drawn != 90).any()
    ended = stvit("predict", tmp_path / "p.png", "--weights", run, "--score-threshold", "1")
    assert ended.code == 0
    assert "nothing" in ended.out


def test_bad_input_is_answered_in_words(stvit: Any, coco_tree: Path, tmp_path: Path) -> None:
    def refused(*words: str | Path) -> str:
        ended = stvit("train", "--recipe", "coco-mask-rcnn-1x", "--output", tmp_path / "run", *words)
        assert ended.code == 2
        assert "Traceback" not in ended.err
        assert len(ended.err.strip().splitlines()) <= 6
        assert not (tmp_path / "run").exists()
        return str(ended.err)

    assert "data.dir is not set" in refused()
    assert "there is no folder" in refused("--data", tmp_path / "nowhere")
    tree = tmp_path / "tree"
    shutil.copytree(coco_tree, tree)
    path = tree / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    path.write_text("no JSON")
    assert "instances_val2017.json: not a JSON file" in refused("--data", tree)
    content["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(content))
    assert "of category 77, which is not in the file" in refused("--data", tree)
    (tree / "train2017" / "000000.png").unlink()
    assert "1 of its 4 images are not in" in refused("--data", tree)
    assert "cvat, createml or shapes for task detection" in refused("data.kind=imagefolder")
    assert "expected 3 for task detection" in refused("model.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]")
    assert "has no four stages" in refused(
        "--data", coco_tree, "model.name=isotropic-mini-stvit-20", "model.drop_path_rate=0.0", "model.grid_sizes=null"
    )


def test_a_detector_in_three_lines() -> None:
    import stvit_cli

    detector: Detector = stvit_cli.create_detector("stvit-nano", 2, **SMALL).eval()
    with torch.no_grad():
        (found,) = detector([torch.rand(3, 64, 64)])
    assert {"boxes", "labels", "scores", "masks"} == set(found)


@pytest.mark.slow
def test_two_processes_are_one_with_accumulation(tmp_path: Path) -> None:
    """The same bits and the same figures: every image is seen once, whoever looks at it."""
    words = ["detection.short_sides=[48, 64]", *WORDS[1:], "detection.freeze_batch_norm=true"]
    runs = train_by_one_and_by_two("shapes-mask-rcnn", tmp_path, words)
    one, two = (load_file(run / "last.safetensors") for run in runs)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    ]
    evaluations = [next(row for row in part if row["kind"] == "eval") for part in rows]
    assert evaluations[0]["num_images"] == evaluations[1]["num_images"] == 3
    assert evaluations[0]["box_ap"] == pytest.approx(evaluations[1]["box_ap"], abs=1e-6)


def test_held_out_images_are_not_counted_as_left_out(tmp_path: Path) -> None:
    """Of four images two have no object; one of those is held out, so one is in neither set."""
    from stvit_cli.data.coco import CocoImages
    from stvit_cli.data.coco_index import read_coco
    from stvit_cli.tasks.detection.task import _num_left_out

    images = [{"id": index, "file_name": f"{index}.png", "height": 8, "width": 8} for index in range(4)]
    annotations = [{"id": index, "image_id": index, "category_id": 0, "bbox": [1, 1, 4, 4]} for index in range(2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "cup"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    index = read_coco(tmp_path / "a.json", None)
    train = CocoImages(index, np.array([0]))
    assert _num_left_out(train, CocoImages(index.select(np.array([1, 2])))) == 1
    assert _num_left_out(CocoImages(index), CocoImages(index.select(np.array([1, 2])))) == 0
