from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stvit_cli import engine, tasks
from stvit_cli.data import SampleKey
from stvit_cli.engine.seeding import seed_micro_batch
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.weights.file import save_weights
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.base import move
from stvit_cli.tasks.classification.task import ClassificationEvaluator, ClassificationTask

DIGITS = ("model.name=stvit-nano", "data.kind=digits", "data.image_size=32", "data.num_workers=0", "train.device=cpu")


def build(*overrides: str, weights: Path | None = None) -> ClassificationTask:
    task = tasks.build(recipe_io.from_text("name: test", [*DIGITS, *overrides]), weights=weights)
    assert isinstance(task, ClassificationTask)
    return task


def batch_of(task: ClassificationTask, count: int) -> dict[str, torch.Tensor]:
    return task.collate([task.train_set[SampleKey(index, 0, 0)] for index in range(count)])


class Fixed(nn.Module):
    """Gives the logits of the images' own first values, so that a test knows them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_the_initial_weights_follow_from_the_seed() -> None:
    weights = [build(f"train.seed={seed}").model.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])


def test_the_loss_without_mixing_is_smoothed_cross_entropy() -> None:
    task = build("augment.label_smoothing=0.1")
    batch = batch_of(task, 3)
    logits = task.model.eval()(batch["image"])
    expected = -(torch.full((3, 10), 0.01) + 0.9 * F.one_hot(batch["target"], 10)) * logits.log_softmax(1)
    torch.testing.assert_close(task.training_loss(task.model, batch)["loss"], expected.sum(1).mean())


def test_mixing_follows_from_seed_step_and_micro_batch() -> None:
    task = build("augment.mixup=0.8", "augment.cutmix=1.0", "augment.label_smoothing=0.1")
    assert task.batch_multiple == 2
    losses = {}
    for step, micro_batch in ((4, 0), (4, 1), (4, 0), (5, 0)):
        seed_micro_batch(0, step, micro_batch)
        loss = task.training_loss(task.model.eval(), batch_of(task, 4))["loss"].item()
        assert losses.setdefault((step, micro_batch), loss) == loss
        np.random.rand(step)
    assert len(set(losses.values())) == 3


def test_mixed_targets_keep_their_sum_and_follow_the_images() -> None:
    task = build("augment.mixup=0.8", "augment.label_smoothing=0.0")
    assert task.mixup is not None
    np.random.seed(0)
    images, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    mixed, soft = task.mixup(images.clone(), targets)
    share = soft[0, 0].item()
    assert 0 < share < 1
    assert torch.allclose(soft.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed[0], share * images[0] + (1 - share) * images[3])


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.kind=bce", "loss.bce_target_thresh=0.2"],
        ["loss.kind=focal"],
        ["data.class_weights=balanced"],
        ["loss.kind=bce", "data.class_weights=balanced"],
    ],
)
@pytest.mark.parametrize("mixing", [[], ["augment.mixup=0.8", "augment.cutmix=1.0"]])
def test_every_loss_goes_with_smoothing_and_mixing(overrides: list[str], mixing: list[str]) -> None:
    task = build("augment.label_smoothing=0.1", *overrides, *mixing)
    plain = build("augment.label_smoothing=0.1", *mixing)
    losses = []
    for each in (task, plain):
        seed_micro_batch(0, 0, 0)
        losses.append(each.training_loss(each.model.eval(), batch_of(each, 4))["loss"])
    assert losses[0].isfinite()
    assert losses[0].requires_grad
    assert losses[0] != losses[1]


def test_balanced_sampling_reaches_the_engine() -> None:
    assert build().class_balance is None
    balance = build("data.balance=0.5").class_balance
    assert balance is not None
    assert (balance.strength, len(balance.targets)) == (0.5, 1437)


def test_no_weight_decay_on_one_dimensional_weights() -> None:
    task = build()
    groups = task.param_groups(0.05, None)
    assert sum(len(group["params"]) for group in groups) == len(list(task.model.parameters()))
    for group in groups:
        assert group["lr_scale"] == 1.0
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.05) for p in group["params"])


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_layer_scale_decays_where_the_recipe_says_so(layer_decay: float | None) -> None:
    """As in the authors' code, where the gammas have four dimensions: the same groups but for them."""

    def settings_of(*overrides: str) -> dict[str, tuple[float, float]]:
        with torch.device("meta"):
            task = build()
            task.recipe = recipe_io.from_text("name: test", [*DIGITS, *overrides])
            task.model = create_model("stvit-b", num_classes=10)
        groups = task.param_groups(0.05, layer_decay)
        found = {parameter: (group["weight_decay"], group["lr_scale"]) for group in groups for parameter in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(found) == len(list(task.model.parameters()))
        return {name: found[parameter] for name, parameter in task.model.named_parameters()}

    before, after = settings_of(), settings_of("optim.decay_layer_scale=true")
    gammas = {name for name in before if name.endswith(".gamma")}
    assert len(gammas) == 2 * (14 + 6)
    assert {before[name][0] for name in gammas} == {0.0}
    assert after == before | {name: (0.05, before[name][1]) for name in gammas}


def test_the_paper_s_recipes_decay_layer_scale_and_a_recipe_of_before_does_not() -> None:
    assert all(recipe_io.load(name).optim.decay_layer_scale for name in ("deit300", "finetune384"))
    assert not recipe_io.from_text("name: test").optim.decay_layer_scale


@pytest.mark.parametrize(("classes", "there"), [(3, False), (5, False), (6, True)])
def test_top5_is_there_for_more_than_five_classes(classes: int, there: bool) -> None:
    evaluator = ClassificationEvaluator()
    evaluator.update(
        Fixed(), {"image": torch.rand(4, classes), "target": torch.zeros(4, dtype=torch.long), "index": torch.arange(4)}
    )
    empty = ClassificationEvaluator().state()  # of a process without an image
    assert ("top5" in dict(evaluator.compute([empty, evaluator.state()]))) == there


def test_layer_decay_by_depth() -> None:
    """Stem, seven blocks with the downsamplings at their heads, projection and classifier: the factor grows with depth."""
    task = build()
    groups = task.param_groups(0.05, 0.5)
    scale = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == len(list(task.model.parameters()))
    by_name = {name: scale[parameter] for name, parameter in task.model.named_parameters()}
    ordered = [
        by_name["stem.0.conv.weight"],
        by_name["stages.0.blocks.0.attn.qkv.weight"],
        by_name["stages.1.blocks.0.attn.qkv.weight"],
        by_name["stages.1.blocks.1.attn.qkv.weight"],
        by_name["stages.3.blocks.0.attn.qkv.weight"],
        by_name["head.weight"],
    ]
    assert ordered == sorted(set(ordered))
    assert ordered[-1] == 1.0
    assert ordered[3] / ordered[2] == 2.0


def test_the_evaluator_counts_ranks_and_breaks_ties_by_the_class() -> None:
    logits = torch.tensor([[0.0, 3, 2, 1, 0.5, 0.4], [0.0, 3, 2, 1, 0.5, 0.4], [0.0, 3, 2, 1, 0.5, 0.4], [1.0, 1, 0, 0, 0, 0]])
    targets = torch.tensor([1, 5, 0, 1])
    whole = ClassificationEvaluator()
    whole.update(Fixed(), {"image": logits, "target": targets, "index": torch.arange(4)})
    parts = [ClassificationEvaluator(), ClassificationEvaluator()]
    for part, index in zip(parts, ([0, 2], [1, 3]), strict=True):
        part.update(Fixed(), {"image": logits[index], "target": targets[index], "index": torch.tensor(index)})
    metrics = dict(whole.compute([whole.state()]))
    assert metrics["num_images"] == 4
    assert metrics["top1"] == 25.0
    assert metrics["top5"] == 75.0
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, targets).item())
    assert dict(whole.compute([part.state() for part in parts])) == metrics


def test_an_evaluation_keeps_no_scores_of_all_classes() -> None:
    evaluator = ClassificationEvaluator()
    evaluator.update(
        Fixed(), {"image": torch.rand(8, 1000), "target": torch.zeros(8, dtype=torch.long), "index": torch.arange(8)}
    )
    assert sum(part.untyped_storage().nbytes() for part in evaluator.parts[0]) <= 100 * 8


def test_weights_with_other_classes_leave_the_head_new(tmp_path: Path) -> None:
    source = build("train.seed=1")
    info = source.weights_info()
    save_weights(tmp_path / "same.safetensors", source.model, info)
    same = build(weights=tmp_path / "same.safetensors")
    assert all(torch.equal(tensor, same.model.state_dict()[name]) for name, tensor in source.model.state_dict().items())

    named = info.__class__(**{**info.__dict__, "class_names": tuple("abcdefghij")})
    save_weights(tmp_path / "renamed.safetensors", source.model, named)
    renamed = build(weights=tmp_path / "renamed.safetensors")
    assert torch.equal(renamed.model.stem[0].conv.weight, source.model.stem[0].conv.weight)
    assert not torch.equal(renamed.model.head.weight, source.model.head.weight)
    assert "The classifier is new: the file's 10 classes have other names." in renamed.notes()

    source.model.reset_classifier(7)
    save_weights(tmp_path / "seven.safetensors", source.model, info)
    seven = build(weights=tmp_path / "seven.safetensors")
    assert seven.model.head.weight.shape[0] == 10
    assert any("another number of classes" in note for note in seven.notes())


def test_unreadable_images_are_skipped_and_counted_where_the_recipe_says_so(
    image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for path in image_folder.rglob("*.png"):
        target = data / path.relative_to(image_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    broken = data / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    common = [word for word in DIGITS if word != "data.kind=digits"]
    settings = [*common, "data.kind=imagefolder", f"data.dir={data}", "train.global_batch_size=16", "schedule.epochs=2"]
    recipe = recipe_io.from_text("name: test", [*settings, "data.unreadable=skip"])
    task = tasks.build(recipe)
    assert any("3.png" in problem for problem in task.data_problems())
    engine.fit(task, recipe, tmp_path / "run")
    rows = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert '"skipped": 2' in rows[-1]
    assert f"1 unreadable, replaced by other images: {broken}" in capfd.readouterr().err

    recipe = recipe_io.from_text("name: test", settings)
    with pytest.raises(UserError, match=r"3\.png.*(\n.*)*data.unreadable=skip"):
        engine.fit(tasks.build(recipe), recipe, tmp_path / "stopped")


def test_a_dry_run_tells_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["train.global_batch_size=16", "train.batch_size_per_device=8", "schedule.epochs=10", "schedule.warmup_epochs=2"]
    recipe = recipe_io.from_text("name: test", [*DIGITS, *overrides])
    found = engine.dry_run(tasks.build(recipe), recipe)
    assert (found["grad_accum_steps"], found["steps_per_epoch"], found["steps"]) == (2, 89, 890)
    assert found["lr_by_epoch"]["0"] == 1e-6
    assert found["lr_by_epoch"]["2"] < 1e-3
    assert found["data_problems"] == []
    assert found["params"] == sum(p.numel() for p in build().model.parameters())
    said = "\n".join(found["summary"])
    assert capsys.readouterr().out == ""
    for words in ("16 = 8 per device x 2 accumulated", "890 steps", "1437 images to train on", "nothing wrong was found"):
        assert words in said
    assert list(tmp_path.iterdir()) == []


def test_moving_a_batch_keeps_what_is_no_tensor() -> None:
    batch = {"image": torch.zeros(2, 3, 4, 4), "more": [torch.ones(2), "name"], "pair": (torch.ones(1), None)}
    moved = move(batch, torch.device("cpu"))
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert moved["more"][1] == "name"
    assert moved["pair"][1] is None
    assert isinstance(moved["pair"], tuple)
