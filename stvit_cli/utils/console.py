"""Where colours and bars may be shown: on a terminal that is not dumb, unless ``NO_COLOR`` is set. All else is plain text."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 10_000
"""Of a table in a pipe or a file: as wide as it needs to be."""


def is_plain(*, stderr: bool = False) -> bool:
    """Whether a stream takes plain text alone: no escape codes, no characters that draw boxes.

    Args:
        stderr: standard error, not standard output.
    """
    return _refuses_codes() or not _is_terminal(stderr)


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return rich's console for a stream; ``is_terminal`` is False where that `is_plain`."""
    from rich.console import Console

    if not is_plain(stderr=stderr):
        return Console(stderr=stderr, quiet=quiet, highlight=False)
    width = None if _is_terminal(stderr) else PLAIN_WIDTH
    return Console(stderr=stderr, quiet=quiet, highlight=False, color_system=None, force_terminal=False, width=width)


def _refuses_codes() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def _is_terminal(stderr: bool) -> bool:
    stream = sys.stderr if stderr else sys.stdout
    forced = os.environ.get("FORCE_COLOR", "") not in ("", "0")  # as rich has it
    try:
        return forced or bool(stream.isatty())
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False
