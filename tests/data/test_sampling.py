"""What is seen when: properties of the order, of its cut into micro-batches, and of the draws that must never change."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from stvit_cli.data.sampling import ClassBalance, SampleKey, TrainBatches, derive_seed, hold_out, sample_order
from stvit_cli.errors import UserError


def batches(num_samples: int = 103, **changes: int) -> list[list[SampleKey]]:
    settings = {"seed": 3, "repeats": 1, "global_batch_size": 12, "micro_batch_size": 2, "rank": 0, "world_size": 1}
    settings |= {"start_step": 0, "num_steps": 20}
    made = TrainBatches(num_samples, **(settings | changes))
    assert len(made) == len(list(made))
    return list(made)


def test_seeds_and_orders_are_the_same_for_ever() -> None:
    """Pinned: a change here makes old runs impossible to resume."""
    assert derive_seed(0, "order", 1) == 5907079795245302533
    assert [key.index for key in sample_order(8, epoch=1, seed=0, repeats=1)] == [2, 1, 6, 7, 5, 3, 4, 0]


def test_a_seed_depends_on_each_part_on_their_order_and_on_their_kind() -> None:
    seeds = [derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), (1, "2"), ("1", 2), (1, 2, 0), ("1\0int:2",), ()]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    epochs = [sample_order(50, epoch, seed, 1) for epoch in range(3) for seed in range(2)]
    for keys in epochs:
        assert sorted(key.index for key in keys) == list(range(50))
        assert {key.view for key in keys} == {0}
    assert len({tuple(key.index for key in keys) for keys in epochs}) == len(epochs)


@pytest.mark.parametrize(("num_samples", "repeats"), [(30, 3), (31, 3), (100, 7), (5, 9)])
def test_repeated_augmentation_shows_fewer_images_in_several_views(num_samples: int, repeats: int) -> None:
    keys = sample_order(num_samples, epoch=2, seed=0, repeats=repeats)
    assert len(keys) == len(set(keys)) == num_samples
    counts = Counter(key.index for key in keys)
    assert len(counts) == math.ceil(num_samples / repeats)
    assert sorted(counts.values())[1:] == [repeats] * (len(counts) - 1)  # only the last image may be cut short
    plain = [key.index for key in sample_order(num_samples, epoch=2, seed=0, repeats=1)]
    assert list(dict.fromkeys(key.index for key in keys)) == plain[: len(counts)]


def test_the_processes_get_what_deits_sampler_would_deal_them() -> None:
    """Its rule, written independently: every image three times in a row, process r takes every W-th sample from the r-th on."""
    world_size, batch_size, num_samples = 4, 6, 24 * 5
    order = [key.index for key in sample_order(num_samples, epoch=0, seed=3, repeats=1)]
    tripled = torch.tensor(order).repeat_interleave(3)[:num_samples]
    for rank in range(world_size):
        dealt = tripled[rank::world_size].reshape(-1, batch_size).tolist()
        sizes = {"repeats": 3, "global_batch_size": 24, "micro_batch_size": 6, "num_steps": 5}
        ours = batches(num_samples, rank=rank, world_size=world_size, **sizes)
        assert [[key.index for key in batch] for batch in ours] == dealt
        assert all(len({key.index for key in batch}) == batch_size for batch in ours)


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_and_accumulation_see_the_same_micro_batches(repeats: int) -> None:
    alone = batches(repeats=repeats)
    assert len(alone) == 20 * 6
    for world_size in (2, 3, 6):
        shares = [batches(repeats=repeats, rank=rank, world_size=world_size) for rank in range(world_size)]
        together = [batch for group in zip(*shares, strict=True) for batch in group]
        assert together == alone


def test_a_run_taken_up_at_any_step_goes_on_as_the_unbroken_one() -> None:
    whole = batches(repeats=2)
    for start in (0, 1, 7, 8, 15, 20):
        assert batches(repeats=2, start_step=start) == whole[start * 6 :]


def test_steps_cut_epochs_and_leave_out_what_fills_no_step() -> None:
    steps_per_epoch = 103 // 12
    for epoch in range(2):
        seen = [key for batch in batches(num_steps=2 * steps_per_epoch) for key in batch if key.epoch == epoch]
        assert len(seen) == len(set(seen)) == steps_per_epoch * 12
        assert set(seen) <= set(sample_order(103, epoch, 3, 1))


def test_a_set_smaller_than_one_step_is_refused_with_the_largest_batch() -> None:
    with pytest.raises(UserError, match=r"global_batch_size is 12.*only 11 images.*at most 11"):
        batches(11)


def test_what_is_held_out_depends_on_the_names_alone() -> None:
    names = [f"cat/{number}.jpg" for number in range(200)]
    chosen = {name for name, held in zip(names, hold_out(names, 40), strict=True) if held}
    assert len(chosen) == 40
    again = {name for name, held in zip(names[::-1], hold_out(names[::-1], 40), strict=True) if held}
    assert again == chosen
    more = names + [f"cat/new{number}.jpg" for number in range(20)]
    wider = {name for name, held in zip(more, hold_out(more, 44), strict=True) if held}
    assert len(wider & chosen) >= 36


def unbalanced(strength: float) -> ClassBalance:
    """Three classes of 90, 9 and 1 images in one order, and a number that no image has."""
    return ClassBalance(np.random.RandomState(0).permutation([0] * 90 + [1] * 9 + [3]), strength)


@pytest.mark.parametrize(("strength", "quotas"), [(1.0, [34, 33, 0, 33]), (0.5, [70, 22, 0, 8]), (0.0, [90, 9, 0, 1])])
def test_balanced_sampling_gives_every_class_its_quota_in_every_epoch(strength: float, quotas: list[int]) -> None:
    balance = unbalanced(strength)
    orders = [sample_order(100, epoch, 3, 1, balance) for epoch in range(3)]
    for keys in orders:
        assert len(keys) == len(set(keys)) == 100, "an image that comes again is another view"
        assert np.bincount([balance.targets[key.index] for key in keys]).tolist() == quotas
        times = Counter(key.index for key in keys)
        for target in range(4):
            of_class = [times[index] for index in np.flatnonzero(balance.targets == target).tolist()]
            assert not of_class or max(of_class) - min(of_class) <= 1, "an image comes again after all others of its class"
    assert len({tuple(key.index for key in keys) for keys in orders}) == 3
    assert orders[1] == sample_order(100, 1, 3, 1, balance)


def test_balanced_views_are_views_of_repeated_augmentation_too() -> None:
    keys = sample_order(101, 0, 0, 3, unbalanced(1.0))
    assert len(keys) == len(set(keys)) == 101


def test_balanced_batches_do_not_depend_on_processes_and_resume_anywhere() -> None:
    targets = np.arange(103) % 7 == 0
    common = {
        "seed": 3,
        "repeats": 1,
        "global_batch_size": 12,
        "num_steps": 20,
        "balance": ClassBalance(targets.astype(int), 1.0),
    }

    def dealt(world: int, start_step: int = 0) -> list[list[SampleKey]]:
        ranks = [
            iter(TrainBatches(103, rank=rank, world_size=world, micro_batch_size=2, start_step=start_step, **common))  # type: ignore[arg-type]
            for rank in range(world)
        ]
        return [next(ranks[k % world]) for _ in range(start_step, 20) for k in range(6)]

    assert dealt(1) == dealt(2) == dealt(3)
    assert dealt(2, start_step=11) == dealt(1)[11 * 6 :]


@pytest.mark.parametrize("num_samples", [12, 13, 23, 24, 25])
@pytest.mark.parametrize("repeats", [1, 3])
def test_a_filled_epoch_has_every_image_and_no_sample_twice(num_samples: int, repeats: int) -> None:
    steps = math.ceil(num_samples / 12)
    made = batches(num_samples, drop_last=False, num_steps=2 * steps, repeats=repeats)
    for epoch in range(2):
        keys = [key for batch in made[epoch * steps * 6 : (epoch + 1) * steps * 6] for key in batch]
        assert len(keys) == 12 * steps
        assert len(set(keys)) == len(keys), "an image that fills the last step comes in another view"
        assert set(sample_order(num_samples, epoch, 3, repeats)) <= set(keys)
        again = Counter(key.index for key in keys)
        assert max(again.values()) <= 2 * repeats


def test_filled_epochs_are_shared_by_processes_and_resumed_within() -> None:
    alone = batches(31, drop_last=False, num_steps=7)
    for world_size in (2, 3):
        shares = [batches(31, drop_last=False, num_steps=7, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert [batch for group in zip(*shares, strict=True) for batch in group] == alone
    for start in range(8):
        assert batches(31, drop_last=False, num_steps=7, start_step=start) == alone[start * 6 :]


def test_dropped_epochs_are_as_they_were() -> None:
    """Pinned: a filled epoch begins with the steps of a dropped one, so older runs resume."""
    assert batches(31, num_steps=2) == batches(31, drop_last=False, num_steps=2)
