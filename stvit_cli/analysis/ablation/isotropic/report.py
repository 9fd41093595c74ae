"""Table II as table cells, CSV, JSON, Markdown and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stvit_cli.analysis.ablation.isotropic.table import PAIRS, Row, Setting, build_table, compare, notes_on_counts, summarize
from stvit_cli.analysis.ablation.plot import limits
from stvit_cli.models.isotropic_rows import MINI, VARIANTS
from stvit_cli.utils import strict_json
from stvit_cli.utils.files import replace_file, writing
from stvit_cli.utils.text import markdown_table

COLUMNS = ("row", "model", "channels", "blocks", "RPE", "parameters", "paper", "FLOPs", "paper", "top-1 here", "paper, ImageNet")
LABEL = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
SWIN, STVIT, PAIR = "#8a6d3b", "#1f6fb4", "#b8c0c8"


@dataclass(frozen=True)
class Report:
    """The rows of the table, with a title and notes.

    Attributes:
        title: one line.
        rows: in the order of the table.
        notes: sentences to print below it.
    """

    title: str
    rows: list[Row]
    notes: list[str]

    def columns(self) -> tuple[str, ...]:
        """Return the column headings."""
        return COLUMNS

    def cells(self) -> list[list[str]]:
        """Return the cells as text, row by row."""
        return [_cells(row) for row in self.rows]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the content of table.json."""
        return [row.as_json() for row in self.rows]

    def write(self, directory: Path) -> None:
        """Write table.csv, table.json, table.md and table.png.

        Raises:
            UserError: a file cannot be written.
        """
        contents = {
            "table.csv": as_csv(self.rows).encode(),
            "table.json": strict_json.dumps(self.as_json(), indent=2).encode() + b"\n",
            "table.md": as_markdown(self).encode(),
            "table.png": draw(self.rows, self.title),
        }
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with writing(directory / name):
                replace_file(directory / name, content)


def report_counts() -> Report:
    """Return the paper's table with parameters and multiply-adds counted here, without training."""
    rows = build_table(Setting(), {})
    return Report("Table II: Swin and STViT without stem, projection, CPE and ConvFFN", rows, notes_on_counts(rows))


def report_training(rows: list[Row], recipe_name: str, more: Sequence[str] = ()) -> Report:
    """Return the table with the accuracies of trained rows, and a comparison of STViT with Swin.

    Args:
        rows: from `build_table`, with scores.
        recipe_name: for the title.
        more: sentences on what a score is, and on runs that ended without one.
    """
    title = f"Table II, trained by the recipe {recipe_name}"
    if rows[0].setting.family == MINI:
        title = f"Table II at a quarter of the width, trained by the recipe {recipe_name}, not on the paper's data"
    has_intervals = any(row.interval is not None for row in rows)
    intervals = ["Intervals are 95 % of Student's t over the seeds; gains are paired by seed."] if has_intervals else []
    return Report(title, rows, [*summarize(compare(rows)), *intervals, *more, *notes_on_counts(rows)])


def _cells(row: Row) -> list[str]:
    variant = VARIANTS[row.model]
    here = "-" if row.mean is None else f"{row.mean:.2f}%"
    if row.interval is not None:
        here += f" [{row.interval[0]:.2f}, {row.interval[1]:.2f}] ({len(row.scores)} seeds)"
    return [
        str(row.number),
        f"{row.label} ({row.model})",
        " ".join(map(str, variant.embed_dims)),
        " ".join(map(str, variant.depths)),
        "yes" if variant.rpe else "no",
        f"{row.params / 1e6:.2f} M",
        f"{row.paper.params / 1e6:.0f} M",
        f"{row.flops / 1e9:.2f} G" if row.flops >= 1e9 else f"{row.flops / 1e6:.1f} M",
        f"{row.paper.flops / 1e9:.1f} G",
        here,
        f"{row.paper.top1:.1f}%",
    ]


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV; lists are separated by spaces."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, row in enumerate(rows):
        flat = row.as_json()
        flat |= {f"paper_{key}": value for key, value in flat.pop("paper").items()}
        lists = {key: " ".join(map(str, value)) for key, value in flat.items() if isinstance(value, (list, dict))}
        if number == 0:
            writer.writerow(flat)
        writer.writerow((flat | lists).values())
    return text.getvalue()


def as_markdown(report: Report) -> str:
    """Return title, table and notes as Markdown."""
    lines = [f"# {report.title}", "", *markdown_table(COLUMNS, report.cells()), ""]
    return "\n".join([*lines, *(f"- {note}" for note in report.notes)]) + "\n"


def draw(rows: Sequence[Row], title: str) -> bytes:
    """Plot top-1 against FLOPs, one point per row, pairs connected: the paper's results on the left, trained rows on the right.

    Returns:
        A PNG file.
    """
    trained = [row for row in rows if row.scores]
    figure = Figure(figsize=(11 if trained else 6.6, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, 2 if trained else 1, squeeze=False)[0]
    _scatter(panels[0], rows, lambda row: row.paper.flops / 1e9, lambda row: row.paper.top1)
    panels[0].set_title("the paper, on ImageNet", fontsize=10)
    panels[0].set_xlabel("FLOPs, G")
    if trained:
        scale, unit = (1e9, "G") if max(row.flops for row in trained) >= 1e9 else (1e6, "M")
        _scatter(panels[1], trained, lambda row: row.flops / scale, lambda row: fmean(row.scores.values()))
        for row in trained:
            if row.interval is not None:
                # Rows with and without RPE cost the same, so their bars overlap: one kind is wide and pale.
                width, alpha = (7, 0.25) if VARIANTS[row.model].rpe else (1.2, 0.9)
                panels[1].plot([row.flops / scale] * 2, row.interval, color=_colour(row), linewidth=width, alpha=alpha, zorder=1)
        has_intervals = any(row.interval is not None for row in trained)
        panels[1].set_title("here" + (", bars: 95 % intervals over the seeds" if has_intervals else ""), fontsize=10)
        panels[1].set_ylim(limits([list(row.scores.values()) for row in trained], [row.interval for row in trained]))
        panels[1].set_xlabel(f"FLOPs, {unit}")
    return _png(figure)


def _scatter(axes: Axes, rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> None:
    by_number = {row.number: row for row in rows}
    for swin, stvit in PAIRS:
        if swin in by_number and stvit in by_number:
            ends = [by_number[swin], by_number[stvit]]
            axes.plot([x(row) for row in ends], [y(row) for row in ends], color=PAIR, linewidth=1.2, zorder=1)
    for row in rows:
        filled = VARIANTS[row.model].rpe
        axes.scatter(x(row), y(row), s=48, zorder=3, edgecolor=_colour(row), facecolor=_colour(row) if filled else "white")
        name = f"{row.number} {row.label}" + ("" if filled else ", no RPE")
        # STViT is the cheaper end of each pair: its labels go to the left, away from the lines.
        side, align = (-8, "right") if VARIANTS[row.model].attention == "stvit" else (8, "left")
        axes.annotate(
            name, (x(row), y(row)), xytext=(side, 4), textcoords="offset points", ha=align, fontsize=8, bbox=LABEL, zorder=2
        )
    axes.margins(x=0.36, y=0.12)
    axes.set_ylabel("top-1, %")
    axes.grid(True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _colour(row: Row) -> str:
    return STVIT if VARIANTS[row.model].attention == "stvit" else SWIN


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
