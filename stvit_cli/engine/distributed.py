"""The processes of a run: a single one, or those that torchrun started, connected by gloo (CPU) or NCCL (GPU)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from stvit_cli.engine.liveness import PATIENCE, Liveness
from stvit_cli.errors import UserError
from stvit_cli.utils.environment import local_rank, require_group, restart_count, world_size
from stvit_cli.utils.text import first_line

_liveness_of: WeakKeyDictionary[dist.ProcessGroup, Liveness] = WeakKeyDictionary()
"""Of the group that this process is in, if any: one that its caller left and joined again is another group."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The group of processes and this one's rank in it. With ``size`` 1 no method communicates.

    Attributes:
        liveness: with which processes wait for each other's work; None with ``size`` 1.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    liveness: Liveness | None = None

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
        """Run ``work`` on rank 0 and return its result everywhere; the others wait, as long as it takes.

        Raises:
            UserError: on rank 0, where ``work`` raised one; the other processes then exit with code 2 and no message.
        """
        if self.size == 1:
            return work()
        result: Any = None
        failure: UserError | None = None
        with nullcontext() if self.liveness is None else self.liveness.announced(self.is_main):
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

        Called by all processes at the same point; the function, while rank 0 is in the group.
        """
        return itertools.count().__next__ if self.liveness is None else self.liveness.counter()

    def working(self) -> AbstractContextManager[None]:
        """Return a context in which this process works on its own share, before it comes to `meet`; all processes enter it."""
        return nullcontext() if self.liveness is None else self.liveness.working()

    def meet(self) -> None:
        """Wait until all processes have left `working`, as long as one of them works. Raises UserError where one has ended."""
        if self.liveness is not None:
            self.liveness.meet()


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
        yield World(device, dist.get_rank(), size, local, _liveness(device))
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
        yield World(device, dist.get_rank(), size, local, _liveness(device))
    finally:
        _liveness_of.clear()
        dist.destroy_process_group()


def _liveness(device: torch.device) -> Liveness:
    """Return what the joined processes wait for each other with; made once for each group."""
    group = dist.group.WORLD
    assert group is not None
    if group not in _liveness_of:
        world = World(device, dist.get_rank(), dist.get_world_size())
        _liveness_of[group] = Liveness.of_group(world.rank, world.size, world.broadcast)
    return _liveness_of[group]


def was_restarted() -> bool:
    """Return whether torchrun restarted these processes after one of them failed (elastic restart)."""
    return restart_count() > 0
