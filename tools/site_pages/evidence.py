"""The list of the pages of results, from their own files."""

from __future__ import annotations

import json

from site_pages.links import ROOT

RESULTS = ROOT / "docs" / "results"


def page() -> str:
    """Return a row for each table of docs/results: its question, and how many runs stand behind it."""
    lines = ["| table | question | runs |", "|---|---|---|"]
    for path in sorted(RESULTS.glob("*.md")):
        source = path.with_suffix(".json")
        if path.name in ("README.md", "claims.md") or not source.is_file():
            continue
        content = json.loads(source.read_text(encoding="utf-8"))
        lines.append(f"| [{path.stem}](results/{path.name}) | {content.get('question', '')} | {len(content.get('runs', ()))} |")
    return "\n".join(lines)
