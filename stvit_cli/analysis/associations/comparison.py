"""The super tokens of an image as superpixels: beside a label map, the regular grid and SLIC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stvit_cli.analysis.associations.maps import Associations
from stvit_cli.analysis.associations.panels import FAINT, INK, Look, Sheet, borders, draw_image, draw_lines, draw_note
from stvit_cli.analysis.associations.plots import spoken
from stvit_cli.analysis.associations.superpixels import TOLERANCE, Cut, Labels, measure, regular_grid, slic

# Of Okabe and Ito's colours for all kinds of colour vision.
MARKS = {"regular grid": ("#7a7a7a", "s"), "SLIC": ("#d55e00", "D")}
SUPER_TOKENS = ("#0072b2", "o")


def compare(maps: Associations, truth: Labels, *, with_slic: bool = True) -> list[Cut]:
    """Measure every super-token layer against a label map (height, width), then the grid and SLIC with as many segments.

    Raises:
        UserError: ``with_slic`` without scikit-image.
    """
    layers = maps.super_token_layers
    cuts = [measure(layer.name, layer.label_map(), truth) for layer in layers]
    size = maps.image.shape[0], maps.image.shape[1]
    for p, q in dict.fromkeys(layer.num_super_tokens for layer in layers):
        cuts.append(measure("regular grid", regular_grid(size, (p, q)), truth))
        if with_slic:
            cuts.append(measure("SLIC", slic(maps.image, p * q), truth))
    return cuts


def comparison_sheet(look: Look, truth: Labels, cuts: Sequence[Cut]) -> Figure:
    """Draw the label map, the layer that does best, the grid and SLIC; below, the figures of all."""
    best = max((cut for cut in cuts if cut.name not in MARKS), key=lambda cut: cut.accuracy + cut.boundary_recall)
    shown = [best] + [next(cut for cut in cuts if cut.name == name) for name in MARKS if any(cut.name == name for cut in cuts)]
    panel, top = 2.75, 1.45
    tall, rows = panel * look.panel_shape, 0.24 * len(cuts)
    sheet = Sheet(4 * (panel + 0.12) + 0.3, top + tall + 0.7 + rows + 0.45)
    below = "Above, outlines on the image; below, the number of segments in brackets."
    sheet.title(look.name, ": super tokens as superpixels", look.subtitle, below)
    _cut_panel(sheet, look, "Label map", truth, f"{len(np.unique(truth))} labels", 0, top, tall, panel)
    for column, cut in enumerate(shown, 1):
        heading = spoken(cut.name).capitalize() if cut is best else cut.name[0].upper() + cut.name[1:]
        _cut_panel(sheet, look, heading, cut.labels, f"{cut.num_segments} segments", column, top, tall, panel)
    y, width = top + tall + 0.7, (sheet.width - 2.6) / 2 - 0.35
    recalls, accuracies = [cut.boundary_recall for cut in cuts], [cut.accuracy for cut in cuts]
    captions = (f"Boundary recall, within {TOLERANCE} pixels", "Achievable segmentation accuracy")
    for number, (caption, values) in enumerate(zip(captions, (recalls, accuracies), strict=True)):
        x = 2.5 + number * (width + 0.45)
        sheet.text(x, y - 0.12, caption, fontsize=11, weight="bold")
        _dots(sheet.axes((x, y, width, rows)), cuts, values, named=number == 0)
    return sheet.figure


def _cut_panel(
    sheet: Sheet, look: Look, heading: str, labels: Labels, note: str, column: int, y: float, tall: float, panel: float
) -> None:
    x = 0.2 + column * (panel + 0.12)
    ax = sheet.axes((x, y, panel, tall))
    sheet.text(x, y - 0.1, heading, fontsize=11, weight="bold")
    draw_image(ax, look, look.canvas)
    (height, width), (rows, columns) = labels.shape, look.size
    drawn = labels[np.arange(rows) * height // rows][:, np.arange(columns) * width // columns]
    draw_lines(ax, borders(drawn, np.linspace(0, height, rows + 1), np.linspace(0, width, columns + 1)), 0.6)
    draw_note(ax, note)


def _dots(ax: Axes, cuts: Sequence[Cut], values: Sequence[float], *, named: bool) -> None:
    """Draw a value for each cut, from top to bottom, each with its figure."""
    low = max(0.0, np.floor(10 * min(values) - 0.5) / 10)
    for row, (cut, value) in enumerate(zip(cuts, values, strict=True)):
        colour, shape = MARKS.get(cut.name, SUPER_TOKENS)
        ax.plot(value, row, shape, color=colour, markersize=6)
        ax.annotate(f"{value:.3f}", (value, row), (8, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    names = [f"{spoken(cut.name)}  ({cut.num_segments})" for cut in cuts]
    ax.set(xlim=(low, 1.0 + 0.09 * (1 - low)), ylim=(len(cuts) - 0.4, -0.6))
    ax.set_yticks(range(len(cuts)), names if named else [""] * len(cuts), fontsize=9)
    ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set(visible=side == "bottom", color=FAINT, linewidth=0.6)
