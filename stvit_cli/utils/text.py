"""Text for people: the nearest right name, a list cut short, control characters made visible."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of ``choices``, or an empty string where none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """Return the first ``limit`` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def printable(text: str, keep: str = "") -> str:
    """Return ``text`` with everything that could steer a terminal escaped: ``\\x1b``, ``\\n``, ``\\u202e``.

    Control and format characters, surrogates and line separators are escaped; letters of every script stay as they are.

    Args:
        keep: characters that stay although they are control characters, such as a newline.
    """
    return "".join(c if c in keep or not _steers(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
