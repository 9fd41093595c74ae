"""Augmented training samples of a classifier, as the model sees them. K classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from stvit_cli.data.loader import seeded
from stvit_cli.data.sampling import derive_seed
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.tasks.base import Task
from stvit_cli.tasks.classification.task import ClassificationTask, build_mixup
from stvit_cli.tasks.report_parts import ShownImage, Thumbnail
from stvit_cli.tasks.sample_sheet import denormalized, first_samples

MIXED_TOGETHER = 4
"""Images that share a draw of mixup or CutMix, so that a sheet shows several."""


def sample_sheet(task: Task, num_images: int) -> Sequence[ShownImage]:
    """Return the first training samples of the first epoch, a function of the recipe's seed; see `tasks.spec.TaskSpec`.

    Images are denormalized. Mixed ones name all their classes with their parts, before label smoothing. Images that cannot be
    opened are left out.

    Args:
        task: a classification task.
        num_images: the largest number of samples.
    """
    assert isinstance(task, ClassificationTask)
    augment, data, seed = task.recipe.augment, task.recipe.data, task.recipe.train.seed
    samples = first_samples(task, task.recipe, num_images)
    mixup = build_mixup(augment.model_copy(update={"label_smoothing": 0.0}), len(task.data.class_names), task.multi_label)
    if mixup is not None and len(samples) > 1:
        samples = samples[: len(samples) // 2 * 2]
    shown = []
    for start in range(0, len(samples), MIXED_TOGETHER):
        mixed = samples[start : start + MIXED_TOGETHER]
        batch = task.collate(mixed)
        images, target = batch["image"], batch["target"]
        if mixup is not None and len(images) > 1:
            with seeded(derive_seed(seed, "sample sheet", start)):
                images, target = mixup(images, target)
        for position, sample in enumerate(mixed):
            content = thumbnail(denormalized(images[position], data.mean, data.std))
            caption = [_labels(target[position], task.data.class_names)]
            name = _short(task.train_set.path(sample["index"]))
            shown.append(ShownImage(name, [Thumbnail(content)], caption))
    return shown


def _labels(target: Tensor, class_names: Sequence[str]) -> str:
    """Return the classes of a sample: of an index, or of the parts of classes, (K,)."""
    if target.ndim == 0:
        return class_names[int(target)]
    parts = [(float(target[label]), class_names[label]) for label in target.nonzero().flatten().tolist()]
    parts.sort(key=lambda part: -part[0])
    return ", ".join(name if part > 0.999 else f"{name} {part:.0%}" for part, name in parts) or "no label"


def _short(path: str) -> str:
    """Return the last two parts of a path: the class folder and the file."""
    return "/".join(path.replace("\\", "/").split("/")[-2:])
