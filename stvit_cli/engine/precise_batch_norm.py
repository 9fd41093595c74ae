"""Precise batch norm: the running statistics recomputed over training images, for evaluations while a run is young.

PyTorch's running mean and variance are moving averages that start at 0 and 1: after 12 steps with momentum 0.1 they hold 28 % of
these values, and weights that are right look wrong in an evaluation. Here each batch norm gets the mean and the variance of the
values that it sees in one pass over a sample of the training set, as detectron2's PreciseBN and mmengine's PreciseBNHook do (Wu
and Johnson, "Rethinking Batch in BatchNorm", arXiv 2105.07576). It is what the moving average converges to: the images are
augmented, and drop path and dropout are active.

The images follow from seed and step, the batches from the recipe alone, and the batches are combined in their order. So the
result depends neither on the number of processes nor on the micro-batch, and is the same when it is computed again. Only where a
batch does not fit into the memory of a device are all batches smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Sized
from contextlib import closing
from itertools import pairwise
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stvit_cli.data.loader import Loader, SampleKey, derive_seed, sample_order
from stvit_cli.data.sampling import ClassBalance
from stvit_cli.engine.freezing import set_training_mode
from stvit_cli.engine.seeding import kept_generators, seed_generators
from stvit_cli.engine.session import Session
from stvit_cli.tasks.base import move
from stvit_cli.utils.machine_failures import machine_failure

logger = logging.getLogger(__name__)

NUM_IMAGES = 1024
"""The largest number of images in a pass: about what a moving average of momentum 0.1 over batches of 64 remembers."""
BATCH_SIZE = 32
"""The largest number of images in a forward pass, without gradients; half as many where they do not fit into the memory."""


class Moments(NamedTuple):
    """Of the values that a batch norm of C channels saw in one batch.

    Attributes:
        num_values: the number of values in a channel.
        mean: (C,).
        var: (C,), unbiased.
    """

    num_values: int
    mean: Tensor
    var: Tensor


def recompute_statistics(
    session: Session,
    step: int,
    *,
    stopped: Callable[[], bool] = lambda: False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> bool:
    """Recompute the statistics of all batch norms in training mode: those of the model and those of its moving average.

    The weights, frozen batch norms and the random generators stay as they are.

    Args:
        session: the run; its models are left in training mode.
        step: the number of steps taken.
        stopped: called after each batch; if it returns True on any process, nothing is changed.
        advance: called with the number of batches done and their total.

    Returns:
        Whether it was done; False where it was stopped.
    """
    task, world = session.task, session.world
    set_training_mode(task, session.recipe.finetune)
    models = [session.model]
    if session.ema is not None:
        models.append(session.ema.module)
        for own, averaged in zip(session.model.modules(), session.ema.module.modules(), strict=True):
            averaged.training = own.training
    recorders = [Recorder(model) for model in models]
    if not any(recorder.norms for recorder in recorders):
        return True
    largest = BATCH_SIZE
    while True:
        found = _one_pass(session, step, models, recorders, largest, stopped, advance)
        if found is None or isinstance(found, dict):
            break
        largest //= 2
        if largest < max(2, task.batch_multiple):
            raise found
        logger.warning("Out of memory with %d images at once: the batch norms are recomputed with %d.", 2 * largest, largest)
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    if found is None:
        return False
    for index, recorder in enumerate(recorders):
        recorder.write([found[k][index] for k in range(len(found))])
    return True


def _one_pass(
    session: Session,
    step: int,
    models: list[nn.Module],
    recorders: list[Recorder],
    largest: int,
    stopped: Callable[[], bool],
    advance: Callable[[int, int], None],
) -> dict[int, list[list[Moments]]] | torch.OutOfMemoryError | None:
    """Return what each recorder saw in each batch, by its number; None where the pass was stopped, an error without memory."""
    world = session.world
    batches = session_batches(session, step, largest=largest)
    mine = range(world.rank, len(batches), world.size)
    loader = batch_loader(session, [batches[k] for k in mine])
    found: dict[int, list[list[Moments]]] = {}
    out_of_memory = ""
    # Compiled blocks run as written here, as in an evaluation.
    with kept_generators(world.device), torch.no_grad(), torch.compiler.set_stance("force_eager"), closing(iter(loader)) as feed:
        for done, (k, batch) in enumerate(zip(mine, feed, strict=True), start=1):
            try:
                found[k] = _moments(session, step, k, batch, models, recorders)
            except Exception as error:
                failure = machine_failure(error)
                if failure is None or not failure.is_memory:
                    raise
                out_of_memory = failure.said
                break
            advance(done, len(mine))
            if stopped():
                break
    parts = world.gather((stopped(), out_of_memory, len(found) < len(mine), found))
    if any(is_stopped for is_stopped, *_ in parts):
        return None
    said = next((said for _, said, *_ in parts if said), "")
    if said:
        return torch.OutOfMemoryError(f"CUDA out of memory: {said}" if world.device.type == "cuda" else said)
    if any(is_partial for _, _, is_partial, _ in parts):
        return None
    return {k: moments for *_, part in parts for k, moments in part.items()}


def _moments(
    session: Session, step: int, k: int, batch: Any, models: list[nn.Module], recorders: list[Recorder]
) -> list[list[Moments]]:
    """Return what each recorder sees in batch ``k``."""
    on_device = move(batch, session.world.device)
    result = []
    for model, recorder in zip(models, recorders, strict=True):
        seed_generators(session.recipe.train.seed, "precise batch norm", step, k)
        with recorder, session.autocast():
            session.task.training_loss(model, on_device)
        result.append(recorder.moments())
    return result


def session_batches(
    session: Session, step: int, num_images: int = NUM_IMAGES, largest: int = BATCH_SIZE
) -> list[list[SampleKey]]:
    """Return `statistics_batches` of a run after ``step`` steps."""
    task, train = session.task, session.recipe.train
    return statistics_batches(
        len(cast(Sized, task.train_set)),
        train.global_batch_size,
        multiple=task.batch_multiple,
        seed=train.seed,
        step=step,
        balance=task.class_balance,
        num_images=num_images,
        largest=largest,
    )


def batch_loader(session: Session, batches: list[list[SampleKey]]) -> Loader:
    """Return the loader of some training samples of a run."""
    task = session.task
    on_gpu = session.world.device.type == "cuda"
    return Loader(task.train_set, batches, task.collate, session.recipe.data.num_workers, pin_memory=on_gpu)


def statistics_batches(
    num_samples: int,
    global_batch_size: int,
    *,
    multiple: int,
    seed: int,
    step: int,
    balance: ClassBalance | None = None,
    num_images: int = NUM_IMAGES,
    largest: int = BATCH_SIZE,
) -> list[list[SampleKey]]:
    """Return the samples of a pass in batches of nearly the same size.

    Args:
        num_samples: size of the training set.
        global_batch_size: of the run; a batch is not larger, unless it would be a single image.
        multiple: the size of a batch is a multiple of this.
        seed: of the run.
        step: the number of steps taken.
        balance: how often each class is sampled in training.
        num_images: the largest number of images in all.
        largest: the largest number of images in a batch, unless it would be a single image.

    >>> [len(batch) for batch in statistics_batches(33, 64, multiple=1, seed=0, step=12)]
    [16, 17]
    """
    chosen = derive_seed(seed, "precise batch norm")
    drawn = sample_order(num_samples, epoch=step, seed=chosen, repeats=1, balance=balance, count=num_images)
    units = min(len(drawn), num_images) // multiple
    each = max(1, min(global_batch_size, largest) // multiple)
    # No batch of a single image where there are more: one value per channel (`models.layers.BatchNorm2d`) has no variance.
    count = max(1, min(-(-units // each), multiple * units // 2))
    bounds = [multiple * (units * k // count) for k in range(count + 1)]
    return [drawn[low:high] for low, high in pairwise(bounds)]


class Recorder:
    """Within a ``with`` block, records what the batch norms of ``model`` that are in training mode see; changes nothing in it.

    Args:
        model: any model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
        ]
        self._before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in self.norms]
        self._seen: list[list[Moments]] = []
        self._hooks: list[Any] = []
        self._momentum: list[float | None] = []

    def __enter__(self) -> Recorder:
        self._seen = [[] for _ in self.norms]
        self._momentum = [norm.momentum for norm in self.norms]
        for norm, seen in zip(self.norms, self._seen, strict=True):
            norm.momentum = 1.0  # the running statistics become those of the batch
            if isinstance(norm, nn.SyncBatchNorm):  # it would wait for the other processes, which have batches of their own
                norm.forward = MethodType(_BatchNorm.forward, norm)  # type: ignore[method-assign]
            self._hooks.append(norm.register_forward_hook(_recording(seen)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for norm, momentum, before in zip(self.norms, self._momentum, self._before, strict=True):
            norm.momentum = momentum
            norm.__dict__.pop("forward", None)
            for buffer, value in zip(norm.buffers(recurse=False), before, strict=True):
                buffer.copy_(value)

    def moments(self) -> list[Moments]:
        """Return what was recorded in the last block, on the CPU, for each batch norm; 0 values where it saw nothing."""
        return [combined(seen, norm.num_features) for norm, seen in zip(self.norms, self._seen, strict=True)]

    def write(self, batches: Sequence[Sequence[Moments]]) -> None:
        """Set the running statistics to those of all batches together.

        Args:
            batches: what `moments` returned for each.
        """
        for norm, parts in zip(self.norms, zip(*batches, strict=True), strict=True):
            total = combined(parts, norm.num_features)
            if total.num_values:
                for buffer, value in zip(_statistics(norm), (total.mean, total.var), strict=True):
                    buffer.copy_(value)


def combined(parts: Sequence[Moments], num_features: int) -> Moments:
    """Return the moments of all values of several batches, in float64 on the CPU.

    Args:
        parts: of each batch.
        num_features: C.

    >>> a, b = torch.randn(8, 3), torch.randn(5, 3)
    >>> both = combined([Moments(len(x), x.mean(0), x.var(0)) for x in (a, b)], 3)
    >>> torch.allclose(both.var.float(), torch.cat([a, b]).var(0))
    True
    """
    parts = [Moments(count, mean.cpu().double(), var.cpu().double()) for count, mean, var in parts if count]
    count = sum(part.num_values for part in parts)
    if not count:
        return Moments(0, torch.zeros(num_features), torch.zeros(num_features))
    mean = torch.stack([part.num_values * part.mean for part in parts]).sum(0) / count
    squares = [(part.num_values - 1) * part.var + part.num_values * (part.mean - mean).square() for part in parts]
    return Moments(count, mean, torch.stack(squares).sum(0) / (count - 1))


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _recording(seen: list[Moments]) -> Callable[[_BatchNorm, Any, Tensor], None]:
    def hook(norm: _BatchNorm, inputs: tuple[Tensor], _: Tensor) -> None:
        count = inputs[0].numel() // norm.num_features
        if count > 1:  # `models.layers.BatchNorm2d` leaves its statistics as they are on a single value
            mean, var = _statistics(norm)
            seen.append(Moments(count, mean.clone(), var.clone()))

    return hook
