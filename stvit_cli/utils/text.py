"""Text of messages: the closest valid name, truncated lists, escaped control characters."""

from __future__ import annotations

import math
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

_ENDING = re.compile(r"\.[A-Za-z]{1,5}\Z")
_DASHES = {ord(dash): "-" for dash in "\u2010\u2011\u2012\u2013\u2212"}
_FAR = 100.0
"""Above every number of typos: a common beginning comes after them, and words inside a name after it."""
_MOST = 6
"""More names that are equally close say nothing, as each of them would be a guess."""
_INSIDE = 5
"""The least letters that are looked for inside a name: fewer are found in names that were not meant."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest of ``choices``, or an empty string where none is close; see `nearest`.

    Example:
        >>> did_you_mean("own-img", ["quickstart", "own-images"])
        " Did you mean 'own-images'?"
        >>> did_you_mean("own", ["own-boxes", "own-images"])
        " Did you mean 'own-boxes' or 'own-images'?"
    """
    return suggestion(nearest(name, choices))


def suggestion(names: Sequence[str]) -> str:
    """Return `` Did you mean 'x', 'y' or 'z'?``, or an empty string where there are no names."""
    quoted = [f"'{printable(name)}'" for name in names]
    return f" Did you mean {' or '.join(filter(None, [', '.join(quoted[:-1]), quoted[-1]]))}?" if names else ""


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """Return the closest of ``choices``: all of those that are equally close, as one of them would be a guess.

    Close is, the closest first: the same but for case and separators, a typo for each five letters (one at least), the same file
    under another ending, one name the beginning of the other, or the words of ``name``, one after the other, inside a choice
    (``mask-rcnn``), or abbreviated (``own-img``). A far suggestion is worse than none; ``name`` itself is no suggestion.
    """
    found: dict[tuple[float, bool], list[str]] = {}
    for choice in dict.fromkeys(choices):
        distance = _distance(name, choice)
        if distance is not None:
            # Of two at the same distance, the one that ``name`` begins: a name is rather cut short than misspelt.
            found.setdefault((distance, not choice.startswith(name)), []).append(choice)
    best = found[min(found)] if found else []
    return best if len(best) <= _MOST else []


def metric_text(name: str, value: float, num_images: float) -> str:
    """Format a metric with the digits that ``num_images`` images support: of a percentage, those that a single image changes.

    A mean that is no percentage, such as a loss, gets two more: it is 100 times finer.
    """
    digits = max(0, math.ceil(math.log10(max(num_images, 1) / 100)))
    return f"{value:.{min(digits, 2) + 2 * name.endswith('loss')}f}"


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """Return the first ``limit`` names, printable and separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str, keep: str = "") -> str:
    r"""Return ``text`` with everything that could steer a terminal escaped: ``\x1b``, ``\n``, ``\u202e``.

    Control and format characters, surrogates and line separators are escaped; letters of every script stay as they are.

    Args:
        text: any text.
        keep: characters that stay although they are control characters, such as a newline.
    """
    return "".join(c if c in keep or not _steers(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shell_command(*parts: str | Path) -> str:
    r"""Return a command to paste into a shell, with what needs it quoted.

    A path that begins with a dash becomes ``./-x``, as it would be taken for an option; control characters and bytes that are no
    letters are written as bash and zsh read them, ``$'\x1b'``.

    Args:
        parts: words; paths as `Path`.
    """
    return " ".join(_shell_word(part) for part in parts)


def _shell_word(part: str | Path) -> str:
    text = f"./{part}" if isinstance(part, Path) and str(part).startswith("-") else str(part)
    if not any(_steers(c) for c in text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join("".join(f"\\x{b:02x}" for b in os.fsencode(c)) if _steers(c) else c for c in escaped) + "'"


def shortened(text: str, limit: int = 80) -> str:
    """Return ``text`` as a message can have it, where it comes from a file: printable, and of at most ``limit`` characters."""
    text = printable(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = False) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        columns: the headings.
        rows: the cells.
        right: align every column but the first to the right.

    Example:
        >>> markdown_table(["a", "b"], [["1", "x|y"]])
        ['| a | b |', '| --- | --- |', '| 1 | x&#124;y |']
    """
    rule = ["---", *["---:" if right else "---"] * (len(columns) - 1)]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in [columns, rule, *rows]]


def file_name(text: str) -> str:
    """Return ``text`` as the name of one file: no separators, control characters or leading dots, and of at most 100 bytes."""
    name = re.sub(r"[^\w.+ -]", "-", text).lstrip(".-").encode()[:100].decode(errors="ignore")
    return name.strip() or "unnamed"


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def number_meant(text: str, *, whole: bool) -> str | None:
    """Return the number that was meant by text such as ``0,001``, ``1 000``, ``'5e-4'`` or a minus that is a dash, or None.

    Args:
        text: as the user wrote it.
        whole: a whole number is expected, so that the comma of ``1,000`` parts the thousands.
    """
    text = re.sub(r"[\s_'\u2018\u2019\u201c\u201d\u200b\ufeff]", "", text).translate(_DASHES).rstrip(",;")
    decimal = max(text.rfind(","), text.rfind("."))
    if "," in text and "." in text:
        text = re.sub("[,.]", "", text[:decimal]) + "." + text[decimal + 1 :]
    elif text.count(",") > 1 or (whole and re.fullmatch(r"[-+]?\d{1,3},\d{3}", text)):
        text = text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text) else text
    text = text.replace(",", ".")
    return text if re.fullmatch(r"[-+]?(\d+|\d*\.\d+)([eE][-+]?\d+)?", text) and not (whole and "." in text) else None


def _distance(name: str, choice: str) -> float | None:
    """Return how far ``choice`` is from ``name``, or None where it is too far to be what was meant."""
    name, choice = unicodedata.normalize("NFC", name), unicodedata.normalize("NFC", choice)
    if not name or name == choice:
        return None
    (stem, ending), (other, other_ending) = _split(name), _split(choice)
    if stem == other:
        return 0 if ending == other_ending else 0.5
    if ending != other_ending:  # the ending itself may hold the typo
        stem, other = stem + ending, other + other_ending
    limit = max(1, len(stem) // 5)
    typos = _typos(stem, other, limit)
    if typos <= limit and typos < max(len(stem), len(other)):
        return typos
    short, long = sorted((stem, other), key=len)
    if long.startswith(short) and (len(short) > 2 or long[len(short)] == "-"):
        return _FAR + (0 if short == stem else 1 + len(long) - len(short))  # of what ``name`` begins, each is as close
    return 2 * _FAR if _is_inside(stem, other) else None


def _is_inside(name: str, choice: str) -> bool:
    """Whether the words of ``name`` are successive words of ``choice``: the same letters, or, beside a same word, abbreviated."""
    own, words = ([word for word in text.split("-") if word] for text in (name, choice))
    letters = "".join(own)
    for start in range(len(words)):
        if len(letters) >= _INSIDE and "".join(words[start:]).startswith(letters):
            return True
        pairs = list(zip(own, words[start:], strict=False))
        if len(pairs) == len(own) > 1 and any(a == b for a, b in pairs) and all(_abbreviates(a, b) for a, b in pairs):
            return True
    return False


def _abbreviates(short: str, word: str) -> bool:
    """Whether ``short`` is ``word`` or, of three letters or more, has its first letter and others of it in their order."""
    letters = iter(word[1:])
    return short == word or (len(short) > 2 and short[0] == word[0] and all(letter in letters for letter in short[1:]))


def _split(name: str) -> tuple[str, str]:
    """Return a name without its ending, and the ending, both without case and with one kind of separator."""
    ending = _ENDING.search(name)
    stem = name[: ending.start()] if ending else name
    return re.sub(r"[-_ ]", "-", stem.casefold()), ending.group().casefold() if ending else ""


def _typos(a: str, b: str, limit: int) -> int:
    """Return how many letters must be inserted, deleted, replaced or swapped; above ``limit`` not exactly."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(b, 1):
            cost = min(row[-1] + 1, before[j] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1]
