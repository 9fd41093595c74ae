"""Augmented training samples of a detector with their objects, before the model resizes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.tasks.base import Task
from stvit_cli.tasks.detection.drawing import SIDE, DrawnObject, draw_objects
from stvit_cli.tasks.detection.shown_images import caption_classes
from stvit_cli.tasks.detection.task import DetectionTask
from stvit_cli.tasks.report_parts import ShownImage, Thumbnail
from stvit_cli.tasks.sample_sheet import as_image, first_samples


def sample_sheet(task: Task, num_images: int) -> Sequence[ShownImage]:
    """Return the first training samples of the first epoch, a function of the recipe's seed; see `tasks.spec.TaskSpec`.

    Images that cannot be opened are left out.

    Args:
        task: a detection task.
        num_images: the largest number of samples.
    """
    assert isinstance(task, DetectionTask)
    shown = []
    for sample in first_samples(task, task.recipe, num_images):
        targets = {name: values.numpy() for name, values in sample["targets"].items()}
        labels = (targets["labels"] - 1).tolist()
        objects = []
        for position, (label, box) in enumerate(zip(labels, targets["boxes"].tolist(), strict=True)):
            left, top, right, bottom = box
            mask = targets["masks"][position] if "masks" in targets and targets["has_mask"][position] else None
            name = task.data.class_names[label]
            objects.append(DrawnObject(label, (left, top, right - left, bottom - top), name, mask))
        objects.sort(key=lambda drawn: -drawn.box[2] * drawn.box[3])  # the smallest are drawn last
        drawn_image = Thumbnail(thumbnail(draw_objects(as_image(sample["image"]), objects), SIDE))
        name = PurePath(task.train_set.path(sample["index"])).name
        shown.append(ShownImage(name, [drawn_image], [caption_classes(labels, task.data.class_names)]))
    return shown
