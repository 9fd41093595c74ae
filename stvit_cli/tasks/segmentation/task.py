"""Semantic segmentation: a class for every pixel of an image.

B batch, S side of a training crop, h w rows and columns of what the model sees, H W of the original image, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import default_collate

from stvit_cli.data.image_pairs import LabelledImages
from stvit_cli.data.inspection import evenly_spaced
from stvit_cli.data.label_checks import check_labels, count_numbers, suspicions
from stvit_cli.data.loader import derive_seed, seeded
from stvit_cli.data.segmentation import SegmentationData, SegmentationEvalSet
from stvit_cli.data.segmentation_transforms import IGNORED
from stvit_cli.errors import UserError
from stvit_cli.models.options import options_of
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe, SegmentationSection
from stvit_cli.tasks.base import NonFiniteOutputsError
from stvit_cli.tasks.data_checks import named_problems
from stvit_cli.tasks.param_groups import without_decay_on_norms
from stvit_cli.tasks.preparation import PreparedModel
from stvit_cli.tasks.segmentation.data import build_segmentation, build_segmentation_eval_set
from stvit_cli.tasks.segmentation.label_maps import Inferer
from stvit_cli.tasks.segmentation.metrics import confusion, nonzero_entries, segmentation_metrics
from stvit_cli.tasks.segmentation.predictions import SegmentationPredictions
from stvit_cli.tasks.segmentation.upernet import Segmenter, create_segmenter
from stvit_cli.tasks.weights import load_initial_weights, recipe_weights_info

NUM_OPENED = 200
"""The largest number of images of a set that are opened in the search for problems."""

CLASS_LAYERS = ("classifier.", "aux_classifier.")
"""The layers with a row for each class."""


class SegmentationEvaluation:
    """See `tasks.base.Evaluation`. A batch is ``{"images": [[1 3 h w]], "target": [H W], "index": [int]}``."""

    name = "segmentation"

    def __init__(self, val_set: SegmentationEvalSet, section: SegmentationSection) -> None:
        self.val_set, self.section = val_set, section

    def collate_eval(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: [sample[key] for sample in samples] for key in ("images", "target", "index")}

    def evaluator(self) -> SegmentationEvaluator:
        return SegmentationEvaluator(self.section.class_names, inferer(self.section), self.val_set.images)

    def describe_eval(self, batch: dict[str, Any]) -> list[str]:
        return [self.val_set.images.path(index) for index in batch["index"]]

    def check_data(self) -> list[str]:
        """Check the numbers in some label maps."""
        images = self.val_set.images
        return [*images.notes, *check_labels("validation", images, to_train=False, open_images=False)]


class SegmentationTask(PreparedModel, SegmentationEvaluation):
    """See `tasks.base.Task`. A training batch is ``{"image": B 3 S S, "target": B S S, "index": B, "skipped": [path]}``."""

    main_metric = "miou"
    batch_multiple = 1

    def __init__(self, recipe: Recipe, data: SegmentationData, model: Segmenter, notes: list[str]) -> None:
        super().__init__(data.val_set, recipe.segmentation)
        self.recipe, self._notes = recipe, notes
        self.train_set = data.train_set
        self.model: nn.Module = model

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = default_collate(
            [{key: sample[key] for key in ("image", "target", "index")} for sample in samples]
        )
        return batch | {"skipped": [path for sample in samples for path in sample["skipped"]]}

    def training_loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the cross-entropy of both heads: the mean over all pixels, with 0 for ignored pixels, as in the published runs.

        Every micro-batch has the same number of pixels, so accumulation does not change the loss.
        """
        logits, aux_logits = model(batch["image"])  # B K S S
        target = batch["target"]
        losses = [
            F.cross_entropy(part, target, ignore_index=IGNORED, reduction="sum") / target.numel() for part in (logits, aux_logits)
        ]
        return {"ce": losses[0], "aux": self.section.aux_weight * losses[1]}

    def heads(self) -> list[nn.Module]:
        model = self.model
        assert isinstance(model, Segmenter)
        return [model.decoder, model.classifier, model.aux, model.aux_classifier]

    def param_groups(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        assert layer_decay is None, "the recipe's schema refuses it for segmentation"
        return without_decay_on_norms(self.model, weight_decay)

    def weights_info(self) -> WeightsInfo:
        settings = self.section.model_dump_json()
        return replace(recipe_weights_info(self.recipe, self.section.class_names), settings=settings)

    def notes(self) -> list[str]:
        classes = len(self.section.class_names)
        return [f"{len(self.train_set)} images to train on, {len(self.val_set)} to evaluate, {classes} classes.", *self._notes]

    def check_data(self) -> list[str]:
        """Check the numbers in some label maps of both sets, and open the images of the validation set."""
        train, val = self.train_set.images, self.val_set.images
        return [
            *train.notes,
            *check_labels("training", train, to_train=True, open_images=False),
            *val.notes,
            *check_labels("validation", val, to_train=False, open_images=True),
        ]

    @cached_property
    def _fingerprint(self) -> str:
        return self.train_set.images.fingerprint()

    def data_fingerprint(self) -> str:
        return self._fingerprint

    def data_problems(self) -> list[str]:
        """Open some images of both sets with their label maps, evenly spaced; name the classes without a pixel."""
        problems = []
        for name, images in (("training", self.train_set.images), ("validation", self.val_set.images)):
            opened = evenly_spaced(len(images), NUM_OPENED)
            count = count_numbers(images, opened, open_images=True)
            problems += [*images.notes, *named_problems(name, count.problems, len(opened))]
            problems += [f"{name}: {line}" for line in suspicions(images, count)]
        return problems

    def describe(self, batch: dict[str, Any]) -> list[str]:
        return [self.train_set.images.path(index) for index in batch["index"].tolist()]

    def skipped(self, batch: dict[str, Any]) -> list[str]:
        return list(batch["skipped"])


State = tuple[Tensor, list[tuple[int, NDArray[np.int64]]]]
"""What one process saw: the confusion matrix, and the non-zero entries of that of each image, by its index."""


class SegmentationEvaluator:
    """Accumulates the confusion matrix of an evaluation at the original size of the images.

    Images go through the model one by one and counts are integers, so the metrics do not depend on processes and batches.

    Args:
        class_names: the names of the K classes.
        infer: computes label maps.
        images: that the indices of batches refer to.
    """

    def __init__(self, class_names: Sequence[str], infer: Inferer, images: LabelledImages) -> None:
        self.class_names, self.infer, self.images = class_names, infer, images
        self.matrix = torch.zeros(len(class_names), len(class_names), dtype=torch.int64)
        self.by_image: list[tuple[int, NDArray[np.int64]]] = []

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """See `tasks.base.Evaluator`."""
        finite = []
        for images, target, index in zip(batch["images"], batch["target"], batch["index"], strict=True):
            try:
                predicted = self.infer(model, images, tuple(target.shape))
            except NonFiniteOutputsError:
                finite.append(False)
                continue
            finite.append(True)
            matrix = confusion(predicted, target, len(self.matrix)).cpu()
            self.matrix += matrix
            self.by_image.append((index, nonzero_entries(matrix)))
        if not all(finite):
            raise NonFiniteOutputsError(finite)

    def state(self) -> State:
        return self.matrix, self.by_image

    def compute(self, states: list[State]) -> Iterable[tuple[str, float]]:
        yield "num_images", sum(len(by_image) for _, by_image in states)
        yield from segmentation_metrics(torch.stack([matrix for matrix, _ in states]).sum(0), self.class_names)

    def predictions(self, states: list[State]) -> SegmentationPredictions:
        """Return the confusion of each image; see `tasks.base.KeepsPredictions`."""
        by_image = sorted((entry for _, part in states for entry in part), key=lambda entry: entry[0])
        entries = np.concatenate([found for _, found in by_image])
        return SegmentationPredictions(
            images=[self.images.relative_path(index) for index, _ in by_image],
            class_names=tuple(self.class_names),
            image=np.repeat(np.arange(len(by_image), dtype=np.int32), [len(found) for _, found in by_image]),
            target=entries[:, 0].astype(np.int16),
            predicted=entries[:, 1].astype(np.int16),
            pixels=entries[:, 2],
        )


def build_segmentation_task(recipe: Recipe, weights: Path | None) -> SegmentationTask:
    """Build data and model; the initial weights follow from the recipe's seed. Raises UserError as `tasks.build` does."""
    data = build_segmentation(recipe)
    with seeded(derive_seed(recipe.train.seed, "model")):
        model = create_from_recipe(recipe)
    if weights is None:
        return SegmentationTask(recipe, data, model, [])
    notes = load_initial_weights(
        model,
        model.backbone,
        weights,
        task="segmentation",
        class_names=recipe.segmentation.class_names,
        class_layers=CLASS_LAYERS,
    )
    return SegmentationTask(recipe, data, model, notes)


def build_segmentation_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool = False) -> SegmentationEvaluation:
    """Build the data for a model with the classes of ``info``. Raises UserError as `tasks.build_evaluation` does."""
    names = recipe.segmentation.class_names
    if names != info.class_names:
        differing = next((name for name in names if name not in info.class_names), None)
        detail = f", and {differing!r} is none of them" if differing is not None else ", or in another order"
        raise UserError(
            f"segmentation.class_names has {len(names)} classes, the model {len(info.class_names)}{detail}.\n"
            "Evaluate on data with the model's own classes, or train it on these."
        )
    return SegmentationEvaluation(build_segmentation_eval_set(recipe, whole=whole), recipe.segmentation)


def create_from(info: WeightsInfo) -> Segmenter:
    """Create the segmenter that a weights file describes, freshly initialised."""
    section = section_of(info)
    return create_segmenter(
        info.model,
        info.num_classes,
        decoder=section.decoder,
        channels=section.channels,
        aux_channels=section.aux_channels,
        dropout=section.dropout,
        **options_of(info),
    )


def create_from_recipe(recipe: Recipe) -> Segmenter:
    """Create the segmenter of a recipe, freshly initialised."""
    section = recipe.segmentation
    return create_segmenter(
        recipe.model.name,
        len(section.class_names),
        decoder=section.decoder,
        channels=section.channels,
        aux_channels=section.aux_channels,
        dropout=section.dropout,
        drop_path_rate=recipe.drop_path_rate,
        checkpointing=recipe.model.checkpointing,
        **options_of(recipe.model),
    )


def inferer(section: SegmentationSection) -> Inferer:
    """Return the `Inferer` of a recipe's evaluation."""
    return Inferer(section.window, section.window_stride, section.size_divisor, section.eval_flip)


def section_of(info: WeightsInfo) -> SegmentationSection:
    """Return the settings of a segmenter's training from the metadata of its weights file."""
    return SegmentationSection.model_validate_json(info.settings)
