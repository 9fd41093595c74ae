"""What each task has in a recipe: the sections that not every task has, and the kinds of data. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class TaskKeys(NamedTuple):
    """The keys of one task."""

    sections: tuple[str, ...]
    """Beside the shared ones."""
    data_kinds: tuple[str, ...]
    """Values of data.kind."""


TASKS = {
    "classification": TaskKeys(
        sections=("loss", "distill"),
        data_kinds=("digits", "imagefolder", "table", "idx", "timm", "shards", "shapes"),
    ),
    "detection": TaskKeys(
        sections=("detection", "shapes"), data_kinds=("coco", "yolo", "voc", "labelme", "cvat", "createml", "shapes")
    ),
    "segmentation": TaskKeys(sections=("segmentation", "shapes"), data_kinds=("ade20k", "shapes")),
}

TASK_SECTIONS = tuple(dict.fromkeys(section for task in TASKS.values() for section in task.sections))
"""Sections that only some tasks have."""


def other_tasks_sections(task: object, data_kind: object = None) -> list[str]:
    """Return the sections that a task does not have; a section named as its kind of data it has.

    >>> other_tasks_sections("detection")
    ['loss', 'distill', 'segmentation']
    >>> other_tasks_sections("classification"), other_tasks_sections("classification", "shapes")
    (['detection', 'shapes', 'segmentation'], ['detection', 'segmentation'])
    """
    return [section for section in TASK_SECTIONS if task not in tasks_with(section) and section != data_kind]


def tasks_with(section: str) -> list[str]:
    """Return the tasks that have a section."""
    return [task for task, keys in TASKS.items() if section in keys.sections]
