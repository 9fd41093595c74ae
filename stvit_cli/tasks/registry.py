"""The tasks by name. A task's module is imported when it is first asked for: detection's libraries take a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stvit_cli.errors import UserError
from stvit_cli.tasks.spec import TaskSpec
from stvit_cli.utils.text import did_you_mean


def _classification() -> TaskSpec:
    from stvit_cli.tasks.classification.spec import SPEC

    return SPEC


def _detection() -> TaskSpec:
    with _from_extra("dense"):
        from stvit_cli.tasks.detection.spec import SPEC

    return SPEC


def _segmentation() -> TaskSpec:
    with _from_extra("dense"):
        from stvit_cli.tasks.segmentation.spec import SPEC

    return SPEC


TASKS: dict[str, Callable[[], TaskSpec]] = {
    "classification": _classification,
    "detection": _detection,
    "segmentation": _segmentation,
}
"""One entry for each task: its name, and what imports its `TaskSpec`."""


def get(name: str) -> TaskSpec:
    """Return the task of a name.

    Raises:
        UserError: no such task, or a library that it needs is not installed.

    Example:
        >>> get("classification").folder_kind
        'imagefolder'
    """
    if name not in TASKS:
        raise UserError(f"no task '{name}'.{did_you_mean(name, list(TASKS))} Known: {', '.join(TASKS)}.")
    return TASKS[name]()


@contextmanager
def _from_extra(extra: str) -> Iterator[None]:
    """Where a library of an extra is not installed, say how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stvit_cli"):
            raise
        raise UserError(
            f"Detection and segmentation need {error.name}, which is not installed. Get it with: pip install 'stvit[{extra}]'"
        ) from None
