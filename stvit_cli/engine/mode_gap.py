"""Whether a model does much better with the statistics of a batch than with the running statistics of its batch norms.

In training a batch norm uses the statistics of its batch, in evaluations and predictions its running statistics. Where these do
not fit the weights, a model that has learned its training images looks as if it had not. So at the end of a run, the same
training images go through the model both ways, everything else as in an evaluation (no dropout, no drop path).
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from torch.compiler import set_stance
from torch.nn.modules.dropout import _DropoutNd

from stvit_cli.data.loader import SampleKey
from stvit_cli.engine.freezing import set_training_mode
from stvit_cli.engine.precise_batch_norm import BATCH_SIZE, Recorder, batch_loader, session_batches
from stvit_cli.engine.seeding import kept_generators, seed_generators
from stvit_cli.engine.session import Session
from stvit_cli.errors import UserError
from stvit_cli.tasks.base import Batch, Task, move
from stvit_cli.utils.text import metric_text
from stvit_cli.utils.troubleshooting import see

logger = logging.getLogger(__name__)

NUM_IMAGES = 256
"""Images compared by the main metric."""
NUM_IMAGES_OF_LOSS = 32
"""Images compared by the loss, by tasks whose evaluator takes no training images: these have large ones."""
MIN_POINTS = 20.0
"""A difference of the metric in percent that is reported. Of 256 images with half of them right, a standard deviation is 3."""
MIN_IMAGES = 5
"""The number of images that the difference must amount to."""
MIN_RATIO = 2.0
"""The factor between the losses that is reported. For a sound model it is about 1."""


@dataclass(frozen=True)
class Gap:
    """What a model reaches on the same training images.

    Attributes:
        name: the main metric, or ``loss``.
        num_images: the number of images.
        batch: with the statistics of each batch.
        running: with the running statistics.
    """

    name: str
    num_images: int
    batch: float
    running: float

    def is_large(self) -> bool:
        """Whether the running statistics do not fit the weights."""
        if self.name == "loss":
            return self.running > MIN_RATIO * self.batch
        difference = self.batch - self.running
        return difference >= MIN_POINTS and difference * self.num_images / 100 >= MIN_IMAGES

    def note(self, session: Session, step: int) -> str:
        """Return what to tell the user after ``step`` steps."""
        batch, running = (metric_text(self.name, value, self.num_images) for value in (self.batch, self.running))
        train = session.recipe.train
        way_out = (
            f"Train with train.precise_bn_steps={step}, which recomputes them before each evaluation, or for longer."
            if step > train.precise_bn_steps
            else f"Train for longer, or with larger batches than {session.plan.micro_batch_size} images."
        )
        return (
            f"Warning: on {self.num_images} training images the last weights have {self.name} {batch} with the statistics of "
            f"each batch,\nbut {running} with the running statistics of the batch norms, which evaluations use.\n{way_out}\n"
            f"{see('chance-accuracy')}"
        )


def measure_gap(session: Session, step: int) -> Gap | None:
    """Compare on training images. Weights, statistics and generators are not changed; the model is left in evaluation mode.

    The batches are no larger than the micro-batches of the run, which are known to fit into the memory. The run is over: what
    fails here, memory too, is logged and costs the comparison alone.

    Args:
        session: the run.
        step: the number of steps taken.

    Returns:
        The result, the same on every process; None where no batch norm of the model trains, or the images cannot be evaluated.
    """
    task, world = session.task, session.world
    set_training_mode(task, session.recipe.finetune)
    recorder = Recorder(session.model)
    if not recorder.norms:
        return None
    batches = _batches(session, step)
    mine = range(world.rank, len(batches), world.size)
    measured, states = [_Measured(session), _Measured(session)], None
    try:
        loader = batch_loader(session, [batches[k] for k in mine])
        with kept_generators(world.device), torch.no_grad(), set_stance("force_eager"), closing(iter(loader)) as feed:
            for k, batch in zip(mine, feed, strict=True):
                on_device = move(batch, world.device)
                for part, is_running in zip(measured, (False, True), strict=True):
                    _set_modes(session, recorder, is_running)
                    seed_generators(session.recipe.train.seed, "mode gap", k)
                    with recorder:
                        part.add(k, len(batches[k]), on_device)
        states = [part.state() for part in measured]
    except UserError:  # an image that cannot be read, or outputs that are not finite: no reason to fail at the end of a run
        pass
    except Exception as error:  # memory, a dead worker, or an internal error: the other processes wait for this one's part
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning("The running statistics of the batch norms were not compared with those of a batch (%s).", said[:200])
    finally:
        session.model.eval()
    parts = world.gather(states)
    if None in parts:
        return None
    batch, running = (_combined(task, [part[index] for part in parts]) for index in (0, 1))
    name = task.main_metric if task.evaluates_training_batches else "loss"
    return Gap(name, sum(map(len, batches)), batch, running)


def _batches(session: Session, step: int) -> list[list[SampleKey]]:
    num_images = NUM_IMAGES if session.task.evaluates_training_batches else NUM_IMAGES_OF_LOSS
    largest = min(BATCH_SIZE, session.plan.micro_batch_size)
    # Of an odd number of images one batch would be larger than two, so that none is of one: what is too much is left out.
    return [keys[:largest] for keys in session_batches(session, step, num_images, largest)]


class _Measured:
    """The main metric, or the losses, of one way through the model."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.evaluator = session.task.evaluator() if session.task.evaluates_training_batches else None
        self.losses: dict[int, tuple[int, float]] = {}

    def add(self, k: int, size: int, batch: Batch) -> None:
        session = self.session
        if self.evaluator is not None:
            self.evaluator.update(session.model, batch)
            return
        with session.autocast():
            losses = session.task.training_loss(session.model, batch)
        self.losses[k] = size, sum(loss.item() for loss in losses.values())

    def state(self) -> Any:
        return self.losses if self.evaluator is None else self.evaluator.state()


def _combined(task: Task, states: list[Any]) -> float:
    if task.evaluates_training_batches:
        metrics: dict[str, float] = dict(task.evaluator().compute(states))
        return metrics[task.main_metric]
    losses: dict[int, tuple[int, float]] = {k: part for state in states for k, part in state.items()}
    return sum(size * loss for _, (size, loss) in sorted(losses.items())) / sum(size for size, _ in losses.values())


def _set_modes(session: Session, recorder: Recorder, is_running: bool) -> None:
    if session.task.evaluates_training_batches:
        session.model.eval()
    else:  # a detector gives losses in training mode alone
        set_training_mode(session.task, session.recipe.finetune)
        for module in session.model.modules():
            if isinstance(module, (_DropoutNd, DropPath)):
                module.eval()
    for norm in recorder.norms:
        norm.train(not is_running)
