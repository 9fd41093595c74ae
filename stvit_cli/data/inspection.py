"""Inspection of some images before a run, so that errors that would end it later are found at once."""

from __future__ import annotations

from collections.abc import Callable

from stvit_cli.errors import UserError

NUM_INSPECTED = 200
"""Maximum number of images of a set that are opened, evenly spaced."""

NUM_NAMED = 3
"""Maximum number of unusable images that a message names."""


def evenly_spaced(count: int, limit: int = NUM_INSPECTED) -> range:
    """Return at most ``limit`` evenly spaced indices below ``count``.

    >>> list(evenly_spaced(10, limit=4))
    [0, 3, 6, 9]
    """
    return range(0, count, max(1, -(-count // limit)))


def find_unusable(inspect: Callable[[int], object], indices: range) -> list[str]:
    """Return the message of every UserError that ``inspect`` raises for the indices."""
    problems = []
    for index in indices:
        try:
            inspect(index)
        except UserError as error:
            problems.append(str(error))
    return problems


def require_usable(name: str, inspect: Callable[[int], object], count: int) -> None:
    """Inspect some images of a set.

    Args:
        name: of the set: training or validation.
        inspect: raises UserError for the index of an unusable image.
        count: number of images in the set.

    Raises:
        UserError: some are unusable; it names them.
    """
    indices = evenly_spaced(count)
    refuse_unusable(name, find_unusable(inspect, indices), len(indices))


REMEDY = "Repair or remove what cannot be used; `stvit data check` opens every image and lists all of it."
"""Last line where the problem itself has none."""


def refuse_unusable(name: str, problems: list[str], num_inspected: int) -> None:
    """Raise UserError if there are problems, with the first lines of some and the remedy for the first."""
    if problems:
        more = [f"and {len(problems) - NUM_NAMED} more"] if len(problems) > NUM_NAMED else []
        more += problems[0].splitlines()[1:2] or [REMEDY]
        named = [problem.splitlines()[0] for problem in problems[:NUM_NAMED]]
        first = f"{len(problems)} of the {num_inspected} {name} images that were looked at before the first step cannot be used:"
        raise UserError("\n".join([first, *named, *more]))
