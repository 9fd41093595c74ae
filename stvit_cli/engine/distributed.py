"""The processes of a run: a single one, or those that torchrun started, connected by gloo (CPU) or NCCL (GPU)."""

from __future__ import annotations

import itertools
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
from stvit_cli.utils.text import first_line

# Timeout of collective operations: longer than writing a checkpoint or a slow evaluation takes.
PATIENCE = timedelta(minutes=30)

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The group of processes and this one's rank in it. With ``size`` 1 no method communicates."""

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

    def exchange(self, values: Tensor) -> Tensor:
        """Return every process's 1-d ``values`` (N,) as (size, N) on the CPU. Only here a step waits for the device."""
        if self.size == 1:
            return values.cpu()[None]
        rows = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(rows, values)
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
            UserError: on rank 0, where ``work`` raised one; the other processes then exit with code 2 and no message.
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

    def shared_counter(self) -> Callable[[], int]:
        """Return a function that counts 0, 1, 2, ... across all processes: each number is returned once, to whoever asks next.

        Called by all processes at the same point. Rank 0 keeps the count in the function, and must keep that until nobody asks
        any more.

        Raises:
            UserError: rank 0 cannot be reached; the function raises it too, where rank 0 has ended.
        """
        if self.size == 1:
            return itertools.count().__next__
        host = os.environ["MASTER_ADDR"]  # of rank 0
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if self.is_main else None
        port = self.broadcast(store.port if store is not None else 0)

        def reached(call: Callable[[], Result]) -> Result:
            try:
                return call()
            except dist.DistError as error:
                raise UserError(f"Rank 0 cannot be reached at {host}:{port}, or has ended: see its message.") from error

        counted = store or reached(lambda: dist.TCPStore(host, port, is_master=False))
        return lambda: reached(lambda: int(counted.add("count", 1)) - 1)


def pick_device(key: str, local_rank: int = 0) -> torch.device:
    """Return the device for ``train.device``. Raises UserError where a GPU is asked for and there is none."""
    if key == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("train.device is mps, but PyTorch finds no Apple GPU here. Use train.device=cpu, or auto.")
        if world_size() > 1:
            raise UserError("train.device is mps, which is for one process: start it without torchrun, or use another device.")
        return torch.device("mps")
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
    """Join the process group that torchrun's environment describes, if any, and leave it at the end.

    Inside another such block the group stays as it is: consecutive runs must not join again, since torchrun's store still holds
    the previous addresses.

    Raises:
        UserError: the environment lacks the addresses, or the other processes cannot be reached.
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
        reason = first_line(error)[:200]
        raise UserError(
            f"The {size} processes cannot meet at {where} (MASTER_ADDR and MASTER_PORT): {reason}\n"
            "Look above for the message of a process that ended first; with torchrun, choose a free --master-port."
        ) from error
    try:
        yield World(device, dist.get_rank(), size, local)
    finally:
        dist.destroy_process_group()


def was_restarted() -> bool:
    """Return whether torchrun restarted these processes after one of them failed (elastic restart)."""
    return restart_count() > 0
