"""Properties of the order of training, for any sizes: ranks, workers and accumulation partition the same steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stvit_cli.data.sampling import SampleKey, TrainBatches, sample_order


class Sizes(NamedTuple):
    num_samples: int
    micro_batch_size: int
    world_size: int
    accumulation: int
    repeats: int
    seed: int
    num_steps: int

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.world_size * self.accumulation


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    micro, world, accumulation = (draw(st.integers(1, 5)) for _ in range(3))
    step = micro * world * accumulation
    num_samples = draw(st.integers(step, 3 * step + 7))
    return Sizes(
        num_samples, micro, world, accumulation, draw(st.integers(1, 4)), draw(st.integers(0, 2**31)), draw(st.integers(1, 7))
    )


def micro_batches(chosen: Sizes, rank: int = 0, world_size: int = 1, start_step: int = 0) -> list[list[SampleKey]]:
    made = TrainBatches(
        chosen.num_samples,
        seed=chosen.seed,
        repeats=chosen.repeats,
        global_batch_size=chosen.global_batch_size,
        micro_batch_size=chosen.micro_batch_size,
        rank=rank,
        world_size=world_size,
        start_step=start_step,
        num_steps=chosen.num_steps,
    )
    batches = list(made)
    assert len(batches) == len(made)
    return batches


@given(sizes())
def test_ranks_partition_every_step(chosen: Sizes) -> None:
    """Every micro-batch goes to exactly one process, and W processes see what one that accumulates W times as often sees."""
    by_rank = [micro_batches(chosen, rank, chosen.world_size) for rank in range(chosen.world_size)]
    assert len({len(batches) for batches in by_rank}) == 1, "all processes do the same number of forward passes"
    assert [batch for turn in zip(*by_rank, strict=True) for batch in turn] == micro_batches(chosen)


@given(sizes())
def test_steps_partition_the_epoch(chosen: Sizes) -> None:
    """The samples of an epoch's steps are the first of its order, each once; fewer than one step is left over."""
    steps_per_epoch = chosen.num_samples // chosen.global_batch_size
    per_step = chosen.global_batch_size // chosen.micro_batch_size
    batches = micro_batches(chosen)
    for epoch in range(chosen.num_steps // steps_per_epoch):  # the complete ones
        start = epoch * steps_per_epoch * per_step
        seen = [key for batch in batches[start : start + steps_per_epoch * per_step] for key in batch]
        order = sample_order(chosen.num_samples, epoch, chosen.seed, chosen.repeats)
        assert len(set(seen)) == len(seen)
        assert set(seen) == set(order[: len(seen)])
        assert len(order) - len(seen) < chosen.global_batch_size


@given(sizes(), st.data())
def test_start_step_skips_and_changes_nothing(chosen: Sizes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, chosen.num_steps))
    rank = data.draw(st.integers(0, chosen.world_size - 1))
    complete = micro_batches(chosen, rank, chosen.world_size)
    assert micro_batches(chosen, rank, chosen.world_size, start) == complete[start * chosen.accumulation :]


@given(st.integers(1, 60), st.integers(0, 5), st.integers(1, 7))
def test_order_shows_every_view_of_an_image_once(num_samples: int, epoch: int, repeats: int) -> None:
    keys = sample_order(num_samples, epoch, 0, repeats)
    assert len(keys) == len(set(keys)) == num_samples
    images, counts = np.unique([key.index for key in keys], return_counts=True)
    assert images.min() >= 0
    assert images.max() < num_samples
    assert len(images) == -(-num_samples // repeats)
    assert counts.max() <= repeats
