from __future__ import annotations

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from stvit_cli.engine.schedule import build_timeline, lr_at
from stvit_cli.errors import UserError
from stvit_cli.recipe import ScheduleSection
from stvit_cli.recipe import io as recipe_io

STEPS_PER_EPOCH = 1251  # of ImageNet at a batch of 1024
DEIT = ScheduleSection(kind="cosine", epochs=300, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5, update="epoch")


def timm_scheduler(t_initial: int, warmup_t: int, t_in_epochs: bool) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    settings = {"lr_min": 1e-5, "warmup_t": warmup_t, "warmup_lr_init": 1e-6, "cycle_limit": 1, "t_in_epochs": t_in_epochs}
    return optimizer, CosineLRScheduler(optimizer, t_initial=t_initial, **settings)


def test_every_epoch_of_deit300_is_timms() -> None:
    recipe = recipe_io.load("deit300")
    optimizer, scheduler = timm_scheduler(300, 5, t_in_epochs=True)
    for epoch in range(300):
        scheduler.step(epoch)
        expected = optimizer.param_groups[0]["lr"]
        for step in (epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH - 1):
            assert lr_at(step, recipe.schedule, recipe.peak_lr, STEPS_PER_EPOCH) == pytest.approx(expected, rel=1e-12)


def test_a_rate_set_at_every_step_is_timms() -> None:
    optimizer, scheduler = timm_scheduler(20 * 7, 2 * 7, t_in_epochs=False)
    schedule = DEIT.model_copy(update={"epochs": 20, "warmup_epochs": 2, "update": "step"})
    for step in range(140):
        scheduler.step_update(step)
        assert lr_at(step, schedule, 1e-3, 7) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_a_constant_rate_follows_the_warm_up() -> None:
    schedule = DEIT.model_copy(update={"kind": "constant", "warmup_epochs": 2})
    assert [lr_at(epoch * 10, schedule, 1e-3, 10) for epoch in (0, 1, 2, 299)] == pytest.approx([1e-6, 5.005e-4, 1e-3, 1e-3])


def test_poly_falls_in_a_straight_line_and_the_warm_up_leads_to_it() -> None:
    schedule = ScheduleSection(
        kind="poly", steps=160_000, warmup_steps=1500, warmup_lr=6e-11, min_lr=0.0, update="step", power=1.0
    )
    for step in (0, 1, 700, 1499, 1500, 80_000, 159_999):
        regular = 6e-5 * (1 - step / 160_000)
        warm = 1 - (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 1.0  # mmcv's factor
        assert lr_at(step, schedule, 6e-5, 1263) == pytest.approx(regular * warm, rel=1e-6, abs=1e-12)
    steeper = schedule.model_copy(update={"power": 2.0, "warmup_steps": 0, "min_lr": 1e-5})
    assert lr_at(80_000, steeper, 6e-5, 1263) == pytest.approx(1e-5 + 5e-5 / 4)


def test_a_run_and_its_evaluations_can_be_counted_in_steps() -> None:
    recipe = recipe_io.from_text("name: x", ["train.global_batch_size=10", "schedule.steps=7", "train.eval_every_steps=3"])
    timeline = build_timeline(recipe, num_samples=29)
    assert (timeline.steps_per_epoch, timeline.num_steps) == (2, 7)
    assert [step for step in range(8) if timeline.eval_due(step)] == [3, 6, 7]
    # A cosine over steps ends where one over as many epochs does.
    over_epochs = DEIT.model_copy(update={"epochs": 4, "warmup_epochs": 0})
    over_steps = over_epochs.model_copy(update={"epochs": 300, "steps": 8})
    assert [lr_at(step, over_steps, 1e-3, 2) for step in range(8)] == [lr_at(step, over_epochs, 1e-3, 2) for step in range(8)]


def test_the_timeline_counts_whole_batches() -> None:
    recipe = recipe_io.from_text("name: x", ["train.global_batch_size=10", "schedule.epochs=4", "train.eval_every_epochs=3"])
    timeline = build_timeline(recipe, num_samples=29)
    assert (timeline.steps_per_epoch, timeline.num_steps) == (2, 8)
    assert [step for step in range(9) if timeline.eval_due(step)] == [6, 8]


def test_a_batch_larger_than_the_data_is_the_users_error() -> None:
    recipe = recipe_io.from_text("name: x", ["train.global_batch_size=64"])
    with pytest.raises(UserError, match=r"only 37 images.*\n.*train.global_batch_size=32"):
        build_timeline(recipe, num_samples=37)


def test_with_kind_step_the_rate_is_a_tenth_from_each_milestone_on() -> None:
    """mmdetection's 1x: 500 iterations from a thousandth, a tenth after epochs 8 and 11."""
    schedule = ScheduleSection(kind="step", epochs=12, milestones=(8, 11), warmup_steps=500, warmup_lr=1e-7, update="epoch")
    per_epoch = 1000
    warmup = [1e-4 * (1 - (1 - step / 500) * (1 - 0.001)) for step in (0, 1, 250, 499)]
    assert [lr_at(step, schedule, 1e-4, per_epoch) for step in (0, 1, 250, 499)] == pytest.approx(warmup)
    by_epoch = [lr_at(epoch * per_epoch + 999, schedule, 1e-4, per_epoch) for epoch in range(12)]
    assert by_epoch == pytest.approx([1e-4] * 8 + [1e-5] * 3 + [1e-6])
