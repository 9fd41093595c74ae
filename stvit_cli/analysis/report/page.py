"""A self-contained HTML page of sections: what `stvit report` and `stvit compare` write.

The page loads nothing: its style and scripts are `page.css` and the `.js` files beside this file, its images are in it, and a
content security policy forbids everything else. Text of data is escaped, or is JSON that the script puts into the page as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from stvit_cli.analysis.report import parts
from stvit_cli.analysis.report.charts import chart_data, grouped, summary
from stvit_cli.analysis.report.images import MAX_BYTES, PageImages, count_text, shown_of
from stvit_cli.tasks.report_parts import ChartPart, GalleryPart, MatrixPart, MetricsPart, Part, ReportSection, TablePart, TextPart
from stvit_cli.utils.text import printable

SCRIPTS = ("page.js", "images.js", "charts.js", "matrices.js")
"""In the order in which they use each other."""


def render(title: str, subtitle: str, sections: Sequence[ReportSection], *, max_image_bytes: int = MAX_BYTES) -> str:
    """Return the page.

    Args:
        title: its heading.
        subtitle: a line below it.
        sections: in order; their ids are the anchors of the navigation.
        max_image_bytes: how much text the images may be. Galleries come first, then the cells of matrices; the page says how many
            images it shows.

    Returns:
        HTML. Equal arguments give equal bytes.

    Example:
        >>> page = render("A run", "of a test", [ReportSection("summary", "Summary", [TextPart(["All <b>well</b>."])])])
        >>> "All &lt;b&gt;well&lt;/b&gt;." in page
        True
    """
    sections = _with_own_anchors(sections)
    page = _Page(PageImages(max_image_bytes))
    page.collect(sections)
    navigation = "".join(f'<li><a href="#{parts.text(item.id)}">{parts.text(item.title)}</a></li>' for item in sections)
    values = {
        "TITLE": parts.text(title),
        "SUBTITLE": parts.text(subtitle),
        "NAV": navigation,
        "SECTIONS": "".join(map(page.section, sections)),
        "CSS": _file("page.css"),
        "JS": "\n".join(map(_file, SCRIPTS)),
    }
    values["DATA"] = _json(page.data())
    # In one pass: a value that holds @JS@ stays as it is.
    return re.sub("@(TITLE|SUBTITLE|NAV|SECTIONS|CSS|JS|DATA)@", lambda found: values[found[1]], _file("page.html"))


def _with_own_anchors(sections: Sequence[ReportSection]) -> list[ReportSection]:
    """Number the ids that several sections have: a task's and the run's own sections do not know of each other."""
    found: list[ReportSection] = []
    for section in sections:
        taken, name, number = {other.id for other in found}, section.id, 2
        while name in taken:
            name, number = f"{section.id}-{number}", number + 1
        found.append(replace(section, id=name))
    return found


class _Page:
    """Builds the sections, and beside them what the script draws."""

    def __init__(self, images: PageImages) -> None:
        self.images = images
        self.charts: list[dict[str, Any]] = []
        self.galleries: list[list[dict[str, Any]]] = []
        self.matrices: list[dict[str, Any]] = []
        self._shown: dict[int, Any] = {}

    def collect(self, sections: Sequence[ReportSection]) -> None:
        """Take in the images: those of galleries before those of matrices, of which there may be very many."""
        found = [part for section in sections for part in section.parts]
        self._shown = {id(part): self.images.gallery(part) for part in found if isinstance(part, GalleryPart)}
        self._shown |= {id(part): self.images.cells(part) for part in found if isinstance(part, MatrixPart)}

    def data(self) -> dict[str, Any]:
        """Return what the script reads."""
        return {"images": self.images.files, "charts": self.charts, "galleries": self.galleries, "matrices": self.matrices}

    def section(self, section: ReportSection) -> str:
        """Return the HTML of a section."""
        intro = f'<p class="intro">{parts.text(section.intro)}</p>' if section.intro else ""
        groups = []
        for group in grouped(section.parts):
            inner = "".join(map(self.part, group))
            kind = "part charts" if isinstance(group[0], ChartPart) else "part"
            groups.append(f'<div class="{kind}">{inner}</div>')
        name = parts.text(section.id)
        head = f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{parts.text(section.title)}</h2>'
        return f"{head}{intro}{''.join(groups)}</section>\n"

    def part(self, part: Part) -> str:
        """Return the HTML of a part."""
        match part:
            case MetricsPart():
                return parts.metrics(part)
            case TablePart():
                return parts.table(part)
            case TextPart():
                return parts.words(part)
            case ChartPart():
                return self._chart(part)
            case GalleryPart():
                return self._gallery(part)
            case MatrixPart():
                return self._matrix(part)

    def _chart(self, part: ChartPart) -> str:
        self.charts.append(chart_data(part))
        label = parts.text(f"{summary(part)} Left and right arrow keys show the values.")
        plot = f'<div class="plot" tabindex="0" role="application" aria-roledescription="chart" aria-label="{label}"></div>'
        head = f"<h3>{parts.text(part.title)}</h3>{parts.remark(part.note)}"
        return f'<div class="chart" data-chart="{len(self.charts) - 1}">{head}{plot}</div>'

    def _gallery(self, part: GalleryPart) -> str:
        shown = self._shown[id(part)]
        self.galleries.append(shown)
        total = part.total if part.total is not None or len(shown) == len(part.images) else len(part.images)
        count = f'<p class="remark">{count_text(len(shown), total)}</p>'
        place = f'<div class="gallery" data-gallery="{len(self.galleries) - 1}"></div>'
        return f"{parts.heading(part.title)}{parts.remark(part.note)}{count}{place}"

    def _matrix(self, part: MatrixPart) -> str:
        shown = self._shown[id(part)]
        entries = [
            number
            for row, counts in enumerate(part.counts)
            for column, count in enumerate(counts)
            if count
            for number in (row, column, int(count))
        ]
        matrix = {"title": part.title, "names": [printable(name) for name in part.class_names], "what": part.what}
        self.matrices.append(matrix | {"entries": entries, "images": shown})
        notes = parts.remark(part.note) + parts.remark(shown_of(shown, part))
        return f'{parts.heading(part.title)}{notes}<div class="matrix" data-matrix="{len(self.matrices) - 1}"></div>'


def _json(data: dict[str, Any]) -> str:
    """Return data for a script element, in which only "<" could end it early."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _file(name: str) -> str:
    return resources.files("stvit_cli.analysis.report").joinpath(name).read_text(encoding="utf-8")
