"""Batches and epochs of a small set: what is reduced or raised, and that it does not depend on the number of processes."""

from __future__ import annotations

import pytest

from stvit_cli.engine.schedule import build_timeline
from stvit_cli.engine.small_data import fit_to_data, reduced_batch
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io


def recipe(*words: str) -> Recipe:
    return recipe_io.from_text("name: small", ["train.global_batch_size=16", "schedule.epochs=10", *words])


@pytest.mark.parametrize("num_samples", [12, 13, 25, 47, 48, 100])
def test_processes_see_the_same_reduced_batch(num_samples: int) -> None:
    sizes = {reduced_batch(num_samples, *shared) for shared in ((1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (1, 2), (2, 2), (3, 2))}
    assert len(sizes) == 1
    assert num_samples // 2 < sizes.pop() <= num_samples


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("multiple", [1, 2])
def test_reduced_batch_is_shared_evenly(world_size: int, multiple: int) -> None:
    for num_samples in range(1, 60):
        batch = reduced_batch(num_samples, world_size, multiple)
        assert batch % (world_size * multiple) == 0
        assert (batch == 0) == (num_samples < world_size * multiple)


def test_learning_rate_follows_the_reduced_batch() -> None:
    fitted, notes = fit_to_data(recipe("optim.scale_lr_from=16", "optim.lr=1e-3", "schedule.min_lr=0"), 9)
    assert fitted.train.global_batch_size == 8
    assert fitted.peak_lr == pytest.approx(5e-4)
    assert notes == ["train.global_batch_size: 16 -> 8, as there are 9 images to train on"]
    assert fit_to_data(fitted, 9) == (fitted, [])


def test_learning_rates_that_no_longer_fit_name_the_recipes_for_few_images() -> None:
    with pytest.raises(UserError, match=r"(?s)16 -> 8.*min_lr.*own-images"):
        fit_to_data(recipe("optim.scale_lr_from=16", "optim.lr=1.5e-5"), 8)


def test_enough_images_change_nothing() -> None:
    deit = recipe_io.load("deit300")
    assert fit_to_data(deit, 1_281_167, world_size=8) == (deit, [])


def test_epochs_are_raised_with_what_is_counted_in_them() -> None:
    words = ["schedule.min_steps=120", "schedule.warmup_epochs=2", "data.drop_last=false", "train.eval_every_epochs=1"]
    fitted, notes = fit_to_data(recipe(*words), 33)
    schedule = fitted.schedule
    assert (schedule.epochs, schedule.warmup_epochs, schedule.min_steps, fitted.train.eval_every_epochs) == (40, 8, None, 4)
    assert build_timeline(fitted, 33).num_steps == 120
    assert notes == ["schedule.epochs: 10 -> 40, for at least 120 steps (schedule.min_steps)"]
    assert fit_to_data(recipe(*words), 33, given={"train.eval_every_epochs"})[0].train.eval_every_epochs == 1


def test_many_images_keep_their_epochs() -> None:
    fitted, notes = fit_to_data(recipe("schedule.min_steps=120"), 1000)
    assert (fitted.schedule.epochs, fitted.schedule.min_steps, notes) == (10, None, [])
