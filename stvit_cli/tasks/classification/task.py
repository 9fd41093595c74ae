"""Classification: one class for each image.

B batch, C channels, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import Mixup
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.data import default_collate

from stvit_cli.data import ClassificationData, EvalSet, derive_seed
from stvit_cli.data.class_subset import ClassSubset
from stvit_cli.data.classification import all_targets, images_of_classes
from stvit_cli.data.in_memory import keep_in_memory
from stvit_cli.data.inspection import require_usable
from stvit_cli.data.loader import seeded
from stvit_cli.data.sampling import ClassBalance, ShuffleBlocks
from stvit_cli.data.shards.images import ShardImages
from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.options import options_of
from stvit_cli.models.timm_models import HasNoWeightDecay, is_timm_name, require_image_size
from stvit_cli.models.weights.file import WeightsInfo, backbone_of, describe, load_weights, read_weights
from stvit_cli.recipe import AugmentSection, Recipe
from stvit_cli.tasks.base import Evaluator
from stvit_cli.tasks.classification.data import build_classification, build_eval_set, build_subset, build_test_set, data_section
from stvit_cli.tasks.classification.distillation import distillation_loss, load_teacher
from stvit_cli.tasks.classification.evaluator import ClassificationEvaluator
from stvit_cli.tasks.classification.kept_classes import keep_rows
from stvit_cli.tasks.classification.losses import Loss, build_loss, class_weights, dense_targets
from stvit_cli.tasks.classification.multi_label import MultiLabelEvaluator
from stvit_cli.tasks.data_checks import unusable_images
from stvit_cli.tasks.param_groups import decay_layer_scale
from stvit_cli.tasks.preparation import PreparedModel
from stvit_cli.tasks.weights import is_of_timm, recipe_weights_info, report_notes
from stvit_cli.utils.text import first_few
from stvit_cli.utils.views import NO_VIEWS, Views

NUM_OPENED = 500
"""The largest number of images of a set that are opened in the search for problems."""


class ClassificationEvaluation:
    """See `tasks.base.Evaluation`.

    A batch is ``{"image": (B, C, H, W), "target": (B,), "index": (B,), "skipped": [path]}``; with several labels an image, the
    target is (B, K), 0 or 1.
    """

    name = "classification"

    def __init__(
        self, val_set: EvalSet, multi_label: bool = False, views: Views = NO_VIEWS, subset: SubsetEvaluation | None = None
    ) -> None:
        self.val_set, self.multi_label, self.views, self.subset = val_set, multi_label, views, subset

    def collate_eval(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        skipped = [path for sample in samples for path in sample.get("skipped", [])]
        return default_collate([{key: sample[key] for key in ("image", "target", "index")} for sample in samples]) | {
            "skipped": skipped
        }

    def evaluator(self) -> Evaluator:
        kind = MultiLabelEvaluator if self.multi_label else ClassificationEvaluator
        return kind(self.val_set, self.views)

    def describe_eval(self, batch: dict[str, Any]) -> list[str]:
        return [self.val_set.path(index) for index in batch["index"].tolist()]

    def check_data(self) -> list[str]:
        # An evaluation opens every image itself.
        return [*self.val_set.images.notes, *self._absent_classes(), *self._subset_notes()]

    def subset_fingerprints(self) -> tuple[str, ...]:
        """See `tasks.base.HasSubset`. The order of the classes does not change the metrics; earlier versions hashed it."""
        if self.subset is None:
            return ()
        names, images = self.subset.chosen.names, self.subset.val_set.images.fingerprint()
        contents = [json.dumps([order, images]) for order in (sorted(names), names)]
        return tuple(hashlib.blake2b(content.encode(), digest_size=16).hexdigest() for content in contents)

    def _subset_notes(self) -> list[str]:
        return [] if self.subset is None else self.subset.check_data()

    def _absent_classes(self) -> list[str]:
        """Return a line on classes that no validation image has, where they lower the metrics."""
        if not self.multi_label:
            return []
        counts = images_of_classes(self.val_set.images)
        absent = [name for name, count in zip(self.val_set.images.class_names, counts, strict=True) if not count]
        note = f"No image to evaluate on has {first_few(absent)}; of such classes average precision and F1 are 0."
        return [note] if absent else []


class SubsetEvaluation(ClassificationEvaluation):
    """The evaluation among some classes of the model, ``eval.subset``.

    Args:
        val_set: the images of these classes; targets count along them.
        subset: the classes.
        num_classes: of the model.
        views: see `ClassificationEvaluation`.
    """

    def __init__(self, val_set: EvalSet, subset: ClassSubset, num_classes: int, views: Views = NO_VIEWS) -> None:
        super().__init__(val_set, views=views)
        self.chosen, self.num_classes = subset, num_classes

    def evaluator(self) -> Evaluator:
        return ClassificationEvaluator(self.val_set, self.views, self.chosen.columns)

    def check_data(self) -> list[str]:
        """Return a line on the classes, and one on those that the model does not have."""
        names, lacking = self.chosen.names, self.chosen.lacking
        notes = [f"eval.subset: also evaluated on {len(self.val_set)} images among {len(names)} of {self.num_classes} classes."]
        if lacking:
            many = f"{len(lacking)} of its {len(lacking) + len(names)} classes"
            notes.append(f"eval.subset: the model does not have {many}, whose images are left out: {first_few(lacking)}.")
        return notes


class ClassificationTask(PreparedModel, ClassificationEvaluation):
    """See `tasks.base.Task`; training batches are as those of the evaluation."""

    main_metric: str
    evaluates_training_batches = True
    is_deterministic = True

    def __init__(self, recipe: Recipe, data: ClassificationData, model: nn.Module, notes: list[str]) -> None:
        subset = _subset_evaluation(recipe, data.class_names, data.val_set, recipe.model.in_chans)
        super().__init__(data.val_set, bool(recipe.data.multi_label), recipe.eval.views, subset)
        self.main_metric = "map" if self.multi_label else "top1"
        self.recipe, self.data, self.model = recipe, data, model
        self.train_set = data.train_set
        self.mixup = build_mixup(recipe.augment, len(data.class_names), self.multi_label)
        self.batch_multiple = 1 if self.mixup is None else 2
        self.class_balance = None
        if recipe.data.balance:
            self.class_balance = ClassBalance(all_targets(self.train_set.images), recipe.data.balance)
        if recipe.data.shuffle == "block" and isinstance(self.train_set.images, ShardImages):
            self.shuffle_blocks = ShuffleBlocks(self.train_set.images.blocks(), recipe.data.shuffle_window)
        self.loss = _build_loss(recipe, data)
        self.teacher = None if recipe.distill.teacher is None else load_teacher(recipe, data.class_names)
        self._notes = notes

    @cached_property
    def test(self) -> ClassificationEvaluation | None:
        """See `tasks.base.HasTestSet`."""
        test_set = self.data.test_set
        return None if test_set is None else ClassificationEvaluation(test_set, self.multi_label, self.views)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return self.collate_eval(samples)

    def training_loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        images, target = batch["image"], batch["target"]
        if self.mixup is not None:
            images, target = self.mixup(images, target)  # (B, C, H, W), (B, K); draws from numpy's global generator
        elif self.multi_label:
            target = dense_targets(target, target.shape[1], self.recipe.augment.label_smoothing)
        logits = model(images)
        loss = self.loss(logits, target)
        if self.teacher is None:
            return {"loss": loss}
        distill = self.recipe.distill
        distillation = distillation_loss(logits, self.teacher(images), distill.kind, distill.temperature)
        return {"labels": (1 - distill.alpha) * loss, "distillation": distill.alpha * distillation}

    def heads(self) -> list[nn.Module]:
        found = self.model.get_classifier()  # type: ignore[operator]
        return list(found) if isinstance(found, tuple) else [found]  # timm's distilled models have two

    def param_groups(self, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        """Return groups in which biases and other one-dimensional weights do not decay (DeiT).

        With ``layer_decay`` the learning rate falls with the depth; layer scale decays with ``optim.decay_layer_scale``.
        """
        exempt = self.model.no_weight_decay() if isinstance(self.model, HasNoWeightDecay) else ()
        if layer_decay is None:
            by_shape = param_groups_weight_decay(self.model, weight_decay, no_weight_decay_list=exempt)
            groups = [{**group, "lr_scale": 1.0} for group in by_shape]
        else:
            groups = list(
                param_groups_layer_decay(self.model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)
            )
        return decay_layer_scale(self.model, groups, weight_decay) if self.recipe.optim.decay_layer_scale else groups

    def weights_info(self) -> WeightsInfo:
        info = recipe_weights_info(self.recipe, self.data.class_names)
        return replace(info, crop_pct=self.recipe.eval.crop_pct, multi_label=self.multi_label)

    def notes(self) -> list[str]:
        tested = "" if self.data.test_set is None else f", {len(self.data.test_set)} to test on at the end"
        used = f"{len(self.train_set)} images to train on, {len(self.val_set)} to evaluate{tested}"
        return [f"{used}, {len(self.data.class_names)} classes.", *self._notes]

    def check_data(self) -> list[str]:
        """Open some images of the validation set: an unreadable one would end the run at its first evaluation."""
        train, val = self.train_set.images, self.val_set.images
        require_usable("validation", val.open, len(val))
        if self.data.test_set is not None:
            require_usable("test", self.data.test_set.images.open, len(self.data.test_set))
        tested = () if self.data.test_set is None else self.data.test_set.images.notes
        if self.subset is not None:
            require_usable("eval.subset", self.subset.val_set.images.open, len(self.subset.val_set))
        return [*dict.fromkeys((*train.notes, *val.notes, *tested)), *self._absent_classes(), *self._subset_notes()]

    def keep_images(self, num_samples: int, stopped: Callable[[], bool], advance: Callable[[int, int], None]) -> str | None:
        """See `tasks.base.KeepsImages`. By itself where every image is needed more than once or nearly so."""
        in_memory = self.recipe.data.in_memory
        if in_memory == "auto" and num_samples < len(self.train_set):
            return None
        return keep_in_memory([self.train_set, self.val_set], in_memory, stopped=stopped, advance=advance)

    @cached_property
    def _fingerprint(self) -> str:
        return self.train_set.images.fingerprint()

    def data_fingerprint(self) -> str:
        return self._fingerprint

    def data_problems(self) -> list[str]:
        """Open some images of both sets, evenly spaced, and count the classes."""
        problems = [*self.train_set.images.notes, *self.val_set.images.notes]
        for name, images in (("training", self.train_set.images), ("validation", self.val_set.images)):
            problems += unusable_images(name, images.open, len(images), NUM_OPENED)
            names = self.data.class_names
            counts = images_of_classes(images)
            largest, smallest = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max()).argmin())
            most, fewest = int(counts[largest]), int(counts[smallest])
            if most > 10 * fewest:
                problems.append(
                    f"{name}: classes differ much in size, {names[largest]!r} has {most}, {names[smallest]!r} has {fewest}"
                )
        return problems

    def describe(self, batch: dict[str, Any]) -> list[str]:
        return [self.train_set.path(index) for index in batch["index"].tolist()]

    def skipped(self, batch: dict[str, Any]) -> list[str]:
        return list(batch["skipped"])


def _build_loss(recipe: Recipe, data: ClassificationData) -> Loss:
    """Return the loss of a recipe. Raises UserError where data.class_weights do not fit the classes."""
    settings, kind = recipe.loss, recipe.loss.kind or ("bce" if recipe.data.multi_label else "cross-entropy")
    num_classes, weights = len(data.class_names), None
    if recipe.data.class_weights is not None:
        counts = images_of_classes(data.train_set.images)
        weights = class_weights(recipe.data.class_weights, counts, len(data.train_set), kind)
    return build_loss(
        kind,
        num_classes,
        smoothing=recipe.augment.label_smoothing,
        weights=weights,
        bce_sum=settings.bce_sum,
        bce_target_thresh=settings.bce_target_thresh,
        focal_gamma=settings.focal_gamma,
        focal_alpha=settings.focal_alpha,
    )


def build_mixup(augment: AugmentSection, num_classes: int, multi_label: bool = False) -> Mixup | None:
    """Return timm's Mixup and CutMix, one of them for each batch as in DeiT; None where both are off.

    Args:
        augment: the recipe's section.
        num_classes: K.
        multi_label: targets are (B, K), and label smoothing moves each of them towards 0.5.
    """
    if not (augment.mixup or augment.cutmix):
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch_prob,
        mode="batch",
        label_smoothing=augment.label_smoothing,
        num_classes=num_classes,
        multi_label=multi_label,
    )


def build_classification_task(recipe: Recipe, weights: Path | None) -> ClassificationTask:
    """Build data and model; the initial weights follow from the recipe's seed. Raises UserError as `tasks.build` does."""
    data = build_classification(data_section(recipe), recipe.augment, recipe.eval, recipe.train.seed, recipe.model.in_chans)
    with seeded(derive_seed(recipe.train.seed, "model")):
        model = create_model(
            recipe.model.name,
            num_classes=len(data.class_names),
            in_chans=recipe.model.in_chans,
            drop_path_rate=recipe.drop_path_rate,
            checkpointing=recipe.model.checkpointing,
            image_size=recipe.data.image_size,
            **options_of(recipe.model),
        )
        keep = recipe.finetune.keep_classes
        notes = [] if weights is None else load_initial_weights(model, weights, data.class_names, keep_classes=keep)
    return ClassificationTask(recipe, data, model, notes)


def build_classification_evaluation(recipe: Recipe, info: WeightsInfo, *, whole: bool) -> ClassificationEvaluation:
    """Build the data for a model with the classes of ``info``. Raises UserError as `tasks.build_evaluation` does."""
    if info.multi_label != bool(recipe.data.multi_label):
        has = "several labels" if info.multi_label else "one class"
        raise UserError(
            f"data.multi_label is {str(bool(recipe.data.multi_label)).lower()}, but the model has {has} for each image."
        )
    val_set = build_eval_set(
        data_section(recipe),
        recipe.eval,
        info.class_names or None,
        all_images=whole,
        interpolation=recipe.augment.interpolation,
        in_chans=info.in_chans,
    )
    if is_timm_name(info.model):
        require_image_size(info.model, info.image_size, recipe.data.image_size, info.in_chans, info.kwargs)
    num_classes = len(val_set.images.class_names)
    if num_classes != info.num_classes:
        raise UserError(
            f"data.dir is {recipe.data.dir}: {num_classes} classes, but the model has {info.num_classes}.\n"
            "Its weights file does not name them, so that the data must have all its classes, in the order of their names."
        )
    subset = _subset_evaluation(recipe, info.class_names, val_set, info.in_chans)
    return ClassificationEvaluation(val_set, info.multi_label, recipe.eval.views, subset)


def _subset_evaluation(recipe: Recipe, class_names: Sequence[str], val_set: EvalSet, in_chans: int) -> SubsetEvaluation | None:
    """Return the evaluation of ``eval.subset``. Raises UserError as `build_subset` does."""
    how = {"interpolation": recipe.augment.interpolation, "in_chans": in_chans}
    found = build_subset(recipe.data, recipe.eval, class_names, val_set.images, **how)  # type: ignore[arg-type]
    return None if found is None else SubsetEvaluation(*found, len(class_names), recipe.eval.views)


def build_classification_test(recipe: Recipe, info: WeightsInfo) -> ClassificationEvaluation:
    """Build the test images of a recipe for a model of a run by it. Raises UserError as `tasks.build_test` does."""
    images = {"interpolation": recipe.augment.interpolation, "in_chans": info.in_chans}
    test_set = build_test_set(recipe.data, recipe.eval, info.class_names, **images)  # type: ignore[arg-type]
    return ClassificationEvaluation(test_set, info.multi_label, recipe.eval.views)


def load_initial_weights(model: nn.Module, weights: Path, class_names: Sequence[str], *, keep_classes: bool = False) -> list[str]:
    """Load a file to start from; the classifier is not loaded where the classes differ. Return notes for the user.

    Args:
        model: to load into.
        weights: the file.
        class_names: of the data, (K,).
        keep_classes: load the rows of the classifier whose classes have the same name in the file.

    Raises:
        UserError: the file cannot be read or is of another model, or with ``keep_classes`` it has none of the classes.
    """
    file = read_weights(weights)
    part = backbone_of(file)
    if part is not file:  # of a detector or segmenter
        if keep_classes:
            keep_rows(model, file, class_names)  # says that there are none
        report = load_weights(model, part, new_head=True)
        what = f"{len(report.loaded)} tensors of the backbone from {weights}; the layers after it are new."
        return [what, *report_notes(replace(report, missing=[name for name in report.missing if "stages." in name]))]
    report = load_weights(model, file, new_head=True)
    notes = [f"{len(report.loaded)} tensors from {weights}."]
    # Only where the classifier was loaded: a file without one has no class names.
    before = () if report.missing or report.reset or is_of_timm(file) else describe(file).class_names
    if report.reset:
        notes.append(f"The classifier is new: the file's has another number of classes than {len(class_names)}.")
    elif before and before != tuple(class_names):
        model.reset_classifier(len(class_names))  # type: ignore[operator]
        notes.append(f"The classifier is new: the file's {len(before)} classes have other names.")
    if keep_classes and len(notes) > 1:
        notes[1:] = [keep_rows(model, file, class_names)]
    if report.adapted:
        notes.append("The stem's first kernel was made for another number of channels and is adapted to the model's.")
    return [*notes, *report_notes(report)]
