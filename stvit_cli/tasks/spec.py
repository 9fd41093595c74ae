"""What the rest of the toolkit needs to know of a task: a `TaskSpec`, which `tasks.registry` finds by the task's name."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import torch
from PIL.Image import Image
from torch import nn

from stvit_cli.data.classification import Images
from stvit_cli.data.images import ImageSource
from stvit_cli.errors import UserError
from stvit_cli.models.optimize.inference import Precision, bf16_is_native, for_inference
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.base import Evaluation, ImagePrediction, Task
from stvit_cli.tasks.bulk import BulkPredictor
from stvit_cli.tasks.data_view import DataView
from stvit_cli.tasks.exported import ExportedModel, ExportForm, Run
from stvit_cli.tasks.image_scores import ImageScores
from stvit_cli.tasks.predictions import Predictions
from stvit_cli.tasks.report_parts import ReportSection, ShownImage

logger = logging.getLogger(__name__)

FEW_IMAGES = 16
"""Images for which no copy is prepared: for stvit-s at 224 that takes 0.3 s on two cores of an AMD EPYC, as the model for two."""


@dataclass(frozen=True)
class Trained:
    """A trained model, ready for inference.

    Attributes:
        model: the model in evaluation mode, on the CPU.
        info: the metadata of its weights file.
        path: the weights file.
    """

    model: nn.Module
    info: WeightsInfo
    path: Path
    _num_images: Counter[torch.device] = field(default_factory=Counter, init=False, repr=False, compare=False)
    _prepared: dict[tuple[torch.device, Precision, Literal["auto", False]], tuple[object, nn.Module]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def prepared(self, device: torch.device, num_images: int | None = None, precision: Precision = "fp32") -> nn.Module:
        """Return the model as `for_inference` makes it: once for a device, and again after its weights have changed.

        Args:
            device: where it runs.
            num_images: the number of images that it is for. On a CPU the model itself is returned in fp32 for the first
                `FEW_IMAGES` of all calls: preparing a copy takes longer than it saves. On a GPU the copy for so few has no custom
                kernels. None: prepare it in any case.
            precision: what it computes in; its outputs are float32. Where bf16 is slower than fp32, a warning says so once.

        Raises:
            UserError: an exported file is to compute in another precision than its own.
        """
        if isinstance(self.model, ExportedModel):
            if precision != "fp32":
                raise UserError(
                    f"{self.path} computes in the precision that it was exported in; leave out precision {precision}."
                )
            return self.model
        self._num_images[device] += num_images or 0
        is_few = num_images is not None and self._num_images[device] <= FEW_IMAGES
        if device.type == "cpu" and is_few and precision == "fp32":
            return self.model
        if precision == "bf16":
            _warn_without_bf16(device)
        versions = tuple(
            (id(tensor), 0 if tensor.is_inference() else tensor._version)
            for tensor in (*self.model.parameters(), *self.model.buffers())
        )
        # On a GPU Triton's compiler needs seconds once in a process, and the choice some more once on a machine.
        kernels: Literal["auto", False] = False if device.type == "cuda" and is_few else "auto"
        key = device, precision, kernels
        if key not in self._prepared or self._prepared[key][0] != versions:
            self._prepared[key] = versions, for_inference(self.model, device, precision, kernels=kernels)
        return self._prepared[key][1]


@cache
def _warn_without_bf16(device: torch.device) -> None:
    if not bf16_is_native(device):
        logger.warning("This %s has no bf16 instructions: fp32 is faster here.", "GPU" if device.type == "cuda" else "CPU")


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction. Each task reads those that apply to it.

    Attributes:
        top: classification: the number of classes to return, where an image has one class.
        score_threshold: detection: objects with a lower score are left out. Classification with several labels for each image:
            classes with a lower probability are.
        batch_size: classification: images in a batch.
        num_workers: classification: processes that decode images.
        precision: what the model computes in.
    """

    top: int = 1
    score_threshold: float = 0.5
    batch_size: int = 32
    num_workers: int = 8
    precision: Precision = "fp32"


class Predict(Protocol):
    """Yields the prediction for each image, in order."""

    def __call__(
        self, trained: Trained, images: Sequence[ImageSource], options: PredictOptions, device: torch.device
    ) -> Iterator[ImagePrediction]: ...


class BuildEvaluation(Protocol):
    """Builds what evaluates a trained model; see `tasks.build_evaluation`."""

    def __call__(self, recipe: Recipe, info: WeightsInfo, *, whole: bool) -> Evaluation: ...


@dataclass(frozen=True)
class ReportInput:
    """What a task makes its part of a report of.

    Attributes:
        recipe: of the run.
        evaluation: the validation data; its ``val_set`` opens the images.
        predictions: of the run's best weights for these data.
        trained: the model with these weights, for what is computed for a few images again.
        device: where it runs.
        max_images: how many images a gallery may show.
        precision: what the predictions were computed in.
    """

    recipe: Recipe
    evaluation: Evaluation
    predictions: Predictions
    trained: Trained
    device: torch.device
    max_images: int = 24
    precision: Precision = "fp32"


@dataclass(frozen=True)
class EvalDrawing:
    """A validation image with truth and prediction.

    Attributes:
        name: of the image, within the data set.
        draw: draws it. Raises UserError or OSError where the image cannot be opened any more.
    """

    name: str
    draw: Callable[[], Image]


def unchanged(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Resolve nothing: return the recipe as it is, without a note; see `tasks.resolve`."""
    return recipe, []


@dataclass(frozen=True)
class TaskSpec:
    """A task: how to build, evaluate and use its models. Everything that differs between tasks outside their folders.

    Attributes:
        name: the recipe's ``task``.
        build: builds the task of a recipe; the second argument is a weights file to start from.
        build_evaluation: builds what evaluates a trained model.
        build_test: builds the same of a recipe's test images; None: the task has none.
        create_model: creates the model that a weights file describes, freshly initialised.
        predict: predicts images with a trained model.
        create_cost_model: creates the model of a recipe in a form that takes (1, C, H, W) and can be traced, to count its cost.
        view_data: returns what a recipe's data set holds, for `stvit data show` and `stvit data check`.
        folder_kind: the ``data.kind`` of a folder of the user's own data.
        resolve: makes the choices of a new run's recipe that depend on its data, see `tasks.resolve`; by default there are none.
        published_size: height and width for which costs are published; None: the recipe's ``data.image_size``.
        eval_batch_size: the batch size of an evaluation without a run; None: the recipe's default.
        export_form: returns a model as one graph; None: the models cannot be exported.
        exported_model: makes a model of an exported file; None: none can be read.
        training_images: returns the training images of a recipe, unaugmented, to calibrate int8 on; None: nothing is calibrated.
        read_predictions: reads what `tasks.predictions.Predictions.write` wrote, with the names of the classes; None: predictions
            are not kept.
        image_scores: returns how right the predictions are about each image; None: runs are compared without it.
        report: yields the task's sections of a report; None: it has none.
        metrics_section: returns the one of the metrics alone, of any predictions; None: with ``build_test`` None.
        draw_evaluation: yields the validation images with truth and prediction, the worst first; None: it draws none.
        compared_image: returns what draws a validation image, by its index, for comparing runs: thumbnails labelled ``truth`` and
            ``prediction``, None where it cannot be opened. None: what is said of an image is a line of text.
        bulk_predictor: predicts batches of many images, for `analysis.prediction`; None: the task has none.
        sample_sheet: draws augmented training samples with their truth: of a task, their number.
        samples_note: how they differ, if at all, from what the model sees.
    """

    name: str
    build: Callable[[Recipe, Path | None], Task]
    build_evaluation: BuildEvaluation
    create_model: Callable[[WeightsInfo], nn.Module]
    predict: Predict
    create_cost_model: Callable[[Recipe], nn.Module]
    folder_kind: str
    view_data: Callable[[Recipe], DataView] | None = None
    resolve: Callable[[Recipe], tuple[Recipe, list[str]]] = unchanged
    published_size: tuple[int, int] | None = None
    eval_batch_size: int | None = None
    export_form: Callable[[Trained], ExportForm] | None = None
    exported_model: Callable[[WeightsInfo, Run], ExportedModel] | None = None
    training_images: Callable[[Recipe], Images] | None = None
    read_predictions: Callable[[Path, Sequence[str]], Predictions] | None = None
    image_scores: Callable[[Predictions], ImageScores] | None = None
    build_test: Callable[[Recipe, WeightsInfo], Evaluation] | None = None
    report: Callable[[ReportInput], Iterator[ReportSection]] | None = None
    metrics_section: Callable[[Predictions], ReportSection] | None = None
    sample_sheet: Callable[[Task, int], Sequence[ShownImage]] | None = None
    samples_note: str = "As the model sees them, after augmentation, with the truth that it learns."
    draw_evaluation: Callable[[ReportInput], Iterator[EvalDrawing]] | None = None
    compared_image: Callable[[ReportInput], Callable[[int], ShownImage | None]] | None = None
    bulk_predictor: Callable[[Trained, PredictOptions, torch.device], BulkPredictor] | None = None
