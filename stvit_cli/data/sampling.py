"""Which sample is seen when: a function of the seed, the epoch and the step, so that a run can be taken up anywhere.

Nothing here holds state. The order of an epoch is cut into steps, a step into micro-batches, and the micro-batches are dealt
out to the processes, so that W processes and one process that accumulates W times see the same micro-batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stvit_cli.errors import UserError


class SampleKey(NamedTuple):
    """What a training sample is drawn from, beside the seed."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs of a key
    """Which image of the data set."""
    epoch: int
    view: int
    """Which of the image's views in this epoch; 0 without repeated augmentation."""


def derive_seed(*parts: int | str) -> int:
    """Return a seed of 63 bits that depends on every part, on nothing else, and on their order.

    The same on every machine and in every version of Python; the one source of randomness of the project.
    """
    text = "".join(f"{type(part).__name__} {len(str(part))} {part}" for part in parts)  # the length keeps parts apart
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def hold_out(names: Sequence[str], count: int) -> NDArray[np.bool_]:
    """Choose ``count`` of the names by the smallest hashes: a draw that depends on neither a seed nor the order of the names.

    Where names are added, a choice already made changes only as far as ``count`` asks for.
    """
    chosen = np.zeros(len(names), dtype=np.bool_)
    chosen[sorted(range(len(names)), key=lambda i: derive_seed("held out", names[i]))[:count]] = True
    return chosen


def _order(num_samples: int, epoch: int, seed: int, repeats: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices and the views of one epoch, each of shape (num_samples,)."""
    drawn = derive_seed(seed, "order", epoch)
    # RandomState, as its streams are frozen for good; numpy's newer generators may change with a release.
    generator = np.random.RandomState([drawn & 0xFFFFFFFF, drawn >> 32])
    images = generator.permutation(num_samples)[: -(-num_samples // repeats)]
    indices = np.repeat(images, repeats)[:num_samples]
    return indices, np.arange(num_samples) % repeats


def sample_order(num_samples: int, epoch: int, seed: int, repeats: int) -> list[SampleKey]:
    """Return the keys of one epoch in the order of training, ``num_samples`` of them.

    Without repeats a permutation of the data set. With ``repeats`` r (repeated augmentation, as in DeiT) ceil(n / r) different
    images, the r views of each one after the other, cut to n.
    """
    indices, views = _order(num_samples, epoch, seed, repeats)
    return [SampleKey(index, epoch, view) for index, view in zip(indices.tolist(), views.tolist(), strict=True)]


class TrainBatches:
    """The micro-batches of one process, as lists of ``SampleKey``, for the steps ``start_step`` to ``num_steps - 1``.

    One stream over all epochs: step s belongs to epoch s // steps_per_epoch; what is left of an epoch after its last whole step
    is not seen in that epoch. A step's samples are one slice of the epoch's order. Of its n micro-batches number k takes every
    n-th sample from the k-th on, as DeiT's sampler deals them out to n processes, so that the views of one image fall into
    different micro-batches. Process ``rank`` takes the micro-batches k = m * world_size + rank.

    With ``aspect_ratios``, one for each sample of the data set, a step's samples are sorted by them instead, and a micro-batch
    takes neighbours: images of similar shape need less padding. Which samples a step has is the same.

    Raises:
        UserError: the data set holds less than one step.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int,
        repeats: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        start_step: int,
        num_steps: int,
        aspect_ratios: NDArray[np.float64] | None = None,
    ) -> None:
        assert global_batch_size % (micro_batch_size * world_size) == 0, "the engine chooses sizes that divide"
        assert 0 <= rank < world_size
        assert start_step >= 0
        if num_samples < global_batch_size:
            raise UserError(
                f"train.global_batch_size is {global_batch_size}, but the training set has only {num_samples} images: "
                f"an epoch would have no step. Give at most {num_samples}."
            )
        self.num_samples, self.seed, self.repeats = num_samples, seed, repeats
        self.global_batch_size, self.micro_batch_size, self.aspect_ratios = global_batch_size, micro_batch_size, aspect_ratios
        self.num_micro_batches = global_batch_size // micro_batch_size
        self.mine = range(rank, self.num_micro_batches, world_size)
        self.steps = range(start_step, num_steps)
        self.steps_per_epoch = num_samples // global_batch_size

    def __len__(self) -> int:
        return len(self.steps) * len(self.mine)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        indices = views = np.empty(0, dtype=np.int64)
        current = None
        for step in self.steps:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != current:
                indices, views = _order(self.num_samples, epoch, self.seed, self.repeats)
                current = epoch
            cut = slice(step_in_epoch * self.global_batch_size, (step_in_epoch + 1) * self.global_batch_size)
            for k in self.mine:
                part = self._micro_batch(indices[cut], k)
                pairs = zip(indices[cut][part].tolist(), views[cut][part].tolist(), strict=True)
                yield [SampleKey(index, epoch, view) for index, view in pairs]

    def _micro_batch(self, indices: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Return the places of micro-batch ``k`` among a step's samples."""
        if self.aspect_ratios is None:
            return np.arange(k, self.global_batch_size, self.num_micro_batches)
        alike = np.argsort(self.aspect_ratios[indices], kind="stable")
        return alike[k * self.micro_batch_size : (k + 1) * self.micro_batch_size]
