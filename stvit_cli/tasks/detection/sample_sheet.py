"""Augmented training samples of a detector with their objects, before the model resizes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image

from stvit_cli.data.sampling import sample_order
from stvit_cli.data.thumbnails import image_kind, thumbnail
from stvit_cli.errors import UserError
from stvit_cli.tasks.base import Task
from stvit_cli.tasks.detection.drawing import SIDE, DrawnObject, draw_objects
from stvit_cli.tasks.detection.shown_images import caption_classes
from stvit_cli.tasks.detection.task import DetectionTask
from stvit_cli.tasks.report_parts import ShownImage, Thumbnail


def sample_sheet(task: Task, num_images: int) -> Sequence[ShownImage]:
    """Return the first training samples of the first epoch, a function of the recipe's seed; see `tasks.spec.TaskSpec`.

    Images that cannot be opened are left out.

    Args:
        task: a detection task.
        num_images: the largest number of samples.
    """
    assert isinstance(task, DetectionTask)
    recipe = task.recipe
    keys = sample_order(len(task.train_set), 0, recipe.train.seed, recipe.augment.repeats, task.class_balance)
    shown: list[ShownImage] = []
    for key in keys[: 2 * num_images]:
        if len(shown) == num_images:
            break
        try:
            sample = task.train_set[key]
        except UserError:
            continue
        pixels = sample["image"].mul(255).round().byte().permute(1, 2, 0).numpy()
        targets = {name: values.numpy() for name, values in sample["targets"].items()}
        labels = (targets["labels"] - 1).tolist()
        objects = []
        for position, (label, box) in enumerate(zip(labels, targets["boxes"].tolist(), strict=True)):
            left, top, right, bottom = box
            mask = targets["masks"][position] if "masks" in targets and targets["has_mask"][position] else None
            name = task.data.class_names[label]
            objects.append(DrawnObject(label, (left, top, right - left, bottom - top), name, mask))
        objects.sort(key=lambda drawn: -drawn.box[2] * drawn.box[3])  # the smallest are drawn last
        data = thumbnail(draw_objects(Image.fromarray(np.ascontiguousarray(pixels)), objects), SIDE)
        name = PurePath(task.train_set.path(sample["index"])).name
        shown.append(ShownImage(name, [Thumbnail(data, kind=image_kind(data))], [caption_classes(labels, task.data.class_names)]))
    return shown
