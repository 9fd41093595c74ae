"""Detection and instance segmentation: boxes, classes and masks of the objects in an image."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stvit_cli.data.coco import DetectionData, DetectionEvalSet, encode_mask
from stvit_cli.data.inspection import require_usable
from stvit_cli.data.loader import derive_seed, seeded
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsFile, WeightsInfo, describe, is_counter, load_weights, read_weights
from stvit_cli.models.weights.info import DETECTOR_KEYS
from stvit_cli.recipe import DetectionSection, Recipe
from stvit_cli.recipe.io import recipe_hash
from stvit_cli.tasks.detection.data import build_detection, build_detection_eval_set
from stvit_cli.tasks.detection.detector import Detector, create_detector, paste_masks
from stvit_cli.tasks.detection.metrics import as_result, coco_metrics, require_writable_results, write_results
from stvit_cli.tasks.param_groups import without_decay_on_norms
from stvit_cli.tasks.preparation import PreparedModel
from stvit_cli.utils.environment import is_main_process

log = logging.getLogger(__name__)

# So many images of each set are opened in the search for problems.
NUM_OPENED = 200

TRAINING_KEYS = ("freeze_batch_norm", "num_proposals", "num_samples")
"""The keys of a recipe's section that belong to a detector in training; see `DETECTOR_KEYS` for the others."""

# The last layer of each head has a row for each class.
BY_CLASS = ("cls_score", "bbox_pred", "mask_fcn_logits")


class DetectionEvaluation:
    """See `tasks.base.Evaluation`. A batch is ``{"image": [3 H W], "index": [int]}``, each image of its own size."""

    name = "detection"

    def __init__(self, val_set: DetectionEvalSet, results_json: str | None) -> None:
        self.val_set, self.results_json = val_set, results_json

    def collate_eval(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: [sample[key] for sample in samples] for key in ("image", "index")}

    def evaluator(self) -> DetectionEvaluator:
        return DetectionEvaluator(self.val_set, self.results_json)

    def describe_eval(self, batch: dict[str, Any]) -> list[str]:
        return [self.val_set.path(index) for index in batch["index"]]

    def check_data(self) -> list[str]:
        return []  # an evaluation opens every image itself


class DetectionTask(PreparedModel, DetectionEvaluation):
    """See `tasks.base.Task`. A training batch also has ``"targets"`` and ``"skipped"`` (paths)."""

    main_metric = "box_ap"
    batch_multiple = 1

    def __init__(self, recipe: Recipe, data: DetectionData, model: Detector, notes: list[str]) -> None:
        super().__init__(data.val_set, recipe.detection.results_json)
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
        recipe = self.recipe
        return WeightsInfo(
            model=recipe.model.name,
            task=self.name,
            num_classes=len(self.data.class_names),
            class_names=self.data.class_names,
            image_size=recipe.detection.short_sides[-1],
            mean=recipe.data.mean,
            std=recipe.data.std,
            interpolation="bilinear",
            recipe_hash=recipe_hash(recipe),
            grid_sizes=recipe.model.grid_sizes,
            settings=json.dumps(recipe.detection.model_dump(include=set(DETECTOR_KEYS), mode="json"), sort_keys=True),
        )

    def notes(self) -> list[str]:
        train, val = self.train_set.images, self.val_set.images
        objects = int(train.index.num_objects[train.indices].sum())
        empty = len(train.index) - len(train)
        sizes = f"{len(train)} images with {objects} objects to train on, {len(val)} to evaluate, "
        left_out = f"; {empty} images without objects are left out" if empty else ""
        data = [*train.index.notes(of_training=True), *val.index.notes(of_training=False)]
        if not val.index.num_annotations:
            data.append(f"Warning: {val.index.path.name} has no annotations, so no weights can be told to be the best.")
        return [f"{sizes}{len(self.data.class_names)} classes{left_out}.", *data, *self._notes]

    def check_data(self) -> list[str]:
        """Open some images of the validation set: the first evaluation would stop at them, after an epoch."""
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
        problems = []
        for name, images in (("training", self.train_set.images), ("validation", self.val_set.images)):
            for index in range(0, len(images), -(-len(images) // NUM_OPENED)):
                try:
                    images.open(index)
                    images.targets(index)
                except UserError as error:
                    problems.append(f"{name}: {str(error).splitlines()[0]}")
        return problems

    def describe(self, batch: dict[str, Any]) -> list[str]:
        return [self.train_set.path(index) for index in batch["index"]]

    def skipped(self, batch: dict[str, Any]) -> list[str]:
        return list(batch["skipped"])


class DetectionEvaluator:
    """Collects detections in COCO's format, with the original ids; masks are run-length encoded image by image."""

    def __init__(self, val_set: DetectionEvalSet, results_json: str | None = None) -> None:
        self.images, self.results_json = val_set.images, results_json
        self.num_images = 0
        self.results: list[dict[str, Any]] = []

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        for image, index, found in zip(batch["image"], batch["index"], model(batch["image"]), strict=True):
            self.add(index, image.shape[-2:], found)

    def add(self, index: int, size: tuple[int, int], found: dict[str, Tensor]) -> None:
        """Take up what was found in an image of a size (height, width); see `Detector.forward`."""
        categories = self.images.index.categories
        found = {key: value.float().cpu() for key, value in found.items()}
        masks = paste_masks(found["masks"], found["boxes"], size).numpy()
        columns = (found[key].tolist() for key in ("labels", "scores", "boxes"))
        for mask, label, score, box in zip(masks, *columns, strict=True):
            image_id, category = self.images.image_id(index), categories[int(label) - 1]
            self.results.append(as_result(image_id, category.written_id, score, box, encode_mask(mask)))
        self.num_images += 1

    def state(self) -> tuple[int, list[dict[str, Any]]]:
        return self.num_images, self.results

    def compute(self, states: list[tuple[int, list[dict[str, Any]]]]) -> Iterable[tuple[str, float]]:
        results = [entry for _, part in states for entry in part]
        if self.results_json is not None:
            write_results(Path(self.results_json).expanduser(), results)
        yield "num_images", sum(count for count, _ in states)
        if self.images.index.num_annotations:
            yield from coco_metrics(self.images.index, results)
        else:
            yield "num_detections", len(results)


def build_detection_task(recipe: Recipe, weights: Path | None) -> DetectionTask:
    """Build data and model; the initial weights follow from the recipe's seed. Raises UserError as `tasks.build` does."""
    _try_results(recipe.detection)
    data = build_detection(recipe.data, recipe.detection, recipe.shapes, recipe.augment.hflip, recipe.train.seed)
    with seeded(derive_seed(recipe.train.seed, "model")):
        model = create_from_recipe(recipe, len(data.class_names))
    if weights is not None:
        return DetectionTask(recipe, data, model, load_initial_weights(model, weights))
    notes = []
    if recipe.detection.freeze_batch_norm:
        notes.append("Warning: no weights to start from, so the frozen batch norms of the backbone know no image: --weights FILE")
    return DetectionTask(recipe, data, model, notes)


def build_detection_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool = False) -> DetectionEvaluation:
    """Build the data for a model with the classes of ``info``. Raises UserError as `tasks.build_evaluation` does."""
    _try_results(recipe.detection)
    val_set = build_detection_eval_set(recipe.data, recipe.detection, recipe.shapes, info.class_names)
    if is_main_process():
        for note in val_set.images.index.notes(of_training=False):
            log.warning(note)
    return DetectionEvaluation(val_set, recipe.detection.results_json)


def _try_results(section: DetectionSection) -> None:
    if section.results_json is not None and is_main_process():
        require_writable_results(Path(section.results_json).expanduser())


def create_from(info: WeightsInfo) -> Detector:
    """Build the detector that a weights file describes."""
    section = DetectionSection.model_validate_json(info.settings)
    return create_detector(
        info.model, info.num_classes, **_arguments(section), grid_sizes=info.grid_sizes, mean=info.mean, std=info.std
    )


def create_from_recipe(recipe: Recipe, num_classes: int) -> Detector:
    """Build the detector of a recipe."""
    return create_detector(
        recipe.model.name,
        num_classes,
        **_arguments(recipe.detection),
        drop_path_rate=recipe.drop_path_rate,
        grid_sizes=recipe.model.grid_sizes,
        checkpointing=recipe.model.checkpointing,
        mean=recipe.data.mean,
        std=recipe.data.std,
    )


def _arguments(section: DetectionSection) -> dict[str, Any]:
    """Return the arguments of `create_detector` that have the name of a recipe's key."""
    return section.model_dump(include={*DETECTOR_KEYS, *TRAINING_KEYS})


def load_initial_weights(model: Detector, weights: Path) -> list[str]:
    """Load a file to start from, a classifier's into the backbone or a detector's. Return what a person should know.

    Raises:
        UserError: the file cannot be read, or is of another model or task.
    """
    file = read_weights(weights)
    info = describe(file)
    if info.task == "detection":
        return _load_detector(model, file)
    if info.task != "classification":
        raise UserError(f"{weights} holds a model for {info.task}; expected a classifier's or a detector's weights.")
    report = load_weights(model.backbone.body, file)
    notes = [f"{len(report.loaded)} tensors of the backbone from {weights}; pyramid and heads are new."]
    if report.missing:
        notes.append(f"Warning: {len(report.missing)} tensors were not in the file and start anew, such as {report.missing[0]}.")
    return notes


def _load_detector(model: Detector, file: WeightsFile) -> list[str]:
    own = model.state_dict()
    fitting = {name: value for name, value in file.state_dict.items() if name in own and own[name].shape == value.shape}
    anew = [name for name in own if name not in fitting]
    foreign = [name for name in anew if not is_counter(name) and not any(layer in name for layer in BY_CLASS)]
    if foreign:
        raise UserError(
            f"{file.path}: these are no weights of this detector: {len(foreign)} of its {len(own)} tensors are not there or of "
            f"another shape, such as {foreign[0]}."
        )
    model.load_state_dict(fitting, strict=False)
    by_class = [name for name in anew if not is_counter(name)]
    new = [f"{len(by_class)} tensors are new: the file has another number of classes."] if by_class else []
    return [f"{len(fitting)} tensors from {file.path}.", *new]
