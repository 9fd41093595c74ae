"""Data loaders: batches made by worker processes, whose number never changes the batches.

A ``UserError`` in a worker (an unreadable image) is raised by the loader too, without the worker's traceback. A worker that dies
is reported with the likely causes. Workers leave signals to their parent.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from stvit_cli.data.byte_images import without_bytes
from stvit_cli.data.sampling import SampleKey, TrainBatches, derive_seed, sample_order
from stvit_cli.data.worker_deaths import deaths_kept_back, deaths_raised, explain_dead_worker
from stvit_cli.errors import UserError
from stvit_cli.utils.cpus import threads_of_process

__all__ = [
    "Loader",
    "SampleKey",
    "TrainBatches",
    "build_eval_loader",
    "build_train_loader",
    "derive_seed",
    "sample_order",
    "seeded",
]

Collate = Callable[[list[Any]], Any]
WorkerUse = Literal["never", "spare cores", "always"]


@runtime_checkable
class MakesBatches(Protocol):
    """A data set that can make batches itself.

    Attributes:
        makes_batches: it does; otherwise it gives items alone.
        is_in_memory: it keeps its images in memory.
        workers: who makes the batches of images in memory: never workers, workers where cores are spare, or always.
    """

    @property
    def makes_batches(self) -> bool: ...

    @property
    def is_in_memory(self) -> bool: ...

    @property
    def workers(self) -> WorkerUse: ...

    def batch(self, keys: Sequence[Any]) -> Any:
        """Return what collating the items of the keys gives; images may be `ByteImages`."""
        ...


BESIDE_THE_STEP = 19
"""Niceness of workers that share cores with a CPU step. The step's threads wait for one another, so preempting one delays all.
On two cores of an AMD EPYC stvit-s trains at 0.94 of the speed of the step alone; with nice workers at 0.95 to 0.97."""

FEW_CORES = 4
"""Up to this number, the training process makes batches of images in memory by itself. Measured on two cores."""

SMALL = 1 << 16
"""Bytes of a tensor up to which a worker hands it over by value."""

_CPU = torch.device("cpu")
_END = object()

GRACE_S = 60
"""Seconds that a worker keeps running after SIGTERM, in which its parent ends the step and saves."""


_IGNORED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows has the first alone
_HELD = (*_IGNORED, signal.SIGTERM)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed random, numpy and torch's CPU generator within a ``with`` block, and restore their states after it.

    timm's and torchvision's transforms draw from these three. The states are restored so that a loader without workers leaves
    the generators of the training process unchanged, as one with workers does; workers skip it.

    >>> with seeded(0):
    ...     first = torch.rand(())
    >>> with seeded(0):
    ...     print(torch.rand(()) == first)
    tensor(True)
    """
    with generators_kept():
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches for the GPUs too
        yield


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the states of random, numpy and torch's CPU generator after a ``with`` block; workers skip it."""
    before = None if get_worker_info() else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    try:
        yield
    finally:
        if before is not None:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])


def build_train_loader(
    dataset: Dataset[Any], batches: TrainBatches, collate: Collate, num_workers: int, pin_memory: bool
) -> Loader:
    """Return the loader of a training set, which yields one collated batch for each of ``batches``, in order.

    Args:
        dataset: indexed by `SampleKey`.
        batches: the micro-batches of this process.
        collate: makes a batch of a list of items.
        num_workers: number of worker processes, limited to the number of usable CPUs; 0: load in this process.
        pin_memory: the step runs on a GPU. On a CPU, workers run at a lower priority than the step.
    """
    return Loader(dataset, batches, collate, num_workers, pin_memory, niceness=0 if pin_memory else BESIDE_THE_STEP)


def build_eval_loader(
    dataset: Dataset[Any],
    collate: Collate,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """Return the loader of one process's part of a validation set: indices rank, rank + world_size, ...

    Nothing is padded or repeated, so the parts may differ in length by one, and a part may be empty.

    Args:
        dataset: indexed by int.
        collate: makes a batch of a list of items.
        batch_size: largest number of items in a batch.
        num_workers: number of worker processes, limited to the number of usable CPUs; 0: load in this process.
        rank: index of the process.
        world_size: number of processes.
        pin_memory: the model runs on a GPU.
    """
    share = range(rank, len(dataset), world_size)  # type: ignore[arg-type]  # all sets here have a length; Dataset does not declare it
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    return Loader(dataset, batches, collate, num_workers, pin_memory)


class Loader:
    """An iterable of batches. Each iteration starts its own workers and stops them at its end (an unfinished one by ``close()``).

    Raises, while iterating:
        UserError: one raised by the data set or by ``collate``; or a worker died (the message says how, and what helps).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: Iterable[Sequence[Any]],
        collate: Collate,
        num_workers: int,
        pin_memory: bool,
        niceness: int = 0,
    ) -> None:
        self.on_gpu = pin_memory
        num_workers = useful_workers(dataset, num_workers, on_gpu=pin_memory)
        self.loader: DataLoader[Any] = DataLoader(
            _Batches(dataset, collate),
            sampler=batches,  # what it yields is handed to the data set as it is
            batch_size=None,
            collate_fn=_identity,
            num_workers=num_workers,
            # Python 3.14 would start each worker as a new interpreter that imports torch: seconds, at every evaluation.
            multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            pin_memory=pin_memory and torch.cuda.is_available(),
            worker_init_fn=partial(_start_worker, niceness),
            generator=torch.Generator(),  # DataLoader draws a seed we do not use; not from the global generator
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Generator[Any, None, None]:
        with deaths_kept_back():
            yield from self._batches()

    def _batches(self) -> Generator[Any, None, None]:
        iterator: Iterator[Any] | None = None
        try:
            with _signals_held():
                iterator = iter(self.loader)
            while True:
                with deaths_raised(iterator):
                    batch = next(iterator, _END)
                if batch is _END:
                    return
                if isinstance(batch, _Refused):
                    raise UserError(batch.message)
                # A GPU normalizes what it has been sent: see `tasks.base.move`.
                yield _as_tensors(batch) if self.on_gpu else without_bytes(_as_tensors(batch), _CPU)
        except (RuntimeError, ConnectionError, EOFError) as error:
            explained = explain_dead_worker(error) if self.loader.num_workers else None
            if explained is None:
                raise
            raise explained from None
        finally:
            # An exception's frames keep torch's iterator alive; the workers of a later loader would inherit it and, on collecting
            # it as garbage, wait for processes that are not theirs. So it ends here, and not whenever it is collected.
            end = getattr(iterator, "_shutdown_workers", None)
            if end is not None:
                end()


def usable_workers(num_workers: int) -> int:
    """Return ``num_workers``, or this process's share of the CPUs that may be used, if that is less; see `utils.cpus`."""
    return min(num_workers, threads_of_process())


def useful_workers(dataset: Dataset[Any], num_workers: int, *, on_gpu: bool = False) -> int:
    """Return the number of workers for a data set: `usable_workers`, or none where they would only disturb the training process.

    The workers of a run on a CPU share its cores with the threads of the step, and get to work when these wait for them. With few
    cores, a batch of images in memory is made sooner than a worker hands it over.

    Args:
        dataset: of which batches are made.
        num_workers: ``data.num_workers``.
        on_gpu: the step runs on a GPU, so that the cores are free.
    """
    num_workers = usable_workers(num_workers)
    use = dataset.workers if isinstance(dataset, MakesBatches) and dataset.is_in_memory else "always"
    are_spare = on_gpu or threads_of_process() > FEW_CORES
    return num_workers if use == "always" or (use == "spare cores" and are_spare) else 0


@dataclass(frozen=True)
class _Refused:
    """What a worker returns in place of a batch when a UserError was raised."""

    message: str


class _Batches(Dataset[Any]):
    """A data set of complete batches: DataLoader rewrites exceptions that cross processes, but not values."""

    def __init__(self, dataset: Dataset[Any], collate: Collate) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, keys: Sequence[Any]) -> Any:
        try:
            if isinstance(self.dataset, MakesBatches) and self.dataset.makes_batches:
                return _by_value(self.dataset.batch(keys)) if get_worker_info() else self.dataset.batch(keys)
            return self.collate([self.dataset[key] for key in keys])
        except UserError as error:
            return _Refused(str(error))


def _by_value(batch: Any) -> Any:
    """Return a batch with its small tensors as arrays: in shared memory each would be a file, which costs more than a copy."""
    if not isinstance(batch, dict):
        return batch
    return {key: value.numpy() if isinstance(value, Tensor) and value.nbytes <= SMALL else value for key, value in batch.items()}


def _as_tensors(batch: Any) -> Any:
    if not isinstance(batch, dict):
        return batch
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}


def _identity(batch: Any) -> Any:
    return batch


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back while workers start: the first one would end a worker that has no handlers of its own yet."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where signals do not go to groups of processes
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(niceness: int, _worker_id: int) -> None:
    """Signals to a whole group (Ctrl-C, Slurm's) must not end the workers under a parent that still ends its step."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGTERM, _keep_running_for_a_while)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    if hasattr(os, "nice"):
        os.nice(niceness)


def _keep_running_for_a_while(signal_number: int, _frame: FrameType | None) -> None:
    """Answer a first SIGTERM with an alarm clock, so that a worker without a parent ends too; a second one ends it at once."""
    signal.signal(signal_number, signal.SIG_DFL)
    signal.alarm(GRACE_S)
