"""Trained models: `load` and `evaluate`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, overload

from stvit_cli.api.overrides import Overrides, as_words
from stvit_cli.api.results import EvaluationResult, ExportResult
from stvit_cli.errors import UserError
from stvit_cli.utils.cpus import limit_threads
from stvit_cli.utils.environment import is_main_process
from stvit_cli.utils.files import require_writable_folder
from stvit_cli.utils.packaged_weights import packaged_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import nn

    from stvit_cli.analysis.associations.report import WrittenFile
    from stvit_cli.data.images import ImageSource
    from stvit_cli.engine.evaluation import Evaluated
    from stvit_cli.models.optimize.inference import Precision
    from stvit_cli.models.weights.info import WeightsInfo
    from stvit_cli.tasks.base import ImagePrediction
    from stvit_cli.tasks.loading import Trained

AnyPath = str | os.PathLike[str]

logger = logging.getLogger(__name__)


class TrainedModel:
    """A trained model, ready to use; `load` makes it.

    Attributes:
        model: the network in evaluation mode on the CPU. Predictions run on an optimized copy, which is made again after its
            weights have changed.
        info: the metadata of its weights file: task, classes, image size, normalization.
        path: the weights file.
        device: where it runs: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        trained: the same for the packages below: `tasks.spec.Trained`.
    """

    def __init__(self, trained: Trained, device: str = "auto") -> None:
        self.model: nn.Module = trained.model
        self.info: WeightsInfo = trained.info
        self.path: Path = trained.path
        self.device = device
        self.trained = trained

    def __repr__(self) -> str:
        return f"TrainedModel({self.info.model}, {self.info.task}, {self.info.num_classes} classes, {str(self.path)!r})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by index; numbers where the weights file has no names."""
        from stvit_cli.tasks.classification.predict import class_names

        return tuple(class_names(self.trained))

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is a path, not a sequence of images
        self,
        images: AnyPath | Image.Image | NDArray[np.uint8],
        *,
        top: int = 1,
        score_threshold: float = 0.5,
        precision: Precision = "fp32",
    ) -> ImagePrediction: ...

    @overload
    def predict(
        self, images: Sequence[ImageSource], *, top: int = 1, score_threshold: float = 0.5, precision: Precision = "fp32"
    ) -> list[ImagePrediction]: ...

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        top: int = 1,
        score_threshold: float = 0.5,
        precision: Precision = "fp32",
    ) -> ImagePrediction | list[ImagePrediction]:
        """Predict one image or several.

        Args:
            images: a path, a PIL image or an RGB array (H, W, 3) of uint8; or a list of them.
            top: classifiers: number of classes to return, at least 1.
            score_threshold: detectors, and classifiers of several labels: leave out what has a lower score, 0 to 1.
            precision: fp32 or bf16: what the model computes in. bf16 is faster on GPUs and on CPUs with bf16 instructions.

        Returns:
            For a single image its prediction, for a list a list in the same order. The class depends on the task:
            `tasks.classification.predict.ClassificationPrediction`, `tasks.detection.predict.DetectionPrediction` or
            `tasks.segmentation.predict.SegmentationPrediction`. Each has ``summary()``, ``to_dict()`` and ``draw(path)``.

        Raises:
            UserError: a single image cannot be read or predicted. In a list, the prediction's ``error`` says so and the other
                images are predicted.
        """
        if isinstance(images, Sequence) and not isinstance(images, str):
            return list(self.iter_predictions(images, top=top, score_threshold=score_threshold, precision=precision))
        (result,) = self.iter_predictions([images], top=top, score_threshold=score_threshold, precision=precision)
        if result.error is not None:
            raise UserError(result.error)
        return result

    def iter_predictions(
        self, images: Sequence[ImageSource], *, top: int = 1, score_threshold: float = 0.5, precision: Precision = "fp32"
    ) -> Iterator[ImagePrediction]:
        """Yield predictions as they are made: for more images than fit into memory. See `predict`."""
        from stvit_cli import tasks
        from stvit_cli.engine.distributed import pick_device
        from stvit_cli.tasks.spec import PredictOptions

        if top < 1:
            raise UserError(f"top: found {top}, expected 1 or more.")
        if not 0 <= score_threshold <= 1:
            raise UserError(f"score_threshold: found {score_threshold}, expected 0 to 1.")
        _require_precision(precision)
        options = PredictOptions(top=top, score_threshold=score_threshold, precision=precision)
        return tasks.predict(self.trained, images, options, device=pick_device(self.device))

    def embed(self, images: Sequence[ImageSource], *, precision: Precision = "fp32") -> NDArray[np.float32]:
        """Return the features (N, D) of some images, from which the classifier computes its logits; of stvit-s, D is 1024.

        For more than fit into memory there is `api.prediction.embed`.

        Args:
            images: N paths, PIL images or RGB arrays (H, W, 3) of uint8.
            precision: what the model computes in: fp32 or bf16.

        Raises:
            UserError: an image cannot be read, the features of one are not finite, or the model is no classifier.
        """
        from stvit_cli.engine.distributed import pick_device
        from stvit_cli.tasks.classification.bulk import embed

        _require_precision(precision)
        self._require_weights()
        return embed(self._without_classifier, images, precision, pick_device(self.device))

    @cached_property
    def _without_classifier(self) -> Trained:
        from stvit_cli.tasks.classification.bulk import without_classifier

        return without_classifier(self.trained)

    def evaluate(
        self,
        data: AnyPath,
        overrides: Overrides = (),
        *,
        output: AnyPath | None = None,
        max_images: int = 50,
        precision: Precision = "fp32",
    ) -> EvaluationResult:
        """Evaluate on a folder or a table, prepared as the weights file says; see `evaluate`."""
        from stvit_cli.analysis.evaluate import evaluate as run
        from stvit_cli.analysis.evaluate import recipe_for
        from stvit_cli.api.other_data import keys_of_other_data

        _require_precision(precision)
        given = as_words(overrides)
        own = recipe_for(self.trained, [])
        device = [] if self.device == "auto" else [f"train.device={self.device}"]
        recipe = recipe_for(self.trained, [*device, *keys_of_other_data(own, data, given), *given])
        drawn = _drawn(output, max_images)
        found = run(self.trained, recipe, whole=True, say=_warn, precision=precision, **drawn)
        return _evaluation(self.info.task, found)

    def export(
        self,
        path: AnyPath,
        precision: str = "fp32",
        *,
        calibrate: AnyPath | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> ExportResult:
        """Write the model for use elsewhere.

        Args:
            path: a new file: ``.onnx`` (for any height and width from 64, and any batch but of a detector, compared with the
                model before it gets its name), ``.xml`` (OpenVINO, with a ``.bin`` file beside it), ``.pt2`` (`torch.export`;
                no detectors) or ``.safetensors``.
            precision: fp32; fp16 or bf16: of the weights, an ``.onnx`` file computes in float32; int8 (classifiers as ``.onnx``):
                convolutions and linear layers compute in it, except those that lose too much (`models.optimize.quantize`).
            calibrate: int8: a folder of images like those that the model is for; by default the training images of the run that
                the weights lie in, on whose validation images the accuracy is then measured.
            say: called with a line on what is done next.

        Raises:
            UserError: the file exists or cannot be written, a package is missing, the format does not hold the model or the
                precision, weights exceed the range of fp16, there are no images to calibrate on, or int8 loses too much.
        """
        from stvit_cli.analysis.export_formats import export_file
        from stvit_cli.tasks.exported import files_of

        self._require_weights()
        target = Path(path)
        details = export_file(self.trained, target, precision, calibrate=_optional(calibrate), say=say)
        return ExportResult(target, self.info.model, sum(file.stat().st_size for file in files_of(target)), details)

    def _require_weights(self) -> None:
        from stvit_cli.tasks.exported import ExportedModel

        if isinstance(self.model, ExportedModel):
            raise UserError(f"{self.path}: an exported file predicts and evaluates; this needs the weights that it is made of.")

    def visualize_associations(
        self,
        image: AnyPath,
        output: AnyPath,
        *,
        layers: Sequence[str] = (),
        points: Sequence[tuple[int, int]] = (),
        image_size: int | None = None,
        keep_size: bool = False,
        html: bool = False,
        arrays: AnyPath | None = None,
        labels: AnyPath | None = None,
    ) -> list[WrittenFile]:
        """Write figures of the super tokens of an image and of the attention between its tokens.

        Args:
            image: the image file.
            output: the folder to write into.
            layers: only these, such as ``stage1.block2``, or ``stage1`` for all of its blocks.
            points: (x, y) in pixels of the image, whose attention is shown.
            image_size: the short side of the model's input, in pixels; by default the one of its training.
            keep_size: use the image at its own size.
            html: also write a page on which a click shows the attention of a position.
            arrays: also save the arrays, as ``.npz``.
            labels: a label map, to measure the super tokens as superpixels beside a regular grid and SLIC.

        Returns:
            The files written, each with its kind.

        Raises:
            UserError: the image or the label map cannot be used, a layer or point does not exist, or a file cannot be written.
        """
        from stvit_cli.analysis.associations.report import ShownModel, VisualizationOptions, visualize

        self._require_weights()

        words = f"{self.info.model}, weights {self.path.name}"
        options = VisualizationOptions(
            tuple(layers), tuple(points), image_size, keep_size, html, _optional(arrays), _optional(labels)
        )
        return list(visualize(ShownModel(self.model, self.info, True, words), Path(image), Path(output), options))


def load(path: AnyPath, model: str | None = None, *, device: str = "auto") -> TrainedModel:
    """Load a trained model.

    Args:
        path: a weights file, a checkpoint of the authors, a run directory, whose best weights are taken, or the name of weights
            that come with the package (`list_weights`), such as ``stvit-nano.fashion-mnist``; or a file of `TrainedModel.export`
            (``.onnx``, or ``.xml`` of OpenVINO), which predicts and evaluates in its runtime, on the CPU.
        model: the architecture that is expected, such as ``stvit-s``; any by default.
        device: where it runs: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        UserError: the file is missing, damaged, incomplete, or of another architecture.
    """
    from stvit_cli.tasks.loading import open_trained

    limit_threads()
    return TrainedModel(open_trained(Path(path), model, takes_exported=True), device)


def evaluate(
    run_or_weights: AnyPath,
    data: AnyPath | None = None,
    overrides: Overrides = (),
    *,
    model: str | None = None,
    output: AnyPath | None = None,
    max_images: int = 50,
    precision: Precision = "fp32",
) -> EvaluationResult:
    """Evaluate a run on its validation data, or a model on other data.

    Args:
        run_or_weights: a run directory, whose best weights are taken, or a weights file.
        data: a folder of images by class, or in the layout of COCO or ADE20K, by the task of the model; by default the run's own.
        overrides: recipe keys to set, such as ``eval.batch_size``.
        model: the architecture that is expected; any by default.
        output: a folder to draw images into, with truth and prediction, the worst first; None: nothing is drawn.
        max_images: the largest number of images that are drawn.
        precision: fp32 or bf16: what the model computes in.

    Raises:
        UserError: no model or no data there, the data have classes that the model does not know, or ``output`` cannot be written
            into.
    """
    from stvit_cli.recipe import io as recipe_io

    limit_threads()
    _require_precision(precision)
    path = Path(run_or_weights)
    path = packaged_file(path) or path
    if not path.is_dir() and data is not None:
        return load(path, model).evaluate(data, overrides, output=output, max_images=max_images, precision=precision)
    if path.is_file():
        raise UserError(
            "A weights file comes without data; give a folder of images by class, or in the layout of its task: data=DIR"
        )
    from stvit_cli.analysis.evaluate import evaluate as run
    from stvit_cli.analysis.evaluate import same_folder
    from stvit_cli.api.other_data import keys_of_other_data
    from stvit_cli.engine.run_dir import RunDir
    from stvit_cli.tasks.loading import open_trained

    drawn = _drawn(output, max_images)
    saved = RunDir(path)
    saved.require_run()
    own = recipe_io.load(saved.recipe)
    given = as_words(overrides)
    other = [] if data is None else keys_of_other_data(own, data, given)
    recipe = recipe_io.load(saved.recipe, [*other, *given])
    is_other = recipe.data.dir is not None and not same_folder(own.data.dir, recipe.data.dir)
    found = run(open_trained(path, model), recipe, whole=is_other, say=_warn, precision=precision, **drawn)
    return _evaluation(recipe.task, found)


def run_predictions(run: AnyPath) -> EvaluationResult:
    """Return what a run's best weights predict for its validation images, with the truth and the metrics.

    A run keeps it as `predictions.parquet` or `predictions.csv`. Where that is missing or of other weights, as in runs of earlier
    versions, the run is evaluated, and it is kept then.

    Args:
        run: the run directory.

    Returns:
        Metrics and ``predictions``, whose class depends on the task: `tasks.classification.predictions`,
        `tasks.detection.predictions` or `tasks.segmentation.predictions`.

    Raises:
        UserError: no run is there, it has no weights yet, or its data are not where they were.
    """
    from stvit_cli.analysis.run_predictions import predictions_of_run

    limit_threads()
    found = predictions_of_run(Path(run), say=_warn)
    return EvaluationResult(found.recipe.task, found.metrics, found.predictions)


def _evaluation(task: str, found: Evaluated) -> EvaluationResult:
    return EvaluationResult(task, found.metrics, found.predictions, found.precision)


def _require_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision: found {precision!r}, expected fp32 or bf16.")


class _Drawn(TypedDict):
    output: Path | None
    max_images: int


def _drawn(output: AnyPath | None, max_images: int) -> _Drawn:
    """Return the arguments of drawings; raise UserError where they cannot be written: before the work, not after it."""
    if max_images < 1:
        raise UserError(f"max_images: found {max_images}, expected 1 or more.")
    if output is not None and is_main_process():
        require_writable_folder(Path(output))
    return {"output": _optional(output), "max_images": max_images}


def _warn(line: str) -> None:
    """Log what looks wrong with the data; of several processes only the first does."""
    if is_main_process():
        logger.warning("%s", line)


def _optional(path: AnyPath | None) -> Path | None:
    return None if path is None else Path(path)
