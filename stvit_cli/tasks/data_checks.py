"""Problems of the data, found by opening some of the images of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stvit_cli.data.inspection import evenly_spaced, find_unusable

NUM_NAMED = 5
"""The number of unusable images of a set that are named."""


def unusable_images(name: str, look: Callable[[int], object], count: int, limit: int) -> list[str]:
    """Open images of a set, evenly spaced, and return what is wrong with them.

    Args:
        name: the name of the set: training or validation.
        look: opens the image of an index; raises UserError where it cannot be used.
        count: the number of images of the set.
        limit: the largest number of images to open.
    """
    opened = evenly_spaced(count, limit)
    return named_problems(name, find_unusable(look, opened), len(opened))


def named_problems(name: str, problems: Sequence[str], num_opened: int) -> list[str]:
    """Return one line for each of the first `NUM_NAMED` problems of a set, and their number where there are more."""
    lines = [f"{name}: {problem.splitlines()[0]}" for problem in problems[:NUM_NAMED]]
    if len(problems) > NUM_NAMED:
        lines.append(f"{name}: {len(problems)} of the {num_opened} images that were opened cannot be used")
    return lines
