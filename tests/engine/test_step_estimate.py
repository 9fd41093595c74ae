"""A dry run whose step would take long is estimated by a few images; the classifier's part is said."""

from __future__ import annotations

import pytest
import torch
from helpers import toy
from torch import nn

from stvit_cli import engine
from stvit_cli.engine import dry_running, step_estimate
from stvit_cli.engine.distributed import World
from stvit_cli.engine.session import build_session
from stvit_cli.engine.step_estimate import Trial, head_cost, state_bytes, try_images


def session(task: toy.ToyTask, *words: str):
    return build_session(task, toy.recipe(*words), World(torch.device("cpu")))


def with_classes(num_classes: int) -> toy.ToyTask:
    task = toy.ToyTask()
    task.model[-1] = nn.Linear(16, num_classes)
    return task


def test_what_autograd_keeps_of_an_image_is_counted() -> None:
    made = session(toy.ToyTask(dropout=0.0), "train.ema_decay=null")
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    trial = try_images(made, 8)
    # The point (6), the hidden layer after ReLU (16), the log-softmax (7) in float32; the target in int64; scalars of the loss.
    assert 4 * (6 + 16 + 7) + 8 <= trial.activation_bytes <= 4 * (6 + 16 + 7) + 8 + 16
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_where_a_few_images_are_slow_the_smallest_batch_is_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(slow_seconds: float) -> tuple[Trial, list[int]]:
        monkeypatch.setattr(step_estimate, "SLOW_SECONDS", slow_seconds)
        made = session(toy.ToyTask(dropout=0.0), "train.ema_decay=null")
        sizes: list[int] = []
        made.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        return try_images(made, 8), sizes

    (quick, sizes), (slow, of_slow) = trial(60.0), trial(0.0)
    assert (sizes, of_slow) == ([2, 8], [2])
    assert slow.activation_bytes == pytest.approx(quick.activation_bytes, abs=16)


def test_the_state_is_sixteen_bytes_a_parameter() -> None:
    made = session(toy.ToyTask(), "train.ema_decay=null")
    params = sum(p.numel() for p in made.model.parameters())
    assert sum(state_bytes(made).values()) == 16 * params


def test_a_head_of_21_841_classes_is_counted_and_timed() -> None:
    cost = head_cost(session(with_classes(21_841)))
    assert cost is not None
    assert (cost.classes, cost.params, cost.logits_bytes) == (21_841, 17 * 21_841, 16 * 21_841)
    assert cost.seconds > 0
    assert head_cost(session(with_classes(100))) is None


def test_a_long_step_is_estimated_and_a_short_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = engine.dry_run(with_classes(1000), toy.recipe())
    assert "activation_bytes_per_image" not in taken
    assert any(line.startswith("head        1000 classes: 17,000 parameters") for line in taken["summary"])
    monkeypatch.setattr(dry_running, "SMALL_STEP", 4)
    monkeypatch.setattr(dry_running, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(dry_running, "TrainStep", None)
    found = engine.dry_run(toy.ToyTask(), toy.recipe())
    assert found["activation_bytes_per_image"] > 100
    assert found["expected_seconds"] == pytest.approx(found["step_seconds"] * found["steps"])
    assert found["global_batch_size"] == 8
    assert found["head"] is None
    assert any("pass of 2 images; no step was taken" in line for line in found["summary"])
    assert any(line.startswith("memory      about") for line in found["summary"])


def test_the_images_that_an_estimate_is_judged_by_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_running, "SMALL_STEP", 4)
    monkeypatch.setattr(dry_running, "LONG_SECONDS", 0.0)
    for slow_seconds, images in ((60.0, 8), (0.0, 2)):
        monkeypatch.setattr(step_estimate, "SLOW_SECONDS", slow_seconds)
        found = engine.dry_run(toy.ToyTask(), toy.recipe("train.batch_size_per_device=8"))
        assert found["trial_images"] == images
        assert any(f"pass of {images} images; no step was taken" in line for line in found["summary"])
