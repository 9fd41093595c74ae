"""What a report consists of: sections of tables, charts, matrices and images, which a task fills and `analysis.report` shows.

A task knows no HTML, and the page no task. Texts are plain text: the page escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric with its confidence interval.

    Attributes:
        name: as in ``metrics.jsonl``.
        value: in ``unit``; None: not defined for these data.
        low: lower end of the 95 % interval; None: no interval.
        high: its upper end.
        unit: ``%``, ``s``, ``images/s``, ...; empty for a pure number.
        note: what it is, where the name does not say it.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class MetricsPart:
    """Metrics with intervals."""

    metrics: Sequence[Metric]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its head.
        kind: how values are shown and sorted: ``text``, ``count`` (an integer), ``percent`` (a number of 0 to 100) or ``number``.
    """

    name: str
    kind: Literal["text", "count", "percent", "number"] = "text"


@dataclass(frozen=True)
class TablePart:
    """A table that the reader can sort by every column; None is an empty cell, sorted last."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | float | int | None]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Series:
    """A series of a chart.

    Attributes:
        name: in the legend.
        x: positions; None in ``y`` is a gap.
        y: values.
        kind: ``line`` (with points where there are few), ``points``, ``bars`` or ``dashes`` (a reference line).
        best: the index of the point that is marked as the best; None: none is.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    kind: Literal["line", "points", "bars", "dashes"] = "line"
    best: int | None = None


@dataclass(frozen=True)
class ChartPart:
    """A chart of one or several series over the same axes; labels name the units."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    note: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Thumbnail:
    """A small image.

    Attributes:
        data: a JPEG, PNG or WebP file; equal ones are in the page once.
        label: what it shows beside others of the same image: ``truth``, ``prediction``, ``error map``.
    """

    data: bytes
    label: str = ""


@dataclass(frozen=True)
class ShownImage:
    """An image of a data set with what is said of it.

    Attributes:
        name: its file name, within the data set.
        thumbnails: one or several, side by side.
        caption: lines below: truth, prediction with its score.
        is_wrong: the prediction differs from the truth; None where that is not a question.
    """

    name: str
    thumbnails: Sequence[Thumbnail]
    caption: Sequence[str] = ()
    is_wrong: bool | None = None


@dataclass(frozen=True)
class GalleryPart:
    """Images.

    Attributes:
        images: those shown.
        total: how many there are of that kind; the page says "N of TOTAL".
    """

    title: str
    images: Sequence[ShownImage]
    total: int | None = None
    note: str = ""


@dataclass(frozen=True)
class MatrixPart:
    """A matrix of counts by true class (rows) and predicted class (columns), shown as counts or normalized by row or column.

    Attributes:
        class_names: of rows and columns.
        counts: (K, K), row-major.
        images: what a click on a cell shows: images by (row, column); a part of them is enough.
        what: what is counted: ``images``, ``objects``, ``pixels``.
    """

    title: str
    class_names: Sequence[str]
    counts: Sequence[Sequence[int]]
    images: Mapping[tuple[int, int], Sequence[ShownImage]] = field(default_factory=dict)
    what: str = "images"
    note: str = ""


@dataclass(frozen=True)
class TextPart:
    """Lines of text.

    Attributes:
        lines: one below the other.
        kind: ``text``; ``warning``: something is missing or looks wrong; ``code``: commands or settings, to be copied.
    """

    lines: Sequence[str]
    title: str = ""
    kind: Literal["text", "warning", "code"] = "text"


Part = MetricsPart | TablePart | ChartPart | GalleryPart | MatrixPart | TextPart


@dataclass(frozen=True)
class ReportSection:
    """A section of a report.

    Attributes:
        id: its anchor: ``metrics``, ``confusion``, ``classes``, ``calibration``, ``mistakes``, ...
        title: its heading.
        parts: what it shows, in order.
        intro: one or two sentences on how to read it.
    """

    id: str
    title: str
    parts: Sequence[Part]
    intro: str = ""
