from __future__ import annotations

import pytest

from stvit_cli.engine.batching import plan_batches, smaller_sizes
from stvit_cli.errors import UserError
from stvit_cli.recipe import TrainSection


def section(size: int | str, whole: int = 1024) -> TrainSection:
    return TrainSection(global_batch_size=whole, batch_size_per_device=size)


@pytest.mark.parametrize(
    ("size", "processes", "micro", "accumulated"), [(128, 8, 128, 1), (64, 8, 64, 2), (256, 1, 256, 4), ("auto", 4, 256, 1)]
)
def test_the_product_is_the_global_batch(size: int | str, processes: int, micro: int, accumulated: int) -> None:
    plan = plan_batches(section(size), processes)
    assert (plan.micro_batch_size, plan.accum_steps) == (micro, accumulated)
    assert plan.micro_batch_size * plan.accum_steps * plan.world_size == 1024


def test_auto_takes_the_largest_that_fits_and_divides() -> None:
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 100

    assert plan_batches(section("auto", 480), 2, multiple=2, fits=fits).micro_batch_size == 80
    assert tried == [240, 120, 80]


def test_a_resumed_run_keeps_its_micro_batch_on_other_processes_where_it_can() -> None:
    assert [plan_batches(section("auto"), processes, before=128).micro_batch_size for processes in (1, 2, 8, 16)] == [
        *(128, 128, 128),
        64,
    ]
    assert plan_batches(section("auto"), 1, fits=lambda size: size <= 64, before=128).micro_batch_size == 64
    assert plan_batches(section(256), 1, before=128).micro_batch_size == 256  # what the user has set


def test_auto_says_so_where_nothing_fits() -> None:
    with pytest.raises(UserError, match="Not even 2 images fit"):
        plan_batches(section("auto", 64), 1, multiple=2, fits=lambda size: False)


def test_a_size_that_does_not_divide_lists_those_that_do() -> None:
    with pytest.raises(UserError) as caught:
        plan_batches(section(100), 8)
    assert "train.batch_size_per_device is 100" in str(caught.value)
    assert "128 (1 accumulated), 64 (2 accumulated), 32 (4 accumulated)" in str(caught.value)


def test_processes_that_cannot_share_list_what_could() -> None:
    with pytest.raises(UserError) as caught:
        plan_batches(section("auto"), 3)
    assert "3 processes cannot share evenly" in str(caught.value)
    assert "Numbers of processes that can: 1, 2, 4, 8" in str(caught.value)
    assert "train.global_batch_size=1023 or 1026" in str(caught.value)


def test_pairs_stay_together() -> None:
    with pytest.raises(UserError, match="2 images at a time"):
        plan_batches(section("auto", 6), 2, multiple=2)
    with pytest.raises(UserError, match=r"Sizes that do: 6 .*, 2 "):
        plan_batches(section(3, 6), 1, multiple=2)


def test_smaller_sizes_keep_the_global_batch() -> None:
    plan = plan_batches(section(12, 24), 1)
    assert smaller_sizes(plan) == [8, 6, 4, 3, 2, 1]
    assert smaller_sizes(plan, multiple=2) == [8, 6, 4, 2]
