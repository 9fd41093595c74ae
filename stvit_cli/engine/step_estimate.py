"""What a step would cost, judged by a few images, and what the classifier takes of it. B batch, K classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.data.loader import SampleKey
from stvit_cli.engine.seeding import seed_micro_batch
from stvit_cli.engine.session import Session
from stvit_cli.tasks.base import move

T = TypeVar("T")

FEW = 8
"""Images of the trial."""
SLOW_SECONDS = 10.0
"""A trial that would take longer is judged by its first, smaller part: such a device needs no warm-up to be judged."""
HEAD_BATCH = 64
"""Images that the classifier is timed with, at most."""
MANY_CLASSES = 1000
"""From this number of classes on, what the classifier takes is said."""
LOGITS_COPIES = 4
"""Arrays (B, K) that a training step holds at once: logits, their log-softmax, its gradient, and targets of mixup."""


@dataclass(frozen=True)
class Trial:
    """A forward and a backward pass of a few images, without an update.

    Attributes:
        num_images: how many.
        loss: of these images.
        seconds: of an image.
        activation_bytes: that autograd keeps of an image for the backward pass.
        read_seconds: of an image, from its file to a tensor, in one process.
    """

    num_images: int
    loss: float
    seconds: float
    activation_bytes: int
    read_seconds: float

    def step_seconds(self, num_images: int, num_workers: int) -> float:
        """Return the time of a step of ``num_images`` on one process; ``num_workers`` read beside it."""
        compute, reading = self.seconds * num_images, self.read_seconds * num_images
        return compute + reading if num_workers == 0 else max(compute, reading / num_workers)


@dataclass(frozen=True)
class HeadCost:
    """What a linear classifier takes of a training step.

    Attributes:
        classes: K.
        params: number of its weights.
        logits_bytes: of an image: `LOGITS_COPIES` rows of K numbers in float32.
        seconds: of an image: logits, cross-entropy with soft targets, and their backward passes.
    """

    classes: int
    params: int
    logits_bytes: int
    seconds: float


def state_bytes(session: Session) -> dict[str, int]:
    """Return the bytes of weights, gradients, the optimizer's moments, the moving average and DDP's buckets, of one process."""
    trained = [p for p in session.model.parameters() if p.requires_grad]
    weights = sum(t.numel() * t.element_size() for t in [*session.model.parameters(), *session.model.buffers()])
    gradients = sum(p.numel() * p.element_size() for p in trained)
    return {
        "weights": weights,
        "gradients": gradients,
        "moments": 2 * gradients,
        **({"moving average": weights} if session.ema is not None else {}),
        **({"buckets of DDP": gradients} if session.world.size > 1 else {}),
    }


def try_images(session: Session, num_images: int) -> Trial:
    """Read a few images, and take a forward and a backward pass with them; nothing is updated.

    The smallest batch goes first, which pays for what later ones have ready. Where that alone is slow, as bf16 is on a processor
    without instructions for it, it is the trial.

    Args:
        session: of a run; the running statistics of its batch norms change.
        num_images: of the trial; a multiple of what the task needs.
    """
    task, device = session.task, session.world.device
    began = time.perf_counter()
    total = len(cast(Sized, task.train_set))
    samples = [task.train_set[SampleKey(index % total, 0, 0)] for index in range(num_images)]
    batch = move(task.collate(samples), device)
    read = (time.perf_counter() - began) / num_images
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in session.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(batch: Any) -> float:
        kept.clear()
        seed_micro_batch(session.recipe.train.seed, 0, 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), session.autocast():
            loss = torch.stack([each.float() for each in task.training_loss(session.model, batch).values()]).sum()
        loss.backward()
        session.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    size = min(-(-2 // task.batch_multiple) * task.batch_multiple, num_images)  # two: batch norm takes no single value
    smallest = move(task.collate(samples[:size]), device)
    loss, seconds = timed(lambda: step(smallest), device)
    if seconds / size * num_images <= SLOW_SECONDS:
        size = num_images
        loss, seconds = timed(lambda: step(batch), device)
    return Trial(size, loss, seconds / size, sum(kept.values()) // size, read)


def head_cost(session: Session) -> HeadCost | None:
    """Return what the classifier takes; None where it is no linear layer of many classes."""
    head = session.task.heads()[0]
    if not isinstance(head, nn.Linear) or head.out_features < MANY_CLASSES:
        return None
    device = session.world.device
    size = min(session.plan.micro_batch_size, HEAD_BATCH)
    features = torch.zeros(size, head.in_features, device=device, requires_grad=True)
    targets = torch.full((size, head.out_features), 1 / head.out_features, device=device)

    def step() -> None:
        with session.autocast():
            logits = head(features)
        F.cross_entropy(logits.float(), targets).backward()
        session.optimizer.zero_grad(set_to_none=True)

    _, seconds = timed(step, device)
    if seconds <= SLOW_SECONDS:
        _, seconds = timed(step, device)  # the first pays for what later ones have ready
    params = sum(p.numel() for p in head.parameters())
    return HeadCost(head.out_features, params, LOGITS_COPIES * 4 * head.out_features, seconds / size)


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what ``work`` returns, and its seconds with what it starts on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began
