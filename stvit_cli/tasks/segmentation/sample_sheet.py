"""Augmented training samples of a segmenter with their label maps, as the model sees them. C channels, S side of the crop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stvit_cli.data.sampling import sample_order
from stvit_cli.data.segmentation_transforms import IGNORED, Labels
from stvit_cli.data.thumbnails import image_kind, thumbnail
from stvit_cli.errors import UserError
from stvit_cli.tasks.base import Task
from stvit_cli.tasks.report_parts import ShownImage, Thumbnail
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
    keys = sample_order(len(task.train_set), 0, recipe.train.seed, recipe.augment.repeats, task.class_balance)
    shown: list[ShownImage] = []
    for key in keys[: 2 * num_images]:
        if len(shown) == num_images:
            break
        try:
            sample = task.train_set[key]
        except UserError:
            continue
        image, labels = _denormalized(sample["image"], recipe.data.mean, recipe.data.std), sample["target"].numpy()
        drawn = overlay(image, labels, class_names=task.section.class_names)
        files = [(thumbnail(image, SIDE), "image"), (thumbnail(drawn, SIDE), "label map")]
        thumbnails = [Thumbnail(data, label, image_kind(data)) for data, label in files]
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


def _denormalized(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Return a normalized image (C, S, S) as one with 8 bits a channel."""
    factor, offset = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    pixels = (image.float() * factor + offset).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))
