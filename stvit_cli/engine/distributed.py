"""The processes of one run: one alone, or many that torchrun started, over gloo (CPU) or NCCL (GPU)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stvit_cli.errors import UserError
from stvit_cli.utils.environment import local_rank, require_group, restart_count, world_size

# How long a process waits for the others before it gives up: longer than writing a checkpoint or a slow evaluation takes.
PATIENCE = timedelta(minutes=30)

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among the others. With ``size`` 1 every method is the plain thing without communication."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value`` (anything that pickles) in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def exchange(self, figures: Tensor) -> Tensor:
        """Return every process's 1-d ``figures`` (N,) as (size, N) on the CPU. A step waits for the device here alone."""
        if self.size == 1:
            return figures.cpu()[None]
        rows = [torch.empty_like(figures) for _ in range(self.size)]
        dist.all_gather(rows, figures)
        return torch.stack(rows).cpu()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's ``value`` (anything that pickles)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with rank 0's, whatever their memory layout."""
        if self.size == 1:
            return
        for tensor in tensors:
            flat = tensor.detach().to(self.device).contiguous()
            dist.broadcast(flat, src=0)
            tensor.detach().copy_(flat)

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` on rank 0 and return its result everywhere; the others wait.

        Raises:
            UserError: on rank 0, where ``work`` raised one; the other processes then end without a word, with code 2.
        """
        if self.size == 1:
            return work()
        result: Any = None
        failure: UserError | None = None
        if self.is_main:
            try:
                result = work()
            except UserError as error:
                failure = error
        answer: tuple[Result, bool] = self.broadcast((result, failure is not None))
        if failure is not None:
            raise failure
        if answer[1]:
            raise SystemExit(2)
        return answer[0]


def pick_device(key: str, local_rank: int = 0) -> torch.device:
    """Return the device for ``train.device``. Raises UserError where a GPU is asked for and there is none."""
    if key == "cpu" or (key == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.device is cuda, but PyTorch finds no GPU here. Use train.device=cpu, or a PyTorch built for CUDA.")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"This machine has {torch.cuda.device_count()} GPUs, but torchrun started at least {local_rank + 1} processes on it."
        )
    return torch.device("cuda", local_rank)


@contextmanager
def joined_world(device_key: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started (by its environment), or be alone; leave them at the end.

    Inside another such block they stay joined: several runs one after the other must not join anew, for torchrun's store still
    holds the addresses of the time before.

    Raises:
        UserError: the environment does not say where the others are, or they cannot be reached.
    """
    require_group()
    local = local_rank()
    device = pick_device(device_key, local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    size = world_size()
    if size == 1:
        yield World(device)
        return
    if dist.is_initialized():
        yield World(device, dist.get_rank(), size, local)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE, device_id=device if device.type == "cuda" else None)
    except (dist.DistError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise UserError(
            f"The {size} processes cannot meet at {where} (MASTER_ADDR and MASTER_PORT): {reason}\n"
            "Look above for the message of a process that ended first; with torchrun, choose a free --master-port."
        ) from error
    try:
        yield World(device, dist.get_rank(), size, local)
    finally:
        dist.destroy_process_group()


def was_restarted() -> bool:
    """Whether torchrun started these processes again after one of them had ended (elastic restart)."""
    return restart_count() > 0
