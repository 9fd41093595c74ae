"""Block shuffling: every image once, shards in random order, a window of images within."""

from __future__ import annotations

import numpy as np
import pytest

from stvit_cli.data.sampling import ShuffleBlocks, TrainBatches, sample_order

STARTS = np.array([0, 40, 40, 70, 100])


def order(epoch: int, window: int, seed: int = 0, repeats: int = 1) -> list[int]:
    return [key.index for key in sample_order(100, epoch, seed, repeats, blocks=ShuffleBlocks(STARTS, window))]


@pytest.mark.parametrize("window", [1, 7, 40, 100, 1000])
def test_an_epoch_has_every_image_once_and_another_has_another_order(window: int) -> None:
    assert sorted(order(0, window)) == list(range(100))
    assert order(0, window) == order(0, window)
    assert len({tuple(order(epoch, window, seed)) for epoch in range(3) for seed in range(2)}) > 1


def test_an_image_comes_within_a_window_of_where_its_shard_is() -> None:
    in_order, shuffled = order(3, 1), order(3, 16)
    assert {tuple(in_order[first : first + 30]) for first in (0, 30, 40, 60, 70)} & {tuple(range(70, 100))}
    for first in range(0, 100, 16):
        assert sorted(shuffled[first : first + 16]) == sorted(in_order[first : first + 16])


def test_views_of_an_image_stay_together_and_processes_share_the_order() -> None:
    repeated = order(0, 16, repeats=2)
    assert repeated[::2] == repeated[1::2]
    settings = {"seed": 1, "repeats": 1, "global_batch_size": 8, "micro_batch_size": 2, "num_steps": 20}
    blocks = ShuffleBlocks(STARTS, 16)
    alone = list(TrainBatches(100, **settings, rank=0, world_size=1, start_step=5, blocks=blocks))
    shared = [list(TrainBatches(100, **settings, rank=rank, world_size=2, start_step=5, blocks=blocks)) for rank in range(2)]
    assert [batch for pair in zip(*shared, strict=True) for batch in pair] == alone
