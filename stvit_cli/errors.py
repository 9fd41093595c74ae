"""What a user can get wrong, as one exception, and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong: a path, a key, a value, a file's content.

    The message is one to six lines: what was given, what was found, what is expected. The command line prints it without a
    traceback and exits with 2. Anything else that is raised is a fault of ours.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of ``choices``, or an empty string where none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
