"""One optimiser step: the micro-batches, the agreement of all processes that it is sound, the update."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from stvit_cli.engine.optim import match_layout, parameters_of, set_lr
from stvit_cli.engine.schedule import lr_at
from stvit_cli.engine.seeding import seed_micro_batch
from stvit_cli.engine.session import Session
from stvit_cli.tasks.base import Batch, move

# fp16 gradients that overflow are the scaler's business until it has nothing left to scale down.
SMALLEST_SCALE = 1.0


class NonFiniteError(Exception):
    """A loss or a gradient is not a number. Raised on every process, before the update."""

    def __init__(self, what: str, step: int, names: list[str]) -> None:
        super().__init__(f"the {what} is not finite at step {step}")
        self.what, self.step, self.names = what, step, names


@dataclass(frozen=True)
class Outcome:
    """What a step gave, the same on all processes but for ``waited``.

    Attributes:
        losses: each named loss and their sum ``loss``, the mean over the global batch.
        lr: the rate used.
        grad_norm: of the whole gradient, before clipping.
        waited: seconds this process waited for data.
        stop: the signal by which some process was asked to stop; 0 for none.
        save: whether rank 0 wants a checkpoint.
        skipped: the names of files that could not be read.
    """

    losses: dict[str, float]
    lr: float
    grad_norm: float
    waited: float
    stop: int
    save: bool
    skipped: list[str]


class TrainStep:
    """One optimizer step: forward and backward passes of the micro-batches, gradient clipping, update, EMA."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.parameters = parameters_of(session.optimizer)

    def __call__(self, step: int, feed: Iterator[Batch], asks: Callable[[], tuple[int, bool]] = lambda: (0, False)) -> Outcome:
        """Take step ``step`` (from 0) with the next micro-batches of ``feed``.

        Args:
            step: number of the step, from 0.
            feed: yields the micro-batches of this process.
            asks: called before the update: the signal that this process has received (0 for none), whether it wants a checkpoint.

        Raises:
            NonFiniteError: on every process; weights and optimiser are as they were before the step.
        """
        session = self.session
        lr = lr_at(step, session.recipe.schedule, session.recipe.peak_lr, session.timeline.steps_per_epoch)
        set_lr(session.optimizer, lr)
        parts: list[dict[str, Tensor]] = []
        names: list[list[str]] = []
        skipped: list[str] = []
        waited = 0.0
        for index in range(session.plan.accum_steps):
            since = time.perf_counter()
            batch = next(feed)
            waited += time.perf_counter() - since
            names.append(session.task.describe(batch))
            skipped += session.task.skipped(batch)
            parts.append(self._forward_backward(step, index, move(batch, session.world.device)))
        norm = self._grad_norm()
        wants = [float(wish) for wish in (*asks(), len(skipped))]
        losses, rows = self._agree(step, parts, norm, names, wants)
        self._update(norm)
        norm_value, stops, saves, skips = float(rows[0, -4]), rows[:, -3], rows[:, -2], rows[:, -1]
        if skips.any():
            skipped = [name for part in session.world.gather(skipped) for name in part]
        return Outcome(losses, lr, norm_value, waited, int(stops.max()), bool(saves.any()), skipped)

    def _forward_backward(self, step: int, index: int, batch: Batch) -> dict[str, Tensor]:
        """Add a micro-batch's share to the gradients; return its losses and their sum, detached."""
        session = self.session
        plan, world = session.plan, session.world
        seed_micro_batch(session.recipe.train.seed, step, index * world.size + world.rank)
        with self._gradients_meet(last=index == plan.accum_steps - 1):
            with session.autocast():
                losses = session.task.training_loss(session.parallel, batch)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            session.scaler.scale(total / plan.accum_steps).backward()
        named = losses if len(losses) > 1 else {}
        return {"loss": total.detach()} | {name: loss.detach() for name, loss in named.items()}

    def _gradients_meet(self, last: bool) -> AbstractContextManager[None]:
        """The processes add up their gradients once a step, with the last micro-batch."""
        parallel = self.session.parallel
        return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not last else nullcontext()

    def _grad_norm(self) -> Tensor:
        """The norm of the whole gradient, already the mean over the processes."""
        match_layout(self.parameters)
        self.session.scaler.unscale_(self.session.optimizer)
        return get_total_norm([p.grad for p in self.parameters if p.grad is not None]).to(self.session.world.device)

    def _agree(
        self, step: int, parts: list[dict[str, Tensor]], norm: Tensor, names: list[list[str]], wants: list[float]
    ) -> tuple[dict[str, float], Tensor]:
        """Tell the others, hear the others; the only time that a step waits for the device.

        Returns:
            The mean losses, and a row for each process that ends with its norm and its ``wants``.

        Raises:
            NonFiniteError: on every process where one has a bad loss or gradient.
        """
        keys = list(parts[0])
        means = torch.stack([torch.stack([part[key].double() for part in parts]).mean() for key in keys])
        asked = torch.tensor(wants, dtype=torch.float64, device=means.device)
        rows = self.session.world.exchange(torch.cat([means, norm.double()[None], asked]))
        figures, norms = rows[:, : len(keys)], rows[:, len(keys)]
        scaler = self.session.scaler
        overflow = scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE
        bad_loss = not bool(figures.isfinite().all())
        if bad_loss or not (bool(norms.isfinite().all()) or overflow):
            bad = [not bool(torch.stack(list(part.values())).isfinite().all()) for part in parts]
            mine = [name for part, is_bad in zip(names, bad, strict=True) if is_bad or not bad_loss for name in part]
            everyone = [name for part in self.session.world.gather(mine) for name in part]
            raise NonFiniteError("loss" if bad_loss else "gradient", step, everyone)
        return dict(zip(keys, figures.mean(0).tolist(), strict=True)), rows

    def _update(self, norm: Tensor) -> None:
        session = self.session
        largest = session.recipe.optim.clip_grad_norm
        if largest is not None:
            clip_grads_with_norm_(self.parameters, largest, norm)
        session.scaler.step(session.optimizer)
        session.scaler.update()
        session.optimizer.zero_grad(set_to_none=True)
        if session.ema is not None:
            session.ema.update(session.model)
