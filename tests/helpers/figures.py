"""The figures in README and docs: where they are in the text, and which lines of docs/results stand behind them.

``docs/results/claims.json`` has a line for each figure that is written in them, by key: the ``file``; the ``text`` around the
figure, or the first row of a ``table`` and its ``rows``; and what it is. A figure is

``measured``: with ``command``, ``machine``, ``version`` of stvit and the date when it was ``written`` down; "not recorded" where
    nobody knows. Where it stands in a file of `stvit reproduce`, ``of`` names it: ``fashion-mnist#settings/stvit-nano/mean``.
``counted``, ``published`` or ``given`` (a threshold, an example, an assumption): with its ``source``.

Not a test; `tests/test_figures.py` imports it. ``python tests/helpers/figures.py`` lists the figures that have no line, copies
the rows of tables into the JSON and writes ``docs/results/claims.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT / "docs" / "results" / "claims.json"
WRITTEN_FROM_FIGURES = ("docs/results", "docs/images")
"""Folders whose pages `stvit reproduce` and the benchmarks write from their JSON."""
PAGES = (
    "README.md",
    *(
        page
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if not (page := path.relative_to(ROOT).as_posix()).startswith(WRITTEN_FROM_FIGURES)
    ),
)

UNITS = (
    r"%|percent\b|points?\b|images?(?:/s| per second| a second)|ms\b|milliseconds?\b|s\b|seconds?\b|minutes?\b|min\b|hours?\b|"
    r"[KMGT]i?B\b|bytes\b|dB\b|times\b|µs\b|[TG]FLOPs?(?:/s)?\b|TB/s|[MG]\b"
)
WORDS = r"(?:half an?|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty)(?: and a half)?"
METRICS = r"(?:top-[15]|mIoU|(?:box|mask) AP\d*|AP\d+|mAP|ECE)"
FIGURE = re.compile(
    rf"(?<![\w./-])\d[\d ]*(?:\.\d+)?(?:\s|-)?(?:{UNITS})"  # a number with a unit
    rf"|(?<![\w./-])\d+\.\d+(?![\w.]*\d*\.\d)"  # a decimal number, such as a ratio
    rf"|\b{WORDS}\s(?:{UNITS})"  # three minutes
    rf"|\b{METRICS}\s(?:of\s)?\d+(?:\.\d+)?"  # mIoU 85
)
SHELL_BLOCK, COMMENT = (
    re.compile(r"^```bash\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE),
    re.compile(r"(?:^|\s)(#\s.*)$", re.MULTILINE),
)
CODE_BLOCK = re.compile(r"^```.*?^```\s*$", re.DOTALL | re.MULTILINE)
HIDDEN = (
    re.compile(r"`[^`]*`"),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"(?:arXiv|Python|CC BY|version) [\d.]+"),
    re.compile("95 % interval"),
)
"""What holds no figures: code, targets of links, names with numbers, the level of an interval."""


@dataclass(frozen=True)
class Table:
    """A Markdown table.

    Attributes:
        header: its first line.
        rows: the lines below the rule.
    """

    header: str
    rows: tuple[str, ...]

    @property
    def has_figures(self) -> bool:
        """Whether a cell beyond the first of a row holds a number that is no code."""
        cells = [cell for row in self.rows for cell in HIDDEN[0].sub("", row).strip("|").split("|")[1:]]
        return any(re.search(r"\d", cell) for cell in cells)


def prose(text: str) -> str:
    """Return a page's text without tables and code, but with the comments of commands; each run of white space is one space."""
    text = SHELL_BLOCK.sub(lambda block: "\n".join(COMMENT.findall(block[1])) + "\n", text)
    lines = [line for line in CODE_BLOCK.sub("", text).splitlines() if not line.lstrip().startswith("|")]
    return " ".join(" ".join(lines).split())


def tables(text: str) -> list[Table]:
    """Return the tables of a page."""
    found: list[list[str]] = []
    previous = ""
    for line in CODE_BLOCK.sub("", text).splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                found.append([])
            found[-1].append(" ".join(line.split()))
        previous = line
    return [Table(lines[0], tuple(lines[2:])) for lines in found]


def figures(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and text of every figure in the prose of a page."""
    hidden = text
    for pattern in HIDDEN:
        hidden = pattern.sub(lambda match: "·" * len(match[0]), hidden)
    for match in FIGURE.finditer(hidden):
        yield match.start(), match.end(), match[0]


def uncovered(page: str, text: str, claims: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what a page says that no claim of it stands for: figures with the words around them, and tables.

    Args:
        page: path of the page from the root.
        text: of the page.
        claims: of all pages, by key.
    """
    own, words = [claim for claim in claims.values() if claim["file"] == page], prose(text)
    spans = [(at.start(), at.end()) for c in own if "text" in c for at in re.finditer(re.escape(c["text"]), words)]
    known = {claim["table"] for claim in own if "table" in claim}
    found = [
        f"{what!r} in: …{words[max(0, start - 40) : end + 40]}…"
        for start, end, what in figures(words)
        if not any(first <= start and end <= last for first, last in spans)
    ]
    return found + [table.header for table in tables(text) if table.has_figures and table.header not in known]


def read_claims() -> dict[str, dict[str, Any]]:
    """Return docs/results/claims.json."""
    claims: dict[str, dict[str, Any]] = json.loads(CLAIMS.read_text(encoding="utf-8"))
    return claims


def as_markdown(claims: Mapping[str, Mapping[str, Any]]) -> str:
    """Return docs/results/claims.md: an anchor for each claim."""
    lines = ["# Where the figures come from", "", "Written by `python tests/helpers/figures.py` from [claims.json](claims.json)."]
    lines += ["", "## Measured", "", "| key | file | figure | command | machine | version | written |", "|" + "---|" * 7]
    for key, claim in claims.items():
        if claim["kind"] == "measured":
            cells = [f'| <a id="{key}"></a>{key}', claim["file"], _shown(claim), *map(_escaped, _origin(claim))]
            lines.append(" | ".join(cells) + " |")
    lines += ["", "## Counted, published, given", "", "| key | file | figure | what | source |", "|" + "---|" * 5]
    for key, claim in claims.items():
        if claim["kind"] != "measured":
            cells = [f"| {key}", claim["file"], _shown(claim), claim["kind"], _escaped(claim["source"])]
            lines.append(" | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _origin(claim: Mapping[str, Any]) -> list[str]:
    """Return command, machine, version and date of a measured claim, or the file of `stvit reproduce` that has them."""
    if "of" in claim:
        name = claim["of"].partition("#")[0]
        return [f"stvit reproduce {name}", *[f"see [{name}]({name}.md)"] * 3]
    return [claim["command"], claim["machine"], claim["version"], claim["written"]]


def _shown(claim: Mapping[str, Any]) -> str:
    """Return the text of a claim without its links, or the first row of its table, and the note on it."""
    said = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", claim.get("text") or f"table: {claim['table'].strip('| ')}")
    return _escaped(said) + (f" ({_escaped(claim['note'])})" if "note" in claim else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    claims = read_claims()
    for claim in claims.values():
        if "rows" in claim:
            found = [
                table for table in tables((ROOT / claim["file"]).read_text(encoding="utf-8")) if table.header == claim["table"]
            ]
            claim["rows"] = [row for table in found for row in table.rows]
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(claim, ensure_ascii=False)}" for key, claim in claims.items())
    CLAIMS.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    CLAIMS.with_suffix(".md").write_text(as_markdown(claims), encoding="utf-8")
    for page in PAGES:
        for line in uncovered(page, (ROOT / page).read_text(encoding="utf-8"), claims):
            print(f"{page}: {line}")


if __name__ == "__main__":
    main()
