"""What the trainer needs of a task. Engine and tasks meet here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.utils.text import printable

Batch = Any
"""What ``collate`` made of a list of samples: tensors in dicts, lists or tuples; the engine only moves it to a device."""


NOT_FINITE = "not finite (NaN or infinite)"
"""What a message says of such outputs."""


class NonFiniteOutputsError(UserError):
    """Outputs of a model are infinite or not a number.

    Attributes:
        finite: for each image of the batch, whether its outputs are finite.
    """

    def __init__(self, finite: Sequence[bool]) -> None:
        images = f" for {len(finite) - sum(finite)} of {len(finite)} images" if len(finite) > 1 else ""
        super().__init__(f"the model's outputs are {NOT_FINITE}{images}")
        self.finite = list(finite)

    @staticmethod
    def of(path: Path) -> str:
        """Return what to say of a single image."""
        return f"{printable(str(path))}: the model's outputs for it are {NOT_FINITE}; take other weights."


class ImagePrediction(Protocol):
    """The prediction of a model for one image, whatever its task is.

    Attributes:
        path: the image's file.
        error: why the image could not be read or predicted; None where it was.
    """

    @property
    def path(self) -> Path: ...

    @property
    def error(self) -> str | None: ...

    def summary(self) -> str:
        """Return the prediction as one line of text."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as `stvit predict --json` writes it."""
        ...

    def draw(self, target: Path) -> None:
        """Write the image with the prediction drawn on it, as PNG. Raises UserError where it cannot be written."""
        ...


class Evaluator(Protocol):
    """Collects what is needed for the metrics of one evaluation.

    ``state`` is what one process saw; ``compute`` takes the states of all processes, in the order of their ranks, so that
    the figures are the same however many processes there are.
    """

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Evaluate ``model`` on a batch.

        Raises:
            NonFiniteOutputsError: the model's outputs are infinite or NaN; see `tasks.finite`. The evaluation then fails.
        """
        ...

    def state(self) -> Any: ...

    def compute(self, states: list[Any]) -> Iterable[tuple[str, float]]: ...


class Evaluation(Protocol):
    """What an evaluation needs: data and metrics. ``val_set`` is indexed by int, without randomness."""

    name: str

    @property
    def val_set(self) -> Dataset[Any]: ...

    def collate_eval(self, samples: list[Any]) -> Batch:
        """Make a batch of validation samples."""
        ...

    def evaluator(self) -> Evaluator: ...

    def describe_eval(self, batch: Batch) -> list[str]:
        """Return the names of the images of a validation batch, for a message about some of them."""
        ...

    def check_data(self) -> list[str]:
        """Look at a part of the data in little time, before they are used; return what looks wrong, a line each.

        Raises:
            UserError: what is wrong would end the training or the evaluation, or make its metrics meaningless.
        """
        ...


@runtime_checkable
class HasCompilableBlocks(Protocol):
    """A model whose blocks can be compiled one by one."""

    def compile_blocks(self) -> None:
        """Compile every block in place."""
        ...


@dataclass(frozen=True)
class Preparation:
    """How a model runs on a device.

    Attributes:
        kernels: custom kernels run parts of the model.
        kernels_in_training: they do so in training steps too, not in evaluations alone.
    """

    kernels: bool
    kernels_in_training: bool


class Task(Evaluation, Protocol):
    """A model, its data, its loss and its metrics.

    Attributes:
        model: on the CPU, initialised (or loaded); the engine moves and wraps it.
        train_set: indexed by ``data.loader.SampleKey``; an item is a function of (seed, key) alone.
        aspect_ratios: width / height of each training image, where images of similar shape are to share a micro-batch, which
            saves padding; otherwise None. See `data.sampling.TrainBatches`.
        main_metric: the name of the metric that decides which weights are best; higher is better.
        batch_multiple: a micro-batch must hold a multiple of so many samples (2 where images are mixed in pairs).
    """

    model: nn.Module
    main_metric: str
    batch_multiple: int
    aspect_ratios: NDArray[np.float64] | None

    @property
    def train_set(self) -> Dataset[Any]: ...

    def collate(self, samples: list[Any]) -> Batch:
        """Make a batch of training samples."""
        ...

    def prepare(
        self, device_type: str, dtype: torch.dtype, *, kernels: bool | Literal["auto"], compile_blocks: bool
    ) -> Preparation:
        """Choose how ``model`` runs. Called on the main process first, then on all; `tasks.preparation` has an implementation.

        Args:
            device_type: ``cpu`` or ``cuda``.
            dtype: what a training step computes in: float32, or that of autocast.
            kernels: whether custom kernels run the parts of the model that have one; ``auto``: where they are faster.
            compile_blocks: whether `compile` will be called.

        Raises:
            UserError: kernels or compilation are asked for, and the model or the machine has none.
        """
        ...

    def compile(self) -> None:
        """Compile the blocks of ``model`` in place."""
        ...

    def training_loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return named scalar losses, each the mean over the batch; their sum is what is minimised.

        The global generators (random, numpy, torch) are seeded by the engine with (seed, step, micro-batch) before the call.
        """
        ...

    def heads(self) -> list[nn.Module]:
        """Return the modules of ``model`` that a linear probe trains; all else is the backbone."""
        ...

    def param_groups(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        """Return the optimiser's groups of what requires a gradient; each has ``params``, ``weight_decay`` and ``lr_scale``."""
        ...

    def weights_info(self) -> WeightsInfo:
        """Return what goes into the metadata of a weights file."""
        ...

    def notes(self) -> list[str]:
        """Return what a person should know when a run begins: how much data there is, what became of given weights."""
        ...

    def data_problems(self) -> list[str]:
        """Return what looks wrong with the data, found by opening a larger part of them; may take a minute."""
        ...

    def data_fingerprint(self) -> str:
        """Return a hash of the training data's names, classes and order; a resumed run must have the same."""
        ...

    def describe(self, batch: Batch) -> list[str]:
        """Return the names of the batch's files, for a message about a bad batch."""
        ...

    def skipped(self, batch: Batch) -> list[str]:
        """Return the names of files that could not be read and that other samples of the batch stand in for."""
        ...


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor in it on ``device``; images (4-d floats) in channels-last memory."""
    if isinstance(batch, Tensor):
        if batch.ndim == 4 and batch.is_floating_point():
            return batch.to(device, non_blocking=True, memory_format=torch.channels_last)
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(move(value, device) for value in batch)
    return batch
