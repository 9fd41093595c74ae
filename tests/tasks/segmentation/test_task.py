"""The segmentation task: its loss, its figures beside torchmetrics', its weights, the same counts for any number of processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stvit_cli import tasks
from stvit_cli.data.loader import build_eval_loader
from stvit_cli.data.sampling import SampleKey
from stvit_cli.data.shapes import write_ade20k_tree
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.weights.file import WeightsInfo, read_info, save_weights
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.segmentation.metrics import confusion, segmentation_metrics
from stvit_cli.tasks.segmentation.task import SegmentationTask, create_from, section_of

NAMES = ("background", "circle", "square", "triangle", "star")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade")
    write_ade20k_tree(root, (4, 7), 64, seed=1)
    return root


Build = Callable[..., SegmentationTask]


@pytest.fixture
def build(scenes: Path) -> Build:
    def make(*words: str, weights: Path | None = None) -> SegmentationTask:
        task = tasks.build(recipe(scenes, *words), weights=weights)
        assert isinstance(task, SegmentationTask)
        return task

    return make


def recipe(root: Path, *words: str) -> Recipe:
    text = f"""
    {{task: segmentation, model: {{name: stvit-nano}}, data: {{kind: ade20k, image_size: 64, dir: {root}}},
      segmentation: {{class_names: [{", ".join(NAMES)}], reduce_zero_label: true, max_size: [64, 64],
        channels: 32, aux_channels: 16}}}}
    """
    return recipe_io.from_text(text, words)


class Guesses(nn.Module):
    """Answers by the colours of the image, the same at every call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x[:, :2] - x[:, 1:]], 1)


def evaluated(task: SegmentationTask, processes: int, batch_size: int) -> dict[str, float]:
    states = []
    for rank in range(processes):
        evaluator = task.evaluator()
        for batch in build_eval_loader(task.val_set, task.collate_eval, batch_size, 0, rank, processes):
            evaluator.update(Guesses(), batch)
        states.append(evaluator.state())
    return dict(task.evaluator().compute(states))


def test_metrics_are_those_of_torchmetrics() -> None:
    """Random maps; class 3 is nowhere, class 4 only predicted, class 5 never predicted."""
    metrics = pytest.importorskip("torchmetrics.classification")
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([0, 1, 2, 5, 6, -1])[torch.randint(6, (4, 20, 30), generator=generator)]
    predicted = torch.tensor([0, 1, 2, 4, 6])[torch.randint(5, (4, 20, 30), generator=generator)]
    matrix = sum(confusion(p, t, 7) for p, t in zip(predicted, target, strict=True))
    assert matrix.dtype == torch.int64
    assert int(matrix.sum()) == int((target >= 0).sum())
    ours = dict(segmentation_metrics(matrix, [f"c{i}" for i in range(7)]))
    settings = {"num_classes": 7, "ignore_index": -1}
    assert ours["miou"] == pytest.approx(100 * float(metrics.MulticlassJaccardIndex(**settings)(predicted, target)), rel=1e-5)
    each = metrics.MulticlassJaccardIndex(average="none", **settings)(predicted, target)
    assert "iou/c3" not in ours
    assert all(ours[f"iou/c{i}"] == pytest.approx(100 * float(each[i]), rel=1e-5) for i in (0, 1, 2, 4, 5, 6))
    assert ours["iou/c4"] == ours["iou/c5"] == 0.0
    assert ours["pixel_accuracy"] == pytest.approx(
        100 * float(metrics.MulticlassAccuracy(average="micro", **settings)(predicted, target))
    )


def test_a_perfect_and_an_empty_prediction() -> None:
    target = torch.tensor([[0, 1], [1, -1]])
    assert dict(segmentation_metrics(confusion(target.clamp(min=0), target, 2), ("a", "b"))) == {
        **{"miou": 100.0, "pixel_accuracy": 100.0, "class_accuracy": 100.0},
        **{"iou/a": 100.0, "iou/b": 100.0},
    }
    nothing = torch.zeros(2, 2, dtype=torch.int64)
    assert dict(segmentation_metrics(nothing, ("a", "b"))) == {"miou": 0.0, "pixel_accuracy": 0.0, "class_accuracy": 0.0}


@pytest.mark.parametrize(
    "words", [(), ("segmentation.window=40", "segmentation.eval_scales=[0.5, 1.0]", "segmentation.eval_flip=true")]
)
def test_processes_and_batches_change_nothing(build: Build, words: tuple[str, ...]) -> None:
    task = build(*words)
    alone = evaluated(task, 1, 1)
    assert alone["num_images"] == 7
    assert 0 < alone["miou"] < 100
    assert all(evaluated(task, processes, size) == alone for processes, size in ((1, 3), (2, 1), (2, 64), (3, 2)))


def test_predictions_are_the_confusion_of_each_image(build: Build) -> None:
    task = build()
    states = []
    for rank in range(2):
        evaluator = task.evaluator()
        for batch in build_eval_loader(task.val_set, task.collate_eval, 1, 0, rank, 2):
            evaluator.update(Guesses(), batch)
        states.append(evaluator.state())
    found = task.evaluator().predictions(states)
    assert found.images == [Path(task.val_set.images.path(index)).name for index in range(7)]
    total = torch.zeros(len(NAMES), len(NAMES), dtype=torch.int64)
    total.index_put_(
        tuple(torch.from_numpy(column).long() for column in (found.target, found.predicted)),
        torch.from_numpy(found.pixels),
        accumulate=True,
    )
    assert total.equal(states[0][0] + states[1][0])
    (first,) = [task.val_set[0]["target"]]
    assert found.pixels[found.image == 0].sum() == (first >= 0).sum()


def test_an_evaluation_is_at_the_original_size(build: Build) -> None:
    task = build("segmentation.max_size=[48, 48]")
    evaluator = task.evaluator()
    sample = task.val_set[0]
    assert max(sample["images"][0].shape) == 48
    assert max(sample["target"].shape) == 64
    evaluator.update(Guesses(), task.collate_eval([sample]))
    assert int(evaluator.state()[0].sum()) == sample["target"].numel()


def test_the_loss_is_the_mean_over_all_pixels(build: Build) -> None:
    task = build("train.global_batch_size=4")
    batch = task.collate([task.train_set[SampleKey(index, 0, 0)] for index in range(4)])
    batch["target"][0] = -1
    task.model.eval()
    task.model.backbone.eval()
    logits, aux_logits = torch.randn(2, 4, 5, 64, 64).unbind()

    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return logits[: len(images)], aux_logits[: len(images)]

    losses = task.training_loss(Fixed(), batch)
    by_pixel = [F.cross_entropy(part, batch["target"], ignore_index=-1, reduction="none") for part in (logits, aux_logits)]
    assert losses["ce"] == pytest.approx(float(by_pixel[0].mean()), rel=1e-5)
    assert losses["aux"] == pytest.approx(0.4 * float(by_pixel[1].mean()), rel=1e-5)
    assert (by_pixel[0][0] == 0).all()
    assert task.describe(batch) == [task.train_set.images.path(index) for index in range(4)]


def test_a_step_lowers_the_loss_and_norms_do_not_decay(build: Build) -> None:
    task = build()
    groups = task.param_groups(0.01, None)
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    exempt = {id(p) for p in groups[1]["params"]}
    modules = [m for m in task.model.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))]
    assert exempt == {id(p) for module in modules for p in module.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(list(task.model.parameters()))
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    batch = task.collate([task.train_set[SampleKey(index, 0, 0)] for index in range(2)])
    torch.manual_seed(0)
    losses = []
    for _ in range(4):
        loss = sum(task.training_loss(task.model, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def written(model: nn.Module, path: Path, **info: Any) -> Path:
    save_weights(path, model, WeightsInfo(**{"model": "stvit-nano", "num_classes": 5, "class_names": NAMES} | info))
    return path


def test_a_classifiers_weights_go_into_the_backbone(build: Build, tmp_path: Path) -> None:
    classifier = create_model("stvit-nano", 3)
    path = written(classifier, tmp_path / "c.safetensors", num_classes=3, class_names=(), task="classification")
    task = build(weights=path)
    own = task.model.backbone.state_dict()
    assert all(torch.equal(value, classifier.state_dict()[name]) for name, value in own.items())
    assert task.notes() == [
        "4 images to train on, 7 to evaluate, 5 classes.",
        f"{len(own)} tensors of the backbone from {path}; the other layers are new.",
    ]


def test_a_segmenters_weights_come_back_and_tell_how_to_build_it(build: Build, scenes: Path, tmp_path: Path) -> None:
    task = build("model.grid_sizes=[8, 4, 1, 1]", "segmentation.eval_flip=true")
    path = tmp_path / "s.safetensors"
    save_weights(path, task.model, task.weights_info())
    info = read_info(path)
    assert (info.task, info.class_names, section_of(info)) == ("segmentation", NAMES, task.section)
    model = create_from(info)
    model.load_state_dict(task.model.state_dict())
    again = build(weights=path)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in task.model.state_dict().items())
    other = build("segmentation.class_names=[background, circle, square, triangle, flower]", "train.seed=1", weights=path)
    assert torch.equal(other.model.decoder.fusion_block[0].weight, task.model.decoder.fusion_block[0].weight)
    assert not torch.equal(other.model.classifier.weight, task.model.classifier.weight)
    assert "4 tensors are new: the file has other classes." in other.notes()
    words = ("segmentation.class_names=[background, circle, square, triangle, flower]",)
    with pytest.raises(UserError, match="'flower' is none of them"):
        tasks.build_evaluation(recipe(scenes, *words), info)


@pytest.mark.parametrize(
    ("task", "said"), [("detection", "a model for detection"), ("classification", "not the weights of this model")]
)
def test_weights_of_another_task_or_model_are_refused(build: Build, tmp_path: Path, task: str, said: str) -> None:
    path = written(nn.Linear(2, 2), tmp_path / "other.safetensors", task=task)
    with pytest.raises(UserError, match=said):
        build(weights=path)


def test_problems_of_the_data_are_found(build: Build, scenes: Path) -> None:
    assert build().data_problems() == []
    found = build("segmentation.class_names=[background, circle, square, triangle, star, flower]").data_problems()
    counts = {"training": 4, "validation": 7}
    assert found == [f"{split}: the class flower is in none of the {count} label maps." for split, count in counts.items()]
    fewer = build("segmentation.class_names=[background, circle, square]").data_problems()
    assert any("the label map has" in line and str(scenes) in line for line in fewer)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("segmentation.class_names=[]", "segmentation.class_names: found none"),
        ("segmentation.class_names=[a, b, a]", "segmentation.class_names: found 'a' twice"),
        ("segmentation.scale_range=[2.0, 1.0]", "segmentation.scale_range: found"),
        ("model.in_chans=1", "model.in_chans: found 1, expected 3"),
        ("optim.layer_decay=0.7", "optim.layer_decay: found 0.7, expected null"),
        ("data.kind=coco", "data.kind: found coco, expected ade20k or shapes"),
    ],
)
def test_settings_that_do_not_go_together(scenes: Path, word: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        recipe(scenes, word)


def test_a_stride_beyond_the_window(scenes: Path) -> None:
    with pytest.raises(UserError, match=r"segmentation.window_stride: found 41, expected no more than the window"):
        recipe(scenes, "segmentation.window=40", "segmentation.window_stride=41")


def test_a_library_that_is_not_installed(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("segmentation_models_pytorch", "stvit_cli.tasks."))]:
        parent, _, child = name.rpartition(".")
        if hasattr(sys.modules.get(parent), child):  # importing it again sets the attribute too, which later tests would meet
            monkeypatch.setattr(sys.modules[parent], child, sys.modules[name])
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r"need segmentation_models_pytorch.*\n?.*stvit\[dense\]"):
        tasks.build(recipe(scenes))
