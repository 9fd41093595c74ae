"""A self-contained HTML page of sections."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from stvit_cli.tasks.report_parts import Part, ReportSection


def render(title: str, subtitle: str, sections: Sequence[ReportSection]) -> str:
    """Return the page.

    Args:
        title: its heading.
        subtitle: a line below it.
        sections: in order.

    Returns:
        HTML. Equal arguments give equal bytes.
    """
    body = "".join(f"<section id={s.id!r}><h2>{escape(s.title)}</h2>{''.join(map(_part, s.parts))}</section>" for s in sections)
    return f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><h1>{escape(title)}</h1><p>{escape(subtitle)}{body}"


def _part(part: Part) -> str:
    return f"<pre>{escape(str(part))}</pre>"
