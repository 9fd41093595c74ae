"""Detectors without masks: torchvision's Faster R-CNN with the same weights, the same heads as with masks, mixed annotations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.processes import train_by_one_and_by_two
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import RoIHeads

from stvit_cli import tasks
from stvit_cli.analysis.cost.profile_recipe import profile_recipe
from stvit_cli.data.coco import CocoImages
from stvit_cli.data.coco_index import read_coco
from stvit_cli.data.palette import class_colour
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import save_weights
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.detection.detector import BOX_ONLY, create_detector
from stvit_cli.tasks.detection.mask_rcnn import MaskRCNNHeads
from stvit_cli.tasks.detection.roi import having_masks

SMALL: dict[str, Any] = {
    "short_sides": (64,),
    "long_side": 96,
    "channels": 16,
    "fc_dim": 16,
    "anchor_scale": 4.0,
    "num_samples": 16,
    "freeze_batch_norm": False,
}
WORDS = [
    "detection.short_sides=[64]",
    "detection.long_side=96",
    "detection.channels=16",
    "detection.fc_dim=16",
    "data.kind=coco",
    "data.num_workers=0",
    "train.device=cpu",
    "train.global_batch_size=2",
    "train.batch_size_per_device=1",
    "schedule.epochs=1",
    "schedule.warmup_steps=1",
]


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """One COCO file of six images with a box each, beside its images, as a labelling tool exports it: no mask, no split."""
    root = tmp_path / "boxes"
    root.mkdir()
    generator = np.random.default_rng(0)
    content: dict[str, Any] = {"categories": [{"id": 1, "name": "bright"}, {"id": 2, "name": "dark"}], "images": []}
    content["annotations"] = []
    for number in range(6):
        pixels = generator.integers(90, 110, (48, 64, 3), dtype=np.uint8)
        left, top, label = int(generator.integers(2, 30)), int(generator.integers(2, 20)), number % 2 + 1
        pixels[top : top + 20, left : left + 24] = 240 if label == 1 else 10
        Image.fromarray(pixels).save(root / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64})
        box = {"id": number, "image_id": number, "category_id": label, "bbox": [left, top, 24, 20], "segmentation": []}
        content["annotations"].append(box)
    (root / "boxes.json").write_text(json.dumps(content))
    return root


def _single_file(root: Path) -> list[str]:
    return [*WORDS, f"data.dir={root}", "detection.train_json=boxes.json", 'detection.train_images=""', "detection.val_json=null"]


def _image(seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 5:30, 10:40], masks[1, 32:60, 30:75] = 1, 1
    boxes = torch.tensor([[10.0, 5, 40, 30], [30, 32, 75, 60]])
    torch.manual_seed(seed)
    return torch.rand(3, 64, 80), {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}


def test_with_the_same_weights_torchvision_s_faster_rcnn_detects_the_same() -> None:
    torch.manual_seed(0)
    ours = create_detector("stvit-nano", 3, head="faster-rcnn", **SMALL, score_threshold=0.0).eval()
    sizes = tuple((4.0 * stride,) for stride in (4, 8, 16, 32, 64))
    theirs = FasterRCNN(
        ours.backbone,
        num_classes=None,
        min_size=64,
        max_size=96,
        size_divisible=32,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        rpn_head=ours.rpn.head,
        rpn_pre_nms_top_n_test=ours.rpn._pre_nms_top_n["testing"],
        rpn_post_nms_top_n_test=ours.rpn._post_nms_top_n["testing"],
        box_head=ours.roi_heads.box_head,
        box_predictor=ours.roi_heads.box_predictor,
        box_score_thresh=0.0,
        box_nms_thresh=0.5,
    ).eval()
    theirs.roi_heads.box_roi_pool = ours.roi_heads.box_roi_pool  # theirs is not aligned
    assert theirs.load_state_dict(ours.state_dict(), strict=True)
    images = [torch.rand(3, 50, 70), torch.rand(3, 90, 60)]
    with torch.no_grad():
        for one, other in zip(ours(images), theirs(images), strict=True):
            assert set(one) == set(other) == {"boxes", "labels", "scores"}
            assert len(one["boxes"]) > 0
            assert all(torch.equal(one[key], other[key]) for key in other)


def test_class_loss_is_torchvision_s_and_box_loss_too_as_l1(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"fc_dim": 16, "num_samples": 16, "score_threshold": 0.0, "nms_threshold": 0.5}
    ours = MaskRCNNHeads(8, 3, **sizes, max_detections=100, masks=False)
    pool, head, predictor = ours.box_roi_pool, ours.box_head, ours.box_predictor
    theirs = RoIHeads(pool, head, predictor, 0.5, 0.5, 16, 0.25, (10.0, 10.0, 5.0, 5.0), 0.0, 0.5, 100)
    features = {str(i): torch.randn(1, 8, 16 >> i, 20 >> i) for i in range(4)}
    proposals = [torch.tensor([[9.0, 6, 41, 30], [0, 0, 20, 20], [30, 30, 74, 61]])]
    _, target = _image()
    target.pop("masks")
    torch.manual_seed(1)
    _, losses = ours(features, proposals, [(64, 80)], [target])
    l1 = lambda input, target, beta, reduction: F.l1_loss(input, target, reduction=reduction)  # noqa: E731
    monkeypatch.setattr(torchvision.models.detection.roi_heads.F, "smooth_l1_loss", l1)
    torch.manual_seed(1)
    _, expected = theirs(features, proposals, [(64, 80)], [target])
    assert {key: value.item() for key, value in losses.items()} == {
        "class": pytest.approx(expected["loss_classifier"].item(), rel=1e-6),
        "box": pytest.approx(expected["loss_box_reg"].item(), rel=1e-6),
    }


@pytest.mark.parametrize(("head", "box_only"), list(BOX_ONLY.items()))
def test_a_head_without_masks_is_the_head_with_them_less_their_branch(head: Any, box_only: Any) -> None:
    torch.manual_seed(0)
    full = create_detector("stvit-nano", 3, head=head, **SMALL, score_threshold=0.0).eval()
    torch.manual_seed(0)
    bare = create_detector("stvit-nano", 3, head=head, masks=False, **SMALL, score_threshold=0.0).eval()
    names = {name for name in full.state_dict() if "mask_head." not in name}
    assert set(bare.state_dict()) == names
    assert set(create_detector("stvit-nano", 3, head=box_only, **SMALL).state_dict()) == names
    if head == "mask-rcnn":
        assert all(torch.equal(bare.state_dict()[name], full.state_dict()[name]) for name in names), "initialized alike"
    bare.load_state_dict({name: full.state_dict()[name] for name in names})
    image, target = _image()
    with torch.no_grad():
        (one,), (other,) = bare([image]), full([image])
    assert "masks" not in one
    assert all(torch.equal(one[key], other[key]) for key in one)
    target.pop("masks")
    bare.train()
    for targets in ([target], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}]):
        losses = bare([image], targets)
        assert not [name for name in losses if "mask" in name]
        bare.zero_grad()
        sum(losses.values()).backward()
        assert [name for name, parameter in bare.named_parameters() if parameter.grad is None] == []


def test_heads_that_contradict_masks_or_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match="cascade-rcnn has no masks; with masks it is cascade-mask-rcnn"):
        create_detector("stvit-nano", 3, head="cascade-rcnn", masks=True)
    with pytest.raises(UserError, match=r"no head 'faster_rcnn'.* Did you mean 'faster-rcnn'"):
        create_detector("stvit-nano", 3, head="faster_rcnn")  # type: ignore[arg-type]


def test_an_object_without_a_mask_trains_class_and_box_alone() -> None:
    """Its mask loss is excluded: that of the others is the same whatever the mask of the first is, and its mean is over them."""
    image, target = _image()
    detector = create_detector("stvit-nano", 3, **SMALL)

    def losses(**changed: Tensor) -> dict[str, float]:
        torch.manual_seed(3)
        return {name: value.item() for name, value in detector([image], [target | changed]).items()}

    has_mask = torch.tensor([False, True])
    mixed = losses(
        has_mask=has_mask, masks=torch.zeros_like(target["masks"]) + target["masks"] * torch.tensor([0, 1])[:, None, None]
    )
    assert mixed == losses(has_mask=has_mask), "the mask of the first object has no influence"
    complete, other = losses(), losses(has_mask=~has_mask)
    assert {name: mixed[name] for name in mixed if name != "mask"} == {
        name: complete[name] for name in complete if name != "mask"
    }
    assert min(mixed["mask"], other["mask"]) <= complete["mask"] <= max(mixed["mask"], other["mask"])


@pytest.mark.parametrize("head", list(BOX_ONLY))
def test_every_parameter_has_a_gradient_where_no_object_of_a_batch_has_a_mask(head: Any) -> None:
    """Otherwise processes whose batch has masks would wait for the one whose batch has none."""
    image, target = _image()
    detector = create_detector("stvit-nano", 3, head=head, **SMALL)
    losses = detector([image], [target | {"has_mask": torch.tensor([False, False])}])
    assert all(losses[name].item() == 0 for name in losses if name.startswith("mask"))
    sum(losses.values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


def test_regions_of_objects_without_masks_are_left_out_of_the_mask_head() -> None:
    boxes, matched = [torch.rand(3, 4), torch.rand(0, 4)], [torch.tensor([1, 0, 1]), torch.zeros(0, dtype=torch.long)]
    targets = [{"has_mask": torch.tensor([False, True])}, {"has_mask": torch.zeros(0, dtype=torch.bool)}]
    kept, objects = having_masks(boxes, matched, targets)
    assert torch.equal(kept[0], boxes[0][[0, 2]])
    assert [part.tolist() for part in objects] == [[1, 1], []]


def _recipe(root: Path, *words: str, name: str = "shapes-mask-rcnn") -> Recipe:
    return recipe_io.load(name, [*_single_file(root), *words])


def test_a_new_run_takes_the_head_without_masks_where_no_object_has_one(boxes: Path) -> None:
    for name, head in (("shapes-mask-rcnn", "faster-rcnn"), ("shapes-cascade-mask-rcnn", "cascade-rcnn")):
        resolved, (note,) = tasks.resolve(_recipe(boxes, name=name))
        assert resolved.detection.head == head
        assert f"no object has a mask, so detection.head is {head}" in note
        assert tasks.resolve(resolved) == (resolved, []), "and says so once"
    content = json.loads((boxes / "boxes.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[5, 5, 30, 5, 30, 30]]
    (boxes / "boxes.json").write_text(json.dumps(content))
    recipe = _recipe(boxes)
    assert tasks.resolve(recipe) == (recipe, [])


def test_a_file_is_read_once_to_choose_the_head_and_build_the_sets(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stvit_cli.data import coco_index

    read: list[Path] = []
    original = coco_index.read_json
    monkeypatch.setattr(coco_index, "read_json", lambda path, **options: (read.append(path), original(path, **options))[1])
    resolved, _ = tasks.resolve(_recipe(boxes))
    tasks.build(resolved)
    assert len(read) == 1
    tasks.build(resolved)
    assert len(read) == 2, "nothing is kept once the sets are built"


def test_weights_start_a_detector_with_and_without_masks(boxes: Path, tmp_path: Path) -> None:
    bare = tasks.build(_recipe(boxes, "detection.head=faster-rcnn"))
    full = tasks.build(_recipe(boxes, "train.seed=5"))
    for task in (bare, full):
        save_weights(tmp_path / f"{task.weights_info().settings.count('mask-rcnn')}.safetensors", task.model, task.weights_info())
    num_masks = len(full.model.state_dict()) - len(bare.model.state_dict())
    started = tasks.build(_recipe(boxes, "detection.head=faster-rcnn"), weights=tmp_path / "1.safetensors")
    assert f"{num_masks} tensors of the mask branch in the file were not used: this model has none." in started.notes()
    assert not [note for note in started.notes() if note.startswith("Warning")]
    own = started.model.state_dict()
    assert all(torch.equal(value, full.model.state_dict()[name]) for name, value in own.items())
    started = tasks.build(_recipe(boxes, "train.seed=7"), weights=tmp_path / "0.safetensors")
    assert f"{num_masks} tensors of the mask branch are new: the file has none." in started.notes()
    assert all(torch.equal(value, started.model.state_dict()[name]) for name, value in bare.model.state_dict().items())
    with pytest.raises(UserError, match="no weights of this model"):
        tasks.build(_recipe(boxes, name="shapes-cascade-mask-rcnn"), weights=tmp_path / "0.safetensors")


def test_the_cost_of_a_detector_without_masks_is_less_by_the_mask_branch() -> None:
    counts = {
        head: profile_recipe(recipe_io.load("shapes-mask-rcnn", [*WORDS, f"detection.head={head}"]), (64, 64))
        for head in ("mask-rcnn", "faster-rcnn")
    }
    full, bare = counts["mask-rcnn"], counts["faster-rcnn"]
    assert full["params"] - bare["params"] == 4 * (16 * 16 * 9 + 16) + 16 * 16 * 4 + 16 + 16 * 81 + 81
    assert 0 < bare["flops"] < full["flops"]


def test_the_mask_is_decoded_for_heads_with_masks_alone(boxes: Path, coco_tree: Path) -> None:
    images = CocoImages(read_coco(coco_tree / "annotations" / "instances_val2017.json", coco_tree / "val2017"), masks=False)
    assert set(images.targets(0)) == {"boxes", "labels"}
    assert tasks.build(_recipe(boxes, "detection.head=faster-rcnn")).train_set.images.masks is False


def test_boxes_without_a_split_through_the_command_line(stvit: Any, boxes: Path, tmp_path: Path) -> None:
    run, report = tmp_path / "run", tmp_path / "metrics.json"
    ended = stvit("train", "--recipe", "shapes-mask-rcnn", "--dry-run", *_single_file(boxes))
    assert ended.code == 0, ended.err
    ended = stvit("train", "--recipe", "shapes-mask-rcnn", "--output", run, "--json", report, *_single_file(boxes))
    assert ended.code == 0, ended.err
    assert "detection.head is faster-rcnn (boxes alone)" in ended.err
    assert "boxes.json has no split: 1 of 6 images are held out for validation (17%)." in ended.err
    assert "Warning" not in ended.err
    metrics = json.loads(report.read_text())
    assert metrics["num_images"] == 1
    assert {name.split("_")[0] for name in metrics if "ap" in name or "_ar_" in name} == {"box", "last"}
    assert recipe_io.load(run / "recipe.yaml").detection.head == "faster-rcnn"
    assert stvit("train", "--resume", run).code == 0

    found = tmp_path / "found.json"
    ended = stvit("eval", run, "--json", report, f"detection.results_json={found}")
    assert ended.code == 0, ended.err
    assert json.loads(report.read_text())["box_ap"] == pytest.approx(metrics["box_ap"], abs=1e-6)
    assert sorted(path.name for path in tmp_path.glob("found*")) == ["found.bbox.json"]
    ended = stvit("eval", run, "--data", boxes.parent / "boxes" / ".." / "boxes", "--json", report)
    assert json.loads(report.read_text())["num_images"] == 1, "the run's own folder, written otherwise"
    (tmp_path / "copy").mkdir()
    for path in boxes.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    assert stvit("eval", run, "--data", tmp_path / "copy", "--json", report).code == 0
    assert json.loads(report.read_text())["num_images"] == 6, "of other data all images"

    image = boxes / "0.png"
    words = ("--weights", run, "--score-threshold", "0", "--output", tmp_path / "drawn", "--json", report)
    ended = stvit("predict", image, *words)
    assert ended.code == 0, ended.err
    (answer,) = json.loads(report.read_text())
    assert set(answer["objects"][0]) == {"name", "index", "score", "box"}
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "00000-0.png")).reshape(-1, 3)
    assert (drawn == class_colour(answer["objects"][0]["index"])).all(1).any(), "the box has the colour of its class"
    assert stvit("export", run, tmp_path / "half.safetensors", "--precision", "fp16").code == 0
    assert stvit("predict", image, "--weights", tmp_path / "half.safetensors").code == 0
    assert (
        stvit("visualize-associations", image, "--weights", run, "--output", tmp_path / "shown", "--layers", "stage4").code == 0
    )


@pytest.mark.slow
def test_two_processes_are_one_where_images_of_some_batches_have_no_mask(coco_tree: Path, tmp_path: Path) -> None:
    """The process whose images have none reaches the mask branch too, and does not keep the other one waiting."""
    tree = tmp_path / "tree"
    shutil.copytree(coco_tree, tree)
    for path in (tree / "annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            if annotation["image_id"] % 2:
                annotation["segmentation"] = []
        path.write_text(json.dumps(content))
    words = [f"data.dir={tree}", *WORDS, "detection.freeze_batch_norm=true", "train.log_every_steps=1"]
    runs = train_by_one_and_by_two("shapes-mask-rcnn", tmp_path, words)
    logs = [map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) for run in runs]
    rows = [[row for row in log if row["kind"] == "train"] for log in logs]
    assert len(rows[0]) == 2
    for one, two in zip(*rows, strict=True):
        assert one["mask"] == pytest.approx(two["mask"], rel=1e-4)
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
