"""The HTML of metrics, tables and texts. Everything that comes from data is escaped here or is JSON for the page's script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from stvit_cli.tasks.report_parts import Column, Metric, MetricsPart, TablePart, TextPart
from stvit_cli.utils.metric_names import metric_name
from stvit_cli.utils.text import printable

NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"

LONG_TEXT = 40
"""Characters of a cell that gets room on a phone, where the table scrolls."""

MAX_TILES = 8
"""More metrics than these are a table."""


def text(value: str) -> str:
    r"""Return text as HTML, control characters as escapes.

    >>> text("<b>\x1b")
    '&lt;b&gt;\\x1b'
    """
    return escape(printable(value))


def heading(title: str) -> str:
    """Return the heading of a part; none where it has no title."""
    return f"<h3>{text(title)}</h3>" if title else ""


def remark(note: str) -> str:
    """Return a note below a part; none where there is none."""
    return f'<p class="remark">{text(note)}</p>' if note else ""


def number(value: float, kind: str = "number", unit: str = "") -> str:
    """Return a number for people.

    >>> number(12345, "count").replace(NARROW_SPACE, " "), number(97.2222, "percent"), number(0.000123456), number(1234567.8)
    ('12 345', '97.22', '0.0001235', '1.235e+06')
    """
    if kind == "count" or (float(value).is_integer() and abs(value) < 1e15 and kind != "percent" and not unit):
        return f"{int(value):,}".replace(",", NARROW_SPACE)
    return f"{value:.2f}" if kind == "percent" or unit == "%" else f"{value:.4g}"


def metrics(part: MetricsPart) -> str:
    """Return metrics with their intervals: tiles of a few, a table of many."""
    inner = _tiles(part.metrics) if len(part.metrics) <= MAX_TILES else _metric_table(part.metrics)
    return f"{heading(part.title)}{inner}{remark(part.note)}"


def _tiles(items: Sequence[Metric]) -> str:
    tiles = []
    for item in items:
        interval = _interval(item)
        below = [f"95{NARROW_SPACE}% interval {interval}"] if interval else []
        below += [item.note] if item.note else []
        lines = "".join(f'<span class="small">{text(line)}</span>' for line in below)
        unit = f" <small>{text(item.unit)}</small>" if item.unit and item.value is not None else ""
        value = f'<span class="value">{_value(item)}{unit}</span>'
        tiles.append(f'<div class="tile"><dt>{text(metric_name(item.name).label)}</dt><dd>{value}</dd>{_described(lines)}</div>')
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _described(lines: str) -> str:
    return f"<dd>{lines.replace('</span><span', '</span><br><span')}</dd>" if lines else ""


def _metric_table(items: Sequence[Metric]) -> str:
    notes = any(item.note for item in items)
    columns = [
        Column("metric"),
        Column("value", "number"),
        Column(f"95{NARROW_SPACE}% interval"),
        *([Column("note")] if notes else []),
    ]
    rows = []
    for item in items:
        shown = f"{_value(item)}{NARROW_SPACE}{item.unit}" if item.value is not None and item.unit else _value(item)
        key = "" if item.value is None else f"{item.value:.6g}"
        cells = [
            f'<th scope="row">{text(metric_name(item.name).label)}</th>',
            f'<td class="num" data-v="{key}">{text(shown)}</td>',
        ]
        cells += [f"<td>{text(_interval(item))}</td>", *([f"<td>{text(item.note)}</td>"] if notes else [])]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _table("Metrics", columns, rows)


def _value(item: Metric) -> str:
    return "–" if item.value is None or not math.isfinite(item.value) else number(item.value, unit=item.unit)  # noqa: RUF001


def _interval(item: Metric) -> str:
    if item.low is None or item.high is None:
        return ""
    return f"{number(item.low, unit=item.unit)} to {number(item.high, unit=item.unit)}".replace(" ", NARROW_SPACE)


def table(part: TablePart) -> str:
    """Return a table that the page's script sorts."""
    rows = ["<tr>" + "".join(map(_cell, row, part.columns, range(len(row)))) + "</tr>" for row in part.rows]
    label = part.title or ", ".join(column.name for column in part.columns)
    return f"{heading(part.title)}{_table(label, part.columns, rows)}{remark(part.note)}"


def _table(label: str, columns: Sequence[Column], rows: Sequence[str]) -> str:
    heads = "".join(
        f'<th scope="col"{_class("num" if column.kind != "text" else "")}><button type="button">{text(column.name)}</button></th>'
        for column in columns
    )
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">'
    return f'{region}<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _cell(value: str | float | int | None, column: Column, index: int) -> str:
    if column.kind == "text":
        tag = 'th scope="row"' if index == 0 else "td"
        shown = "" if value is None else text(str(value))
        return f"<{tag}{_class('long' if len(shown) > LONG_TEXT else '')}>{shown}</{tag.split()[0]}>"
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return f'<td class="num" data-v="">{text(value) if isinstance(value, str) else ""}</td>'
    shown = text(number(value, column.kind))
    if column.kind == "percent":
        return f'<td class="num pct" style="--p:{min(max(value, 0), 100):.1f}%" data-v="{value:.6g}">{shown}</td>'
    return f'<td class="num" data-v="{value:.10g}">{shown}</td>'


def words(part: TextPart) -> str:
    """Return lines of text, warnings or commands."""
    if part.kind == "code":
        lines = "\n".join(map(text, part.lines))
        return f'{heading(part.title)}<div class="code"><pre>{lines}</pre></div>'
    kind = "note warning" if part.kind == "warning" else "lead"
    return heading(part.title) + "".join(f'<p class="{kind}">{text(line)}</p>' for line in part.lines)
