"""How the global batch is divided: size of a micro-batch and number of accumulation steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stvit_cli.errors import UserError
from stvit_cli.recipe import TrainSection


@dataclass(frozen=True)
class BatchPlan:
    """``micro_batch_size`` x ``accum_steps`` x processes is exactly the global batch."""

    global_batch_size: int
    micro_batch_size: int
    accum_steps: int
    world_size: int

    def __str__(self) -> str:
        parts = f"{self.micro_batch_size} per device"
        if self.accum_steps > 1:
            parts += f" x {self.accum_steps} accumulated"
        if self.world_size > 1:
            parts += f" x {self.world_size} processes"
        return f"{self.global_batch_size} = {parts}"


def plan_batches(
    train: TrainSection,
    world_size: int,
    multiple: int = 1,
    fits: Callable[[int], bool] | None = None,
    before: int | None = None,
) -> BatchPlan:
    """Divide the global batch among processes and accumulation steps.

    Args:
        train: the recipe's section.
        world_size: number of processes.
        multiple: a micro-batch must be a multiple of this.
        fits: for ``batch_size_per_device: auto``, whether a micro-batch of a given size fits on the device; None: any does.
        before: for ``auto``, the size that a run had before it was resumed, which it keeps where that is possible, also with
            another number of processes: batch norm and mixup then see the same images together.

    Raises:
        UserError: it does not divide evenly; the message lists settings that do.
    """
    global_batch = train.global_batch_size
    if global_batch % (world_size * multiple):
        raise UserError(_uneven_processes(global_batch, world_size, multiple))
    per_process = global_batch // world_size
    sizes = [size for size in range(per_process, 0, -1) if per_process % size == 0 and size % multiple == 0]
    if train.batch_size_per_device == "auto":
        sizes = [size for size in sizes if size == before] + [size for size in sizes if size != before]
        size = next((size for size in sizes if fits is None or fits(size)), None)
        if size is None:
            raise UserError(
                f"Not even {min(sizes)} images fit on the device.\n"
                "Try model.checkpointing=true, train.precision=bf16, or a smaller model."
            )
    else:
        size = train.batch_size_per_device
        if size not in sizes:
            raise UserError(_uneven_micro_batches(size, sizes, per_process, train, world_size))
    return BatchPlan(global_batch, size, per_process // size, world_size)


def smaller_sizes(plan: BatchPlan, multiple: int = 1) -> list[int]:
    """Return the smaller micro-batches that keep the global batch, the largest first."""
    per_process = plan.global_batch_size // plan.world_size
    return [size for size in range(plan.micro_batch_size - 1, 0, -1) if per_process % size == 0 and size % multiple == 0]


def _uneven_processes(global_batch: int, world_size: int, multiple: int) -> str:
    step = world_size * multiple
    counts = [n for n in range(1, max(2 * world_size, 8) + 1) if global_batch % (n * multiple) == 0]
    near = [size for size in (global_batch // step * step, -(-global_batch // step) * step) if size]
    each = f", {multiple} images at a time" if multiple > 1 else ""
    processes = f"{world_size} process{'es' * (world_size > 1)}"
    lines = [f"train.global_batch_size is {global_batch}, which {processes} cannot share evenly{each}."]
    if counts:
        lines.append(f"Numbers of processes that can: {', '.join(map(str, counts))}.")
    lines.append(
        f"Use another global batch: train.global_batch_size={' or '.join(map(str, near))}"
        " (optim.scale_lr_from scales the learning rate with it)."
    )
    return "\n".join(lines)


def _uneven_micro_batches(size: int, sizes: list[int], per_process: int, train: TrainSection, world_size: int) -> str:
    near = sorted(sorted(sizes, key=lambda other: abs(other - size))[:5], reverse=True)
    options = ", ".join(f"{other} ({per_process // other} accumulated)" for other in near)
    processes = f"{world_size} process{'es' * (world_size > 1)}"
    return (
        f"train.batch_size_per_device is {size}, which does not divide "
        f"train.global_batch_size={train.global_batch_size} among {processes}.\n"
        f"Sizes that do: {options}."
    )
