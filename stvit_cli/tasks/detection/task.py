"""Detection and instance segmentation: boxes, classes and masks of the objects in an image."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stvit_cli.data.coco import CocoImages, DetectionData, DetectionEvalSet
from stvit_cli.data.inspection import require_usable
from stvit_cli.data.loader import derive_seed, seeded
from stvit_cli.models.options import options_of
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.models.weights.info import DETECTOR_KEYS
from stvit_cli.recipe import DetectionSection, Recipe
from stvit_cli.tasks.data_checks import unusable_images
from stvit_cli.tasks.detection.data import build_detection, build_detection_eval_set
from stvit_cli.tasks.detection.detector import BOX_ONLY, Detector, create_detector, encoded_masks
from stvit_cli.tasks.detection.metrics import as_result, coco_metrics, require_writable_results, write_results
from stvit_cli.tasks.detection.predictions import DetectionPredictions, as_predictions
from stvit_cli.tasks.param_groups import without_decay_on_norms
from stvit_cli.tasks.preparation import PreparedModel
from stvit_cli.tasks.weights import load_initial_weights, recipe_weights_info
from stvit_cli.utils.environment import is_main_process

log = logging.getLogger(__name__)

NUM_OPENED = 200
"""The largest number of images of a set that are opened in the search for problems."""

TRAINING_KEYS = ("freeze_batch_norm", "num_proposals", "num_samples")
"""The keys of a recipe's section that belong to a detector in training; see `DETECTOR_KEYS` for the others."""

CLASS_LAYERS = ("box_predictor.", "mask_fcn_logits.")
"""The last layers of the heads, with a row for each class."""


class DetectionEvaluation:
    """See `tasks.base.Evaluation`. A batch is ``{"image": [3 H W], "index": [int]}``, each image of its own size."""

    name = "detection"

    def __init__(self, val_set: DetectionEvalSet, section: DetectionSection) -> None:
        self.val_set, self.section = val_set, section

    def collate_eval(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: [sample[key] for sample in samples] for key in ("image", "index")}

    def evaluator(self) -> DetectionEvaluator:
        return DetectionEvaluator(self.val_set, self.section.results_json, masks=self.section.head in BOX_ONLY)

    def describe_eval(self, batch: dict[str, Any]) -> list[str]:
        return [self.val_set.path(index) for index in batch["index"]]

    def check_data(self) -> list[str]:
        return []  # an evaluation opens every image itself


class DetectionTask(PreparedModel, DetectionEvaluation):
    """See `tasks.base.Task`. A training batch also has ``"targets"`` and ``"skipped"`` (paths)."""

    main_metric = "box_ap"
    batch_multiple = 1

    def __init__(self, recipe: Recipe, data: DetectionData, model: Detector, notes: list[str]) -> None:
        super().__init__(data.val_set, recipe.detection)
        self.recipe, self.data, self._notes = recipe, data, notes
        self.model: nn.Module = model
        self.train_set = data.train_set
        self.aspect_ratios = data.train_set.aspect_ratios

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in ("image", "targets", "index")}
        return batch | {"skipped": [path for sample in samples for path in sample["skipped"]]}

    def training_loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = model(batch["image"], batch["targets"])
        return losses

    def heads(self) -> list[nn.Module]:
        assert isinstance(self.model, Detector)
        return [self.model.backbone.fpn, self.model.rpn, self.model.roi_heads]

    def param_groups(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        assert layer_decay is None, "the recipe's schema refuses it for detection"
        return without_decay_on_norms(self.model, weight_decay)

    def weights_info(self) -> WeightsInfo:
        section = self.recipe.detection
        return replace(
            recipe_weights_info(self.recipe, self.data.class_names),
            image_size=section.short_sides[-1],
            interpolation="bilinear",
            settings=json.dumps(section.model_dump(include=set(DETECTOR_KEYS), mode="json"), sort_keys=True),
        )

    def notes(self) -> list[str]:
        train, val = self.train_set.images, self.val_set.images
        is_one_file, masks = self.section.val_json is None, self.section.head in BOX_ONLY
        objects = int(train.index.num_objects[train.indices].sum())
        empty = _num_left_out(train, val)
        sizes = f"{len(train)} images with {objects} objects to train on, {len(val)} to evaluate, "
        left_out = f"; {empty} images without objects are left out" if empty else ""
        data = [*self.data.notes, *train.index.notes(of_training=True, masks=masks)]
        if not is_one_file:
            data += val.index.notes(of_training=False, masks=masks)
        return [f"{sizes}{len(self.data.class_names)} classes{left_out}.", *data, *self._notes]

    def check_data(self) -> list[str]:
        """Open some images of the validation set: an unreadable one would end the run at its first evaluation."""
        images = self.val_set.images
        require_usable("validation", images.open, len(images))
        return []

    @cached_property
    def _fingerprint(self) -> str:
        return self.train_set.images.fingerprint()

    def data_fingerprint(self) -> str:
        return self._fingerprint

    def data_problems(self) -> list[str]:
        """Open some images of both sets, evenly spaced, with their masks."""
        train, val = self.train_set.images, self.val_set.images
        return [
            *unusable_images("training", lambda index: (train.open(index), train.targets(index)), len(train), NUM_OPENED),
            *unusable_images("validation", lambda index: (val.open(index), val.targets(index)), len(val), NUM_OPENED),
        ]

    def describe(self, batch: dict[str, Any]) -> list[str]:
        return [self.train_set.path(index) for index in batch["index"]]

    def skipped(self, batch: dict[str, Any]) -> list[str]:
        return list(batch["skipped"])


class DetectionEvaluator:
    """Accumulates detections in COCO's format, with the ids of the annotation file and run-length encoded masks.

    Args:
        val_set: the images.
        results_json: where `compute` writes the detections; None: nowhere.
        masks: whether the model predicts masks.
    """

    def __init__(self, val_set: DetectionEvalSet, results_json: str | None = None, *, masks: bool = True) -> None:
        self.images, self.results_json, self.masks = val_set.images, results_json, masks
        self.num_images = 0
        self.results: list[dict[str, Any]] = []

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        for image, index, found in zip(batch["image"], batch["index"], model(batch["image"]), strict=True):
            self.add(index, image.shape[-2:], found)

    def add(self, index: int, size: tuple[int, int], found: dict[str, Tensor]) -> None:
        """Add the detections of an image of a size (height, width); see `Detector.forward`."""
        categories = self.images.index.categories
        found = {key: value.float().cpu() for key, value in found.items()}
        columns = (found[key].tolist() for key in ("labels", "scores", "boxes"))
        for mask, label, score, box in zip(encoded_masks(found, size), *columns, strict=True):
            image_id, category = self.images.image_id(index), categories[int(label) - 1]
            self.results.append(as_result(image_id, category.written_id, score, box, mask))
        self.num_images += 1

    def state(self) -> tuple[int, list[dict[str, Any]]]:
        return self.num_images, self.results

    def compute(self, states: list[tuple[int, list[dict[str, Any]]]]) -> Iterable[tuple[str, float]]:
        results = [entry for _, part in states for entry in part]
        if self.results_json is not None:
            write_results(Path(self.results_json).expanduser(), results, masks=self.masks)
        yield "num_images", sum(count for count, _ in states)
        if self.images.index.num_annotations:
            yield from coco_metrics(self.images.index, results, masks=self.masks)
        else:
            yield "num_detections", len(results)

    def predictions(self, states: list[tuple[int, list[dict[str, Any]]]]) -> DetectionPredictions:
        """Return what was found in each image; see `tasks.base.KeepsPredictions`."""
        return as_predictions(self.images.index, [entry for _, part in states for entry in part], masks=self.masks)


def build_detection_task(recipe: Recipe, weights: Path | None) -> DetectionTask:
    """Build data and model; the initial weights follow from the recipe's seed. Raises UserError as `tasks.build` does."""
    _try_results(recipe.detection)
    data = build_detection(recipe.data, recipe.detection, recipe.shapes, recipe.augment.hflip, recipe.train.seed)
    with seeded(derive_seed(recipe.train.seed, "model")):
        model = create_from_recipe(recipe, len(data.class_names))
    if weights is not None:
        notes = load_initial_weights(
            model,
            model.backbone.body,
            weights,
            task="detection",
            class_names=data.class_names,
            class_layers=CLASS_LAYERS,
            branch=("the mask branch", "mask_head."),
        )
        return DetectionTask(recipe, data, model, notes)
    notes = []
    if recipe.detection.freeze_batch_norm and any(isinstance(part, _BatchNorm) for part in model.backbone.body.modules()):
        notes.append("Warning: no weights to start from, so the frozen batch norms of the backbone have no statistics of images.")
    return DetectionTask(recipe, data, model, notes)


def build_detection_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool = False) -> DetectionEvaluation:
    """Build the data for a model with the classes of ``info``. Raises UserError as `tasks.build_evaluation` does."""
    _try_results(recipe.detection)
    section = recipe.detection
    if info.settings:  # the model's own head, whatever the recipe of its evaluation says
        section = section.model_copy(update={"head": DetectionSection.model_validate_json(info.settings).head})
    val_set = build_detection_eval_set(recipe.data, section, recipe.shapes, info.class_names, whole=whole)
    if is_main_process():
        for note in val_set.images.index.notes(of_training=False, masks=section.head in BOX_ONLY):
            log.warning(note)
    return DetectionEvaluation(val_set, section)


def _try_results(section: DetectionSection) -> None:
    if section.results_json is not None and is_main_process():
        require_writable_results(Path(section.results_json).expanduser(), masks=section.head in BOX_ONLY)


def create_from(info: WeightsInfo) -> Detector:
    """Create the detector that a weights file describes, freshly initialised."""
    section = DetectionSection.model_validate_json(info.settings)
    return create_detector(info.model, info.num_classes, **_arguments(section), mean=info.mean, std=info.std, **options_of(info))


def create_from_recipe(recipe: Recipe, num_classes: int) -> Detector:
    """Create the detector of a recipe, freshly initialised."""
    return create_detector(
        recipe.model.name,
        num_classes,
        **_arguments(recipe.detection),
        drop_path_rate=recipe.drop_path_rate,
        checkpointing=recipe.model.checkpointing,
        mean=recipe.data.mean,
        std=recipe.data.std,
        **options_of(recipe.model),
    )


def _arguments(section: DetectionSection) -> dict[str, Any]:
    """Return the arguments of `create_detector` that have the name of a recipe's key."""
    return section.model_dump(include={*DETECTOR_KEYS, *TRAINING_KEYS})


def _num_left_out(train: CocoImages, val: CocoImages) -> int:
    """Return the number of images without objects that are in neither set; of a file without a split, val has some."""
    trained_on = set(train.indices.tolist())
    empty = [index for index in np.flatnonzero(train.index.num_objects == 0).tolist() if index not in trained_on]
    if not empty or val.index.folder != train.index.folder:
        return len(empty)
    evaluated_on = set(val.index.file_names)
    return sum(train.index.file_names[index] not in evaluated_on for index in empty)
