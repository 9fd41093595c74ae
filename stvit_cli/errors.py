"""The two ways in which a run ends early without a fault of ours, and the nearest right name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong: a path, a key, a value, a file's content.

    The message is one to six lines: what was given, what was found, what is expected. The command line prints it without a
    traceback and exits with 2. Anything else that is raised is a fault of ours.
    """


class Interrupted(Exception):
    """A signal asked the run to end and its state is saved. The command line exits with 130 (Ctrl-C) or 143 (any other)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.signal_number = signal_number


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of ``choices``, or an empty string where none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
