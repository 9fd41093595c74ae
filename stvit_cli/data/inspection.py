"""A look at some of the images before a run, so that what would end it later is said at once."""

from __future__ import annotations

from collections.abc import Callable

from stvit_cli.errors import UserError

NUM_INSPECTED = 200
"""Images of a set, evenly spread; all where there are no more."""

NUM_NAMED = 3
"""Of those that cannot be used, so many are named."""


def evenly_spaced(count: int, limit: int = NUM_INSPECTED) -> range:
    """Return at most ``limit`` positions, evenly spread over ``count``."""
    return range(0, count, max(1, -(-count // limit)))


def find_unusable(look: Callable[[int], object], positions: range) -> list[str]:
    """Return the message of every UserError that ``look`` raises at the positions."""
    problems = []
    for position in positions:
        try:
            look(position)
        except UserError as error:
            problems.append(str(error))
    return problems


def require_usable(name: str, look: Callable[[int], object], count: int) -> None:
    """Look at some images of a set.

    Args:
        name: of the set: training or validation.
        look: raises UserError for the number of an image that cannot be used.
        count: of the set's images.

    Raises:
        UserError: some cannot be used; it names them.
    """
    positions = evenly_spaced(count)
    refuse_unusable(name, find_unusable(look, positions), len(positions))


def refuse_unusable(name: str, problems: list[str], num_looked_at: int) -> None:
    """Raise UserError where there are problems: the first lines of some of them, and what helps the first of them."""
    if problems:
        more = [f"and {len(problems) - NUM_NAMED} more"] if len(problems) > NUM_NAMED else []
        more += problems[0].splitlines()[1:2]
        named = [problem.splitlines()[0] for problem in problems[:NUM_NAMED]]
        first = f"{len(problems)} of the {num_looked_at} {name} images that were looked at before the first step cannot be used:"
        raise UserError("\n".join([first, *named, *more]))
