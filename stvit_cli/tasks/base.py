"""The interface of a task, as the engine sees it. Engine and tasks meet here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from stvit_cli.data.byte_images import ByteImages
from stvit_cli.data.images import ImageSource, image_name
from stvit_cli.data.sampling import ClassBalance, ShuffleBlocks
from stvit_cli.errors import UserError
from stvit_cli.models.layers import drop_path_layers
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.tasks.predictions import Predictions

Batch = Any
"""The result of ``collate``: tensors in dicts, lists or tuples. The engine only moves it to a device."""


NOT_FINITE = "not finite (NaN or infinite)"
"""How messages describe such outputs."""


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
    def of(source: ImageSource) -> str:
        """Return the message about a single image."""
        return f"{image_name(source)}: the model's outputs for it are {NOT_FINITE}; take other weights."


class ImagePrediction(Protocol):
    """The prediction of a model for one image, whatever its task is.

    Attributes:
        path: the image's file; None for an image that comes from memory.
        error: why the image could not be read or predicted; None where it was.
        is_unanswered: the image was read, but the model's outputs for it are not finite.
    """

    @property
    def path(self) -> Path | None: ...

    @property
    def error(self) -> str | None: ...

    @property
    def is_unanswered(self) -> bool: ...

    def summary(self) -> str:
        """Return the prediction as one line of text."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as `stvit predict --json` writes it."""
        ...

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the prediction as rows of a table, for pandas and `stvit predict --csv`: one for each class or box.

        An image without any has one row, of which only ``image`` is set; ``error`` says why it could not be read.
        """
        ...

    def draw(self, target: Path) -> None:
        """Write the image with the prediction drawn on it, as PNG. Raises UserError where it cannot be written."""
        ...


class Evaluator(Protocol):
    """Accumulates the metrics of one evaluation.

    ``state`` is what one process saw; ``compute`` takes the states of all processes, in the order of their ranks, so that
    the metrics do not depend on the number of processes.
    """

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Evaluate ``model`` on a batch.

        Raises:
            NonFiniteOutputsError: the model's outputs are infinite or NaN; see `tasks.finite`. The evaluation then fails.
        """
        ...

    def state(self) -> Any: ...

    def compute(self, states: list[Any]) -> Iterable[tuple[str, float]]: ...


@runtime_checkable
class KeepsPredictions(Protocol):
    """An evaluator that keeps what the model said of every image."""

    def predictions(self, states: list[Any]) -> Predictions | None:
        """Return the predictions in the order of the data set, the same for any number of processes; None: there are none."""
        ...


class Evaluation(Protocol):
    """Validation data and metrics. ``val_set`` is indexed by int, without randomness."""

    name: str

    @property
    def val_set(self) -> Dataset[Any]: ...

    def collate_eval(self, samples: list[Any]) -> Batch:
        """Make a batch of validation samples."""
        ...

    def evaluator(self) -> Evaluator: ...

    def describe_eval(self, batch: Batch) -> list[str]:
        """Return the names of the images of a validation batch, for messages."""
        ...

    def check_data(self) -> list[str]:
        """Check a small part of the data, in seconds, before they are used; return one line for each suspicious finding.

        Raises:
            UserError: a problem that would end the training or the evaluation, or make its metrics meaningless.
        """
        ...


@runtime_checkable
class HasCompilableBlocks(Protocol):
    """A model whose blocks can be compiled one by one."""

    def compile_blocks(self) -> None:
        """Compile every block in place."""
        ...


@runtime_checkable
class KeepsImages(Protocol):
    """A task that can keep its decoded images in memory."""

    def keep_images(self, num_samples: int, stopped: Callable[[], bool], advance: Callable[[int, int], None]) -> str | None:
        """Decode the images and keep them, where the recipe says so or they are small. What comes out stays the same.

        Args:
            num_samples: number of training samples that the run still takes.
            stopped: asked now and then; nothing is kept then.
            advance: called with the number of images done and their total.

        Returns:
            A line for the user; None where they are not kept.

        Raises:
            UserError: the recipe asks for it, and there is not enough memory.
        """
        ...


@runtime_checkable
class HasSubset(Protocol):
    """An evaluation that may have a second one, among some of the model's classes (``eval.subset``)."""

    @property
    def subset(self) -> Evaluation | None:
        """The images of these classes and their metrics, which are reported as ``subset_NAME``; None: there is none."""
        ...

    def subset_fingerprints(self) -> tuple[str, ...]:
        """Return hashes of these classes and images, of which a resumed run measures the same ones; empty: there is no subset.

        A checkpoint keeps the first; the others are those that earlier versions kept.
        """
        ...


@runtime_checkable
class HasTestSet(Protocol):
    """A task whose data may have a test set: the best weights are evaluated on it once, when the training is over."""

    @property
    def test(self) -> Evaluation | None:
        """The test images and their metrics, which are those of the validation; None: the recipe names none."""
        ...


@dataclass(frozen=True)
class Preparation:
    """How a model runs on a device.

    Attributes:
        kernels: custom kernels run parts of the model.
        kernels_in_training: they do so in training steps too, not in evaluations alone.
        kernel_layers: the kinds of layers that run by them on a GPU (`models.kernels.choice`); a resumed run keeps them.
        notes: what a run says about it when it starts.
    """

    kernels: bool
    kernels_in_training: bool
    kernel_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Task(Evaluation, Protocol):
    """A model, its data, its loss and its metrics.

    Attributes:
        model: the model on the CPU, initialised or loaded; the engine moves and wraps it.
        train_set: indexed by ``data.loader.SampleKey``; an item is a function of (seed, key) alone.
        aspect_ratios: width / height of each training image, where images of similar shape are to share a micro-batch, which
            saves padding; otherwise None. See `data.sampling.TrainBatches`.
        class_balance: how often each class is sampled; None: every image once in an epoch. See `data.sampling.ClassBalance`.
        shuffle_blocks: shuffle by blocks of images, such as shards; None: among all images. See `data.sampling.ShuffleBlocks`.
        main_metric: the name of the metric that decides which weights are best; higher is better.
        evaluates_training_batches: the evaluator takes a batch of training samples too.
        is_deterministic: on a GPU too, the operators of its training step have deterministic algorithms.
        batch_multiple: the size of a micro-batch must be a multiple of this (2 where images are mixed in pairs).
    """

    model: nn.Module
    main_metric: str
    evaluates_training_batches: bool
    is_deterministic: bool
    batch_multiple: int
    aspect_ratios: NDArray[np.float64] | None
    class_balance: ClassBalance | None
    shuffle_blocks: ShuffleBlocks | None

    @property
    def train_set(self) -> Dataset[Any]: ...

    def collate(self, samples: list[Any]) -> Batch:
        """Make a batch of training samples."""
        ...

    def prepare(
        self,
        device_type: str,
        dtype: torch.dtype,
        *,
        kernels: bool | Literal["auto"] | tuple[str, ...],
        compile_blocks: bool,
    ) -> Preparation:
        """Choose how ``model`` runs. Called on the main process first, then on all; `tasks.preparation` has an implementation.

        Args:
            device_type: ``cpu`` or ``cuda``.
            dtype: what a training step computes in: float32, or that of autocast.
            kernels: whether custom kernels run the parts of the model that have one; ``auto``: where they are faster; or the
                kinds of layers that they run, as an earlier preparation chose them on a GPU.
            compile_blocks: whether `compile` will be called.

        Raises:
            UserError: kernels or compilation are asked for, and the model or the machine has none.
        """
        ...

    def compile(self) -> None:
        """Compile the blocks of ``model`` in place."""
        ...

    def training_loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return named scalar losses, each the mean over the batch; their sum is minimised.

        The global generators (random, numpy, torch) are seeded by the engine with (seed, step, micro-batch) before the call.
        """
        ...

    def heads(self) -> list[nn.Module]:
        """Return the modules of ``model`` that a linear probe trains; all others are the backbone."""
        ...

    def param_groups(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        """Return the optimizer's groups of the trainable parameters, each with ``params``, ``weight_decay`` and ``lr_scale``.

        Args:
            weight_decay: of the parameters that decay.
            layer_decay: factor of the learning rate from one layer to the layer before it; None: the same rate for all.
        """
        ...

    def weights_info(self) -> WeightsInfo:
        """Return the metadata of the model's weights file."""
        ...

    def notes(self) -> list[str]:
        """Return the lines that are shown when a run starts: the size of the data, what was loaded from given weights."""
        ...

    def data_problems(self) -> list[str]:
        """Return one line for each problem found in a larger part of the data; may take a minute."""
        ...

    def data_fingerprint(self) -> str:
        """Return a hash of the names, classes and order of the training data; it must be the same when a run is resumed."""
        ...

    def describe(self, batch: Batch) -> list[str]:
        """Return the names of the files of a training batch, for messages."""
        ...

    def skipped(self, batch: Batch) -> list[str]:
        """Return the names of the files that could not be read; the batch has other samples in their place."""
        ...


def freeze_batch_norms(model: nn.Module) -> None:
    """Put every batch norm of ``model`` into evaluation mode: it then uses its running statistics and leaves them unchanged."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def freeze_drop_path(model: nn.Module) -> None:
    """Put all stochastic depth of ``model`` into evaluation mode: it then drops nothing."""
    kinds = drop_path_layers()
    for module in model.modules():
        if isinstance(module, kinds):
            module.eval()


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor in it on ``device``; images (4-d floats) in channels-last memory."""
    if isinstance(batch, Tensor):
        if batch.ndim == 4 and batch.is_floating_point():
            return batch.to(device, non_blocking=True, memory_format=torch.channels_last)
        return batch.to(device, non_blocking=True)
    if isinstance(batch, ByteImages):
        return batch.on(device)
    if isinstance(batch, dict):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(move(value, device) for value in batch)
    return batch


def in_float64(values: Tensor) -> Tensor:
    """Return the values in float64: on their device, or on the CPU where that has no float64 (Apple's MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()
