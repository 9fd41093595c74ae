"""Several labels an image: metrics against torchmetrics, the loss against timm's, prediction, weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup
from torch import nn
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

from stvit_cli import tasks
from stvit_cli.analysis.onnx_graph import metadata
from stvit_cli.data import SampleKey
from stvit_cli.engine.seeding import seed_micro_batch
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import save_weights
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.classification.multi_label import MultiLabelEvaluator
from stvit_cli.tasks.classification.task import ClassificationTask, build_classification_evaluation
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.spec import PredictOptions, Trained


class Fixed(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def scores(num_images: int, num_classes: int, empty: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits with ties, and labels; with ``empty`` a class without a label."""
    generator = torch.Generator().manual_seed(num_images)
    logits = torch.round(2 * torch.randn(num_images, num_classes, generator=generator)) / 4
    target = (torch.rand(num_images, num_classes, generator=generator) < 0.3).float()
    target[0] = 1.0
    if empty:
        target[:, 0] = 0.0
        logits[:, 0] = -1.0
    return logits, target


def evaluated(logits: torch.Tensor, target: torch.Tensor, processes: int = 1, batch: int = 7) -> dict[str, float]:
    """Return the metrics where the images are divided among processes, as an evaluation divides them."""
    states = []
    for rank in range(processes):
        evaluator, mine = MultiLabelEvaluator(), torch.arange(rank, len(logits), processes)
        for indices in mine.split(batch):
            evaluator.update(Fixed(), {"image": logits[indices], "target": target[indices], "index": indices})
        states.append(evaluator.state())
    return dict(MultiLabelEvaluator().compute(states))


@pytest.mark.filterwarnings("ignore:No positive samples")  # torchmetrics', of the class without a label
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("num_images", [5, 60])
def test_metrics_are_torchmetrics(num_images: int, empty: bool) -> None:
    logits, target = scores(num_images, 4, empty)
    found = evaluated(logits, target)
    precision = MultilabelAveragePrecision(num_labels=4, average="none")(logits.sigmoid(), target.long())
    assert found["map"] == pytest.approx(100 * precision.mean().item(), abs=1e-4)
    for average in ("micro", "macro"):
        theirs = MultilabelF1Score(num_labels=4, average=average)(logits.sigmoid(), target.long())
        assert found[f"f1_{average}"] == pytest.approx(100 * theirs.item(), abs=1e-4)
    assert found["loss"] == pytest.approx(F.binary_cross_entropy_with_logits(logits, target).item())


def test_metrics_do_not_depend_on_the_number_of_processes() -> None:
    logits, target = scores(40, 3, False)
    assert evaluated(logits, target) == evaluated(logits, target, 2, 3) == evaluated(logits, target, 3, 40)
    assert evaluated(logits[:1], target[:1], 2) == evaluated(logits[:1], target[:1])  # a process without an image


def test_outputs_that_are_not_finite_end_an_evaluation() -> None:
    with pytest.raises(UserError):
        evaluated(torch.full((2, 3), float("nan")), torch.zeros(2, 3))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = ["path,tags"]
    for number in range(16):
        Image.new("RGB", (32, 32), (16 * number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{';'.join(name for bit, name in enumerate('abc') if number >> bit & 1)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return tmp_path / "labels.csv"


def build(table: Path, *overrides: str) -> ClassificationTask:
    words = ["data.kind=table", "data.multi_label=true", f"data.dir={table}", "data.image_size=32", "data.num_workers=0"]
    task = tasks.build(recipe_io.from_text("name: test", ["model.name=stvit-nano", *words, *overrides]))
    assert isinstance(task, ClassificationTask)
    return task


def batch_of(task: ClassificationTask, count: int = 4) -> dict[str, torch.Tensor]:
    return task.collate([task.train_set[SampleKey(index, 0, 0)] for index in range(count)])


def test_the_loss_is_binary_cross_entropy_with_targets_that_smoothing_moves_to_a_half(table: Path) -> None:
    task = build(table, "augment.label_smoothing=0.2")
    batch = batch_of(task)
    assert batch["target"].shape == (4, 3)
    logits = task.model.eval()(batch["image"])
    expected = F.binary_cross_entropy_with_logits(logits, 0.8 * batch["target"] + 0.1)
    torch.testing.assert_close(task.training_loss(task.model, batch)["loss"], expected)
    assert (task.main_metric, task.weights_info().multi_label) == ("map", True)


def test_mixing_is_timms(table: Path) -> None:
    task = build(table, "augment.mixup=0.8", "augment.label_smoothing=0.1")
    batch = batch_of(task)
    seed_micro_batch(0, 0, 0)
    images, target = Mixup(0.8, label_smoothing=0.1, num_classes=3, multi_label=True)(batch["image"].clone(), batch["target"])
    expected = F.binary_cross_entropy_with_logits(task.model.eval()(images), target)
    seed_micro_batch(0, 0, 0)
    torch.testing.assert_close(task.training_loss(task.model, batch)["loss"], expected)


@pytest.mark.parametrize("overrides", [["loss.kind=focal"], ["data.class_weights=balanced"], ["data.class_weights=[1,2,3]"]])
def test_other_losses_and_weights_serve_too(table: Path, overrides: list[str]) -> None:
    task, plain = build(table, *overrides), build(table)
    losses = [each.training_loss(each.model.eval(), batch_of(each))["loss"].item() for each in (task, plain)]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [(["loss.kind=cross-entropy"], "loss.kind"), (["data.balance=1"], "data.balance"), (["data.kind=idx"], "data.multi_label")],
)
def test_what_has_no_meaning_for_several_labels_is_refused_by_key(table: Path, overrides: list[str], key: str) -> None:
    words = [
        word
        for word in ("data.kind=table", "data.multi_label=true")
        if word.split("=")[0] not in {o.split("=")[0] for o in overrides}
    ]
    with pytest.raises(UserError, match=rf"{key}: "):
        recipe_io.from_text("name: test", [*words, *overrides])


def test_prediction_returns_every_class_above_the_threshold(table: Path) -> None:
    task = build(table)
    trained = Trained(task.model.eval(), task.weights_info(), table)
    paths = [str(table.parent / f"{number}.png") for number in range(3)]
    images = torch.stack([task.val_set.transform(Image.open(path)) for path in paths])
    probabilities = task.model(images).sigmoid()
    threshold = probabilities.median().item()
    found = list(tasks.predict(trained, paths, PredictOptions(score_threshold=threshold)))
    for result, row in zip(found, probabilities, strict=True):
        scored = {score.name: score.probability for score in result.classes}  # type: ignore[attr-defined]
        assert set(scored) == {"abc"[label] for label in range(3) if row[label] >= threshold - 1e-6}
        assert list(scored.values()) == sorted(scored.values(), reverse=True)
    (nothing,) = tasks.predict(trained, paths[:1], PredictOptions(score_threshold=1.0))
    assert nothing.summary() == "no class"
    assert nothing.to_dict()["classes"] == []
    nothing.draw(table.parent / "drawn.png")


def test_weights_and_onnx_files_say_that_there_are_several_labels(table: Path) -> None:
    task = build(table)
    info = task.weights_info()
    save_weights(table.parent / "w.safetensors", task.model, info)
    assert open_trained(table.parent / "w.safetensors").info.multi_label
    assert metadata(info)["multi_label"] == "true"
    assert "multi_label" not in json.loads(replace(info, multi_label=False).to_json())  # earlier versions warn


def test_a_class_that_no_validation_image_has_is_named(table: Path) -> None:
    (table.parent / "val.csv").write_text("path,tags\n1.png,a\n2.png,b\n")
    notes = build(table, "data.val_table=val.csv").check_data()
    assert "No image to evaluate on has c; of such classes average precision and F1 are 0." in notes
    assert not any("No image" in note for note in build(table).check_data())


def test_a_model_of_one_class_an_image_is_not_evaluated_as_one_of_several(table: Path) -> None:
    task = build(table)
    recipe = recipe_io.from_text("name: x", ["data.kind=table", f"data.dir={table}", "data.image_size=32"])
    with pytest.raises(UserError, match=r"data\.multi_label is false, but the model has several labels"):
        build_classification_evaluation(recipe, task.weights_info(), whole=False)
