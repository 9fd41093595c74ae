"""One optimizer step: the micro-batches, the check on all processes that losses and gradients are finite, the update."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from stvit_cli.engine.determinism import strict
from stvit_cli.engine.optim import match_layout, parameters_of, set_lr
from stvit_cli.engine.schedule import lr_at
from stvit_cli.engine.seeding import seed_micro_batch
from stvit_cli.engine.session import Session
from stvit_cli.tasks.base import Batch, in_float64, move

# Above this scale, fp16 gradients that overflow are skipped by the scaler, which then lowers its scale.
SMALLEST_SCALE = 1.0


class NonFiniteError(Exception):
    """A loss or a gradient is not a number. Raised on every process, before the update."""

    def __init__(self, what: str, step: int, names: list[str]) -> None:
        super().__init__(f"the {what} is not finite at step {step}")
        self.what, self.step, self.names = what, step, names


@dataclass(frozen=True)
class StepResult:
    """The result of a training step, equal on all processes except for ``waited``.

    Attributes:
        losses: each named loss and their sum ``loss``, the mean over the global batch.
        lr: the learning rate used.
        grad_norm: norm of the gradient of all parameters, before clipping.
        waited: time this process waited for data, in seconds.
        stop_signal: number of the signal that asked a process to stop, 0 for none.
        checkpoint_due: whether rank 0 asked for a checkpoint.
        skipped: names of files that could not be read.
    """

    losses: dict[str, float]
    lr: float
    grad_norm: float
    waited: float
    stop_signal: int
    checkpoint_due: bool
    skipped: list[str]


class TrainStep:
    """One optimizer step: forward and backward passes of the micro-batches, gradient clipping, update, EMA."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.parameters = parameters_of(session.optimizer)

    def __call__(self, step: int, feed: Iterator[Batch], poll: Callable[[], tuple[int, bool]] = lambda: (0, False)) -> StepResult:
        """Take step ``step`` (from 0) with the next micro-batches of ``feed``.

        Args:
            step: number of the step, from 0.
            feed: yields the micro-batches of this process.
            poll: called before the update; returns the signal this process received (0 for none) and whether to checkpoint.

        Raises:
            NonFiniteError: on every process; the weights and the optimizer are unchanged.
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
        flags = [float(flag) for flag in (*poll(), len(skipped))]
        losses, rows = self._agree(step, parts, norm, names, flags)
        self._update(norm)
        norm_value, stops, saves, skips = float(rows[0, -4]), rows[:, -3], rows[:, -2], rows[:, -1]
        if skips.any():
            skipped = [name for part in session.world.gather(skipped) for name in part]
        return StepResult(losses, lr, norm_value, waited, int(stops.max()), bool(saves.any()), skipped)

    def _forward_backward(self, step: int, index: int, batch: Batch) -> dict[str, Tensor]:
        """Accumulate the gradients of a micro-batch; return its losses and their sum, detached."""
        session = self.session
        plan, world = session.plan, session.world
        seed_micro_batch(session.recipe.train.seed, step, index * world.size + world.rank)
        with self._gradient_sync(last=index == plan.accum_steps - 1), strict(session.strict_order):
            with session.autocast():
                losses = session.task.training_loss(session.parallel, batch)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            session.scaler.scale(total / plan.accum_steps).backward()
        named = losses if len(losses) > 1 else {}
        return {"loss": total.detach()} | {name: loss.detach() for name, loss in named.items()}

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Reduce gradients over the processes once a step, with the last micro-batch."""
        parallel = self.session.parallel
        return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not last else nullcontext()

    def _grad_norm(self) -> Tensor:
        """The norm of the whole gradient, already the mean over the processes."""
        match_layout(self.parameters)
        self.session.scaler.unscale_(self.session.optimizer)
        return get_total_norm([p.grad for p in self.parameters if p.grad is not None]).to(self.session.world.device)

    def _agree(
        self, step: int, parts: list[dict[str, Tensor]], norm: Tensor, names: list[list[str]], flags: list[float]
    ) -> tuple[dict[str, float], Tensor]:
        """Exchange losses, norm and flags with the other processes; the only time that a step waits for the device.

        Returns:
            The mean losses, and a row for each process that ends with its norm and its ``flags``.

        Raises:
            NonFiniteError: on every process where one has a bad loss or gradient.
        """
        keys = list(parts[0])
        means = torch.stack([torch.stack([in_float64(part[key]) for part in parts]).mean() for key in keys])
        flag_tensor = torch.tensor(flags, dtype=torch.float64, device=means.device)
        rows = self.session.world.exchange(torch.cat([means, in_float64(norm)[None], flag_tensor]))
        means_by_rank, norms = rows[:, : len(keys)], rows[:, len(keys)]
        scaler = self.session.scaler
        overflow = scaler.is_enabled() and scaler.get_scale() > SMALLEST_SCALE
        bad_loss = not bool(means_by_rank.isfinite().all())
        if bad_loss or not (bool(norms.isfinite().all()) or overflow):
            bad = [not bool(torch.stack(list(part.values())).isfinite().all()) for part in parts]
            mine = [name for part, is_bad in zip(names, bad, strict=True) if is_bad or not bad_loss for name in part]
            everyone = [name for part in self.session.world.gather(mine) for name in part]
            raise NonFiniteError("loss" if bad_loss else "gradient", step, everyone)
        return dict(zip(keys, means_by_rank.mean(0).tolist(), strict=True)), rows

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
