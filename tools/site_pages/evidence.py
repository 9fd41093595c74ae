"""The list of the pages of results."""

from __future__ import annotations

from site_pages.links import ROOT


def page() -> str:
    """Return a line for each page of docs/results."""
    names = sorted(path.stem for path in (ROOT / "docs" / "results").glob("*.md"))
    return "\n".join(f"- [{name}](results/{name}.md)" for name in names)
