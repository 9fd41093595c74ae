"""Augmented training samples of a segmenter with their label maps, as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from stvit_cli.data.segmentation_transforms import IGNORED, Labels
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.tasks.base import Task
from stvit_cli.tasks.report_parts import ShownImage, Thumbnail
from stvit_cli.tasks.sample_sheet import denormalized, first_samples
from stvit_cli.tasks.segmentation.drawing import SIDE, overlay
from stvit_cli.tasks.segmentation.task import SegmentationTask
from stvit_cli.utils.text import first_few


def sample_sheet(task: Task, num_images: int) -> Sequence[ShownImage]:
    """Return the first training samples of the first epoch, a function of the recipe's seed; see `tasks.spec.TaskSpec`.

    Crops are denormalized; what is ignored is hatched. Images that cannot be opened are left out.

    Args:
        task: a segmentation task.
        num_images: the largest number of samples.
    """
    assert isinstance(task, SegmentationTask)
    recipe, images = task.recipe, task.train_set.images
    shown = []
    for sample in first_samples(task, recipe, num_images):
        image, labels = denormalized(sample["image"], recipe.data.mean, recipe.data.std), sample["target"].numpy()
        drawn = overlay(image, labels, class_names=task.section.class_names)
        thumbnails = [Thumbnail(thumbnail(image, SIDE), "image"), Thumbnail(thumbnail(drawn, SIDE), "label map")]
        name = PurePath(images.path(sample["index"])).name
        shown.append(ShownImage(name, thumbnails, [class_shares(labels, task.section.class_names)]))
    return shown


def class_shares(labels: Labels, class_names: Sequence[str]) -> str:
    """Return the classes of a label map by descending share, ignored pixels last, such as ``sky 60%, road 30%, ignored 10%``.

    >>> class_shares(np.array([[0, 1, 1, -1]]), ["road", "sky"])
    'sky 50%, road 25%, ignored 25%'
    """
    numbers, counts = np.unique(labels, return_counts=True)
    shares = [
        (int(number), f"{class_names[number]} {count / labels.size:.0%}")
        for number, count in sorted(zip(numbers.tolist(), counts.tolist(), strict=True), key=lambda entry: -entry[1])
        if number != IGNORED
    ]
    ignored = int((labels == IGNORED).sum())
    texts = [text for _, text in shares] + ([f"ignored {ignored / labels.size:.0%}"] if ignored else [])
    return first_few(texts, 6)
