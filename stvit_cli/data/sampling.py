"""Sampling: the samples of every step, as a function of seed, epoch and step, so that a run can resume at any step.

Nothing here holds state. The order of an epoch is split into steps, a step into micro-batches, and these are distributed over
the processes: W processes, and one process that accumulates W micro-batches, see the same micro-batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stvit_cli.errors import UserError


class SampleKey(NamedTuple):
    """The key of a training sample: with the seed, it determines the sample."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which a key does not need
    """Index of the image in the data set."""
    epoch: int
    view: int
    """Index of the view of the image in this epoch; 0 without repeated augmentation and balanced sampling."""


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed made of the parts and their order, the same on every machine and in every version of Python.

    All randomness of a run derives from it.

    >>> derive_seed(0, "model") == derive_seed(0, "model"), derive_seed(0, "model") == derive_seed("model", 0)
    (True, False)
    """
    return _hashed(_as_text(parts))


def _as_text(parts: Iterable[int | str]) -> str:
    pairs = ((type(part).__name__, str(part)) for part in parts)
    return "".join(f"{kind} {len(text)} {text}" for kind, text in pairs)  # the length keeps parts apart


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def sample_seeds(seed: int, keys: Sequence[SampleKey]) -> list[int]:
    """Return the seeds of the random numbers of some training samples.

    >>> sample_seeds(0, [SampleKey(5, 2, 0)]) == [derive_seed(0, "sample", 2, 5, 0)]
    True
    """
    starts = {epoch: _as_text((seed, "sample", epoch)) for epoch in {key.epoch for key in keys}}
    return [_hashed(starts[key.epoch] + _as_text((key.index, key.view))) for key in keys]


def hold_out(names: Sequence[str], count: int) -> NDArray[np.bool_]:
    """Choose ``count`` names, those with the smallest hashes, independent of any seed and of the order of the names.

    When names are added, the choice changes as little as ``count`` allows.

    Returns:
        A mask of shape (len(names),).

    >>> hold_out(["a", "b", "c", "d"], 1).sum()
    np.int64(1)
    """
    chosen = np.zeros(len(names), dtype=np.bool_)
    chosen[sorted(range(len(names)), key=lambda i: derive_seed("held out", names[i]))[:count]] = True
    return chosen


def hold_out_of_classes(
    names: Sequence[str], targets: NDArray[np.int64] | NDArray[np.uint8], fraction: float
) -> NDArray[np.bool_]:
    """Choose a fraction of each class by `hold_out`; of a class with two images or more, one at least and not all.

    Args:
        names: of the images, (N,).
        targets: the class of each image (N,), or the presence of each class as 0 and 1 (N, K). Then the rarest class is chosen
            from first, and the images without a class last.
        fraction: of the images of a class.

    Returns:
        A mask of shape (N,).

    >>> hold_out_of_classes(["a", "b", "c", "d", "e"], np.array([0, 0, 1, 1, 2]), 0.5).sum()
    np.int64(2)
    """
    present = targets if targets.ndim == 2 else None
    num_classes = targets.shape[1] if present is not None else int(targets.max()) + 1
    members = [np.flatnonzero(targets == label if present is None else present[:, label]) for label in range(num_classes)]
    chosen, done = np.zeros(len(names), dtype=np.bool_), np.zeros(len(names), dtype=np.bool_)
    for rows in sorted(members, key=len):
        share = max(min(max(round(fraction * len(rows)), 1), len(rows) - 1), 0) - int(chosen[rows].sum())
        free = rows[~done[rows]]
        if share > 0 and len(free):
            chosen[free[hold_out([names[row] for row in free.tolist()], min(share, len(free)))]] = True
        done[rows] = True
    rest = np.flatnonzero(~done)
    chosen[rest[hold_out([names[row] for row in rest.tolist()], round(fraction * len(rest)))]] = True
    return chosen


@dataclass(frozen=True)
class ClassBalance:
    """How often the classes are sampled.

    Attributes:
        targets: the class of each image, (num_samples,).
        strength: a class of n images is sampled in proportion to n ** (1 - strength), 0 to 1.
    """

    targets: NDArray[np.int64]
    strength: float

    def quotas(self, total: int) -> NDArray[np.int64]:
        """Return the number of samples of each class, ``total`` in all, by largest remainders.

        >>> ClassBalance(np.array([0] * 90 + [1] * 10), 1.0).quotas(100)
        array([50, 50])
        """
        counts = np.bincount(self.targets)
        shares = np.where(counts > 0, counts.astype(np.float64) ** (1 - self.strength), 0.0)
        exact = shares * (total / shares.sum())
        quotas: NDArray[np.int64] = np.floor(exact).astype(np.int64)
        quotas[np.argsort(quotas - exact, kind="stable")[: total - quotas.sum()]] += 1
        return quotas


def _balanced(balance: ClassBalance, total: int, generator: np.random.RandomState) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``total`` images in random order, and for each how often it came before.

    An image comes again only after all others of its class.
    """
    images, occurrences = [], []
    for target, quota in enumerate(balance.quotas(total).tolist()):
        if quota:
            members = generator.permutation(np.flatnonzero(balance.targets == target))
            images.append(np.resize(members, quota))
            occurrences.append(np.arange(quota) // len(members))
    mixed = generator.permutation(total)
    return np.concatenate(images)[mixed], np.concatenate(occurrences)[mixed]


@dataclass(frozen=True)
class ShuffleBlocks:
    """Shuffling for storage that is slow at random: blocks of images in random order, and a window of images within.

    Attributes:
        starts: the first image of each block, such as a shard, and the number of images, (B + 1,).
        window: number of images, consecutive in the order of the blocks, that are shuffled with one another.
    """

    starts: NDArray[np.int64]
    window: int

    def order(self, generator: np.random.RandomState) -> NDArray[np.int64]:
        """Return all images in the order of an epoch, (num_samples,).

        >>> ShuffleBlocks(np.array([0, 2, 4, 6]), 2).order(np.random.RandomState(0))
        array([5, 4, 3, 2, 1, 0])
        """
        blocks = generator.permutation(len(self.starts) - 1)
        lengths = np.diff(self.starts)[blocks]
        total = int(self.starts[-1])
        images = np.repeat(self.starts[blocks] - (np.cumsum(lengths) - lengths), lengths) + np.arange(total)
        drawn = generator.random_sample(total)
        filled = total // self.window * self.window
        inside = np.argsort(drawn[:filled].reshape(-1, self.window), axis=1, kind="stable")
        inside = (inside + np.arange(0, filled, self.window)[:, None]).reshape(-1)
        rest = filled + np.argsort(drawn[filled:], kind="stable")
        shuffled: NDArray[np.int64] = images[np.concatenate([inside, rest])]
        return shuffled


def _order(
    num_samples: int,
    epoch: int,
    seed: int,
    repeats: int,
    balance: ClassBalance | None = None,
    blocks: ShuffleBlocks | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices and the views of one epoch, each of shape (num_samples,)."""
    drawn = derive_seed(seed, "order", epoch)
    # RandomState: its streams are frozen, those of numpy's newer generators may change with a release.
    generator = np.random.RandomState([drawn & 0xFFFFFFFF, drawn >> 32])
    num_images = -(-num_samples // repeats)
    views = np.arange(num_samples) % repeats
    if blocks is not None:
        images = blocks.order(generator)[:num_images]
    elif balance is None:
        images = generator.permutation(num_samples)[:num_images]
    else:
        images, occurrences = _balanced(balance, num_images, generator)
        views = views + np.repeat(occurrences, repeats)[:num_samples] * repeats  # an image that comes again is another view
    return np.repeat(images, repeats)[:num_samples], views


def sample_order(
    num_samples: int,
    epoch: int,
    seed: int,
    repeats: int,
    balance: ClassBalance | None = None,
    blocks: ShuffleBlocks | None = None,
    count: int | None = None,
) -> list[SampleKey]:
    """Return the ``num_samples`` keys of one epoch, in training order.

    Args:
        num_samples: n, size of the data set.
        epoch: index of the epoch, from 0.
        seed: of the run.
        repeats: r, views per image. 1: a permutation of the data set. More (repeated augmentation, as in DeiT): ceil(n / r)
            images with r consecutive views each, truncated to n.
        balance: sample the classes by their quotas; an image may then come several times, each time as another view. None:
            every image once.
        blocks: shuffle by blocks, without ``balance``; None: among all images.
        count: return the first ones alone; a key takes about a hundred bytes.

    >>> [key.index for key in sample_order(4, epoch=0, seed=0, repeats=2)]
    [3, 3, 1, 1]
    """
    indices, views = _order(num_samples, epoch, seed, repeats, balance, blocks)
    some = slice(count)
    return [SampleKey(index, epoch, view) for index, view in zip(indices[some].tolist(), views[some].tolist(), strict=True)]


def steps_per_epoch(num_samples: int, global_batch_size: int, drop_last: bool) -> int:
    """Return the number of steps in an epoch, without an incomplete last one (``drop_last``) or with it.

    >>> steps_per_epoch(10, 4, drop_last=True), steps_per_epoch(10, 4, drop_last=False)
    (2, 3)
    """
    return num_samples // global_batch_size if drop_last else -(-num_samples // global_batch_size)


class TrainBatches:
    """The micro-batches of one process, as lists of `SampleKey`, for the steps ``start_step`` to ``num_steps - 1``.

    Step s belongs to epoch s // steps_per_epoch; an incomplete last step of an epoch is dropped, or filled with the first samples
    of the same epoch (as torch's DistributedSampler does), in other views. A step's samples are a slice of `sample_order`. Of its
    n micro-batches, micro-batch k takes the samples k, k + n, k + 2n, ... of the slice, as DeiT's sampler distributes them over n
    processes, so that the views of an image are in different micro-batches. Process ``rank`` takes the micro-batches rank,
    rank + world_size, ...

    Args:
        num_samples: size of the data set.
        seed: of the run.
        repeats: views per image and epoch; see `sample_order`.
        global_batch_size: samples of a step, over all processes.
        micro_batch_size: samples of a micro-batch.
        rank: index of the process.
        world_size: number of processes.
        start_step: first step.
        num_steps: steps of the run.
        aspect_ratios: width / height of every image, (num_samples,). Given, a step's samples are sorted by it and split into
            consecutive micro-batches, so that images of similar shape share one and need less padding. A step has the same
            samples either way.
        balance: see `sample_order`.
        blocks: see `sample_order`.
        drop_last: drop an incomplete last step of an epoch rather than fill it.

    Raises:
        UserError: the data set is smaller than ``global_batch_size``.
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
        balance: ClassBalance | None = None,
        blocks: ShuffleBlocks | None = None,
        drop_last: bool = True,
    ) -> None:
        assert global_batch_size % (micro_batch_size * world_size) == 0, "the engine chooses sizes that divide"
        assert 0 <= rank < world_size
        assert start_step >= 0
        if num_samples < global_batch_size:
            raise UserError(
                f"train.global_batch_size is {global_batch_size}, but the training set has only {num_samples} images: "
                f"an epoch would have no step. Give at most {num_samples}."
            )
        self.num_samples, self.seed, self.repeats, self.balance, self.blocks = num_samples, seed, repeats, balance, blocks
        self.global_batch_size, self.micro_batch_size, self.aspect_ratios = global_batch_size, micro_batch_size, aspect_ratios
        self.num_micro_batches = global_batch_size // micro_batch_size
        self.mine = range(rank, self.num_micro_batches, world_size)
        self.steps = range(start_step, num_steps)
        self.steps_per_epoch = steps_per_epoch(num_samples, global_batch_size, drop_last)

    def __len__(self) -> int:
        return len(self.steps) * len(self.mine)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        indices = views = np.empty(0, dtype=np.int64)
        current = None
        for step in self.steps:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != current:
                indices, views = self._filled(
                    *_order(self.num_samples, epoch, self.seed, self.repeats, self.balance, self.blocks)
                )
                current = epoch
            window = slice(step_in_epoch * self.global_batch_size, (step_in_epoch + 1) * self.global_batch_size)
            for k in self.mine:
                part = self._micro_batch(indices[window], k)
                pairs = zip(indices[window][part].tolist(), views[window][part].tolist(), strict=True)
                yield [SampleKey(index, epoch, view) for index, view in pairs]

    def _filled(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Append what the last step of an epoch lacks: its first samples, in views that the epoch does not have yet."""
        missing = max(self.steps_per_epoch * self.global_batch_size - len(indices), 0)
        again = views[:missing] + (views.max() + 1 if missing else 0)
        return np.concatenate([indices, indices[:missing]]), np.concatenate([views, again])

    def _micro_batch(self, indices: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Return the positions of micro-batch ``k`` in a step's samples."""
        if self.aspect_ratios is None:
            return np.arange(k, self.global_batch_size, self.num_micro_batches)
        by_shape = np.argsort(self.aspect_ratios[indices], kind="stable")
        return by_shape[k * self.micro_batch_size : (k + 1) * self.micro_batch_size]
