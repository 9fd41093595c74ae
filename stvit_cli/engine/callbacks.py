"""Callbacks of a training run: code of the user at the points of the loop, which cannot break exact resumption."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from stvit_cli.engine.distributed import World
from stvit_cli.engine.seeding import kept_generators
from stvit_cli.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingView:
    """What a callback sees of the run: values as they are now. All of it is read-only.

    Attributes:
        step: optimizer steps taken.
        num_steps: of the complete run.
        epoch: epochs taken, a fraction within an epoch.
        losses: of the last step, by name, with their sum ``loss``; empty before the first one of this process.
        lr: learning rate of the last step.
        metrics: of the last evaluation, with those of the moving average as ``ema_NAME``; empty before the first one.
        best: metrics of the best evaluation so far.
        run_dir: the run directory.
        model: the model that is trained, not a copy. A callback may run it; the mode of its layers is restored afterwards.
            Weights and statistics must stay as they are; change a ``copy.deepcopy``.
        is_main_process: callbacks are called in every process of a run; this one writes and prints.
    """

    step: int
    num_steps: int
    epoch: float
    losses: Mapping[str, float]
    lr: float
    metrics: Mapping[str, float]
    best: Mapping[str, float]
    run_dir: Path
    model: nn.Module
    is_main_process: bool
    _requests: list[str] = field(default_factory=list, repr=False)

    def stop(self) -> None:
        """Ask the run to end here. It is saved, and `resume` continues it; where one process asks, all of them stop."""
        self._requests.append("stop")


class Callback:
    """Called at the points of a training run, without gradients; `train` and `resume` take a list of them.

    Override the methods that are needed. What a callback raises ends the run with its state saved, and reaches the caller. The
    states of the random generators of Python, NumPy and PyTorch and the mode of the model are restored after each call, and a
    change of the model's weights is an error, so that a run with callbacks gets the weights of one without.

    Example:
        >>> class StopWhenGoodEnough(Callback):
        ...     def on_evaluation(self, run: TrainingView) -> None:
        ...         if run.metrics["top1"] > 99:
        ...             run.stop()
    """

    def on_start(self, run: TrainingView) -> None:
        """The run starts or resumes."""

    def on_step(self, run: TrainingView) -> None:
        """An optimizer step was taken."""

    def on_evaluation(self, run: TrainingView) -> None:
        """The model was evaluated; ``best.safetensors`` and ``last.safetensors`` are written."""

    def on_checkpoint(self, run: TrainingView) -> None:
        """A checkpoint was written."""

    def on_end(self, run: TrainingView) -> None:
        """The run has ended: at its end, by early stopping or by a callback."""

    def on_exception(self, run: TrainingView, error: BaseException) -> None:
        """The run ends by an exception, also by `Interrupted`, which is that of a signal. What this raises is logged only."""


class ChangedModelError(UserError):
    """A callback changed the model that is trained."""


class Callbacks:
    """The callbacks of a run.

    Attributes:
        left_model_intact: whether no callback has changed the model, so that it may be saved.

    Args:
        callbacks: in the order in which they are called.
        world: the processes. All must have callbacks, or none.
        view: makes the view that the callbacks get.

    Raises:
        UserError: one is no `Callback`, or only some processes have any.
    """

    def __init__(self, callbacks: Sequence[Callback], world: World, view: Callable[[], TrainingView]) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                found = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
                raise UserError(f"callbacks: found {found}, expected instances of subclasses of stvit_cli.Callback.")
        counts = world.gather(len(callbacks))
        if len({bool(count) for count in counts}) > 1:
            raise UserError("callbacks: some processes of the run have callbacks and some have none; give them to all.")
        self._callbacks, self._world, self._view = list(callbacks), world, view
        self.left_model_intact = True

    def call(self, point: str) -> bool:
        """Call a method of every callback.

        Args:
            point: the name of the method, such as ``on_step``.

        Returns:
            Whether a callback of any process asks to stop.

        Raises:
            Exception: what a callback of this process raised.
            UserError: a callback changed the model, or one of another process raised.
        """
        if not self._callbacks:
            return False
        view, failure = self._view(), None
        for callback in self._callbacks:
            try:
                with self._guarded(view.model, f"{type(callback).__name__}.{point}"):
                    getattr(callback, point)(view)
            except Exception as error:
                failure = error
                break
        answers = self._world.gather((bool(view._requests), failure and repr(failure), isinstance(failure, ChangedModelError)))
        self.left_model_intact = not any(changed for _, _, changed in answers)
        if failure is not None:
            raise failure
        for rank, (_, text, _) in enumerate(answers):
            if text:
                raise UserError(f"A callback of process {rank} failed in {point}: {text[:300]}")
        return any(stop for stop, _, _ in answers)

    def report(self, error: BaseException) -> None:
        """Call ``on_exception`` of every callback, in this process only; what they raise is logged."""
        for callback in self._callbacks:
            try:
                view = self._view()
                with self._guarded(view.model, f"{type(callback).__name__}.on_exception"):
                    callback.on_exception(view, error)
            except Exception:
                logger.exception("%s.on_exception failed", type(callback).__name__)

    @contextmanager
    def _guarded(self, model: nn.Module, what: str) -> Iterator[None]:
        modes = [(module, module.training) for module in model.modules()]
        before = _versions(model)
        try:
            with kept_generators(self._world.device), torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training
        if _versions(model) != before:
            raise ChangedModelError(
                f"{what} changed weights or statistics of the model; a callback must leave them as they are.\n"
                "Work on a copy: copy.deepcopy(run.model). In training mode a forward pass changes statistics: call eval() first."
            )


def _versions(model: nn.Module) -> list[tuple[int, int, bool]]:
    """Return what differs after a tensor of the model was replaced, changed in place, frozen or unfrozen."""
    return [(id(tensor), tensor._version, tensor.requires_grad) for tensor in chain(model.parameters(), model.buffers())]


def read_only(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy that cannot be changed."""
    return MappingProxyType(dict(values))
