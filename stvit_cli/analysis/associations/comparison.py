"""Compare super tokens as superpixels with the regular grid and SLIC, against a label map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stvit_cli.analysis.associations.maps import Associations
from stvit_cli.analysis.associations.panels import (
    FAINT,
    INK,
    PlotContext,
    Sheet,
    draw_image,
    draw_lines,
    draw_note,
    segment_borders,
)
from stvit_cli.analysis.associations.plots import layer_title
from stvit_cli.analysis.associations.superpixels import TOLERANCE, Labels, Segmentation, measure, regular_grid, slic

# From Okabe and Ito's palette, which is safe for colour-blind readers.
BASELINE_MARKERS = {"regular grid": ("#7a7a7a", "s"), "SLIC": ("#d55e00", "D")}
SUPER_TOKEN_MARKER = ("#0072b2", "o")


def compare(maps: Associations, truth: Labels, *, with_slic: bool = True) -> list[Segmentation]:
    """Measure the super tokens of every layer against a label map, and baselines with the same number of segments.

    Args:
        maps: the maps of one image.
        truth: label map of the image, (height, width).
        with_slic: also measure SLIC, which needs scikit-image.

    Returns:
        One `Segmentation` per super token layer, then the regular grid and SLIC for each number of super tokens.

    Raises:
        UserError: ``with_slic``, and scikit-image is not installed.
    """
    layers = maps.super_token_layers
    segmentations = [measure(layer.name, layer.label_map(), truth) for layer in layers]
    size = maps.image.shape[0], maps.image.shape[1]
    for p, q in dict.fromkeys(layer.num_super_tokens for layer in layers):
        segmentations.append(measure("regular grid", regular_grid(size, (p, q)), truth))
        if with_slic:
            segmentations.append(measure("SLIC", slic(maps.image, p * q), truth))
    return segmentations


def comparison_sheet(context: PlotContext, truth: Labels, segmentations: Sequence[Segmentation]) -> Figure:
    """Draw the label map, the best layer, the regular grid and SLIC; below them, the metrics of all segmentations."""
    layers = [segmentation for segmentation in segmentations if segmentation.name not in BASELINE_MARKERS]
    best = max(layers, key=lambda segmentation: segmentation.accuracy + segmentation.boundary_recall)
    shown = [best]
    for name in BASELINE_MARKERS:
        shown += [segmentation for segmentation in segmentations if segmentation.name == name][:1]
    panel, top = 2.75, 1.45
    panel_height, rows = panel * context.panel_shape, 0.24 * len(segmentations)
    sheet = Sheet(4 * (panel + 0.12) + 0.3, top + panel_height + 0.7 + rows + 0.45)
    below = "Above: outlines on the image. Below: metrics, with the number of segments in brackets."
    sheet.title(context.name, ": super tokens as superpixels", context.subtitle, below)
    panels = [("Label map", truth, f"{len(np.unique(truth))} labels")]
    for item in shown:
        heading = layer_title(item.name).capitalize() if item is best else item.name[0].upper() + item.name[1:]
        panels.append((heading, item.labels, f"{item.num_segments} segments"))
    for column, (heading, labels, note) in enumerate(panels):
        x = 0.2 + column * (panel + 0.12)
        sheet.text(x, top - 0.1, heading, fontsize=11, weight="bold")
        _draw_outlines(sheet.axes((x, top, panel, panel_height)), context, labels, note)
    y, width = top + panel_height + 0.7, (sheet.width - 2.6) / 2 - 0.35
    recalls, accuracies = [item.boundary_recall for item in segmentations], [item.accuracy for item in segmentations]
    captions = (f"Boundary recall, within {TOLERANCE} pixels", "Achievable segmentation accuracy")
    for index, (caption, values) in enumerate(zip(captions, (recalls, accuracies), strict=True)):
        x = 2.5 + index * (width + 0.45)
        sheet.text(x, y - 0.12, caption, fontsize=11, weight="bold")
        _draw_dots(sheet.axes((x, y, width, rows)), segmentations, values, named=index == 0)
    return sheet.figure


def _draw_outlines(ax: Axes, context: PlotContext, labels: Labels, note: str) -> None:
    draw_image(ax, context, context.canvas)
    (height, width), (rows, columns) = labels.shape, context.size
    drawn = labels[np.arange(rows) * height // rows][:, np.arange(columns) * width // columns]
    draw_lines(ax, segment_borders(drawn, np.linspace(0, height, rows + 1), np.linspace(0, width, columns + 1)), 0.6)
    draw_note(ax, note)


def _draw_dots(ax: Axes, segmentations: Sequence[Segmentation], values: Sequence[float], *, named: bool) -> None:
    """Draw a dot plot with one row per segmentation, top to bottom, each labelled with its value."""
    low = max(0.0, np.floor(10 * min(values) - 0.5) / 10)
    for row, (segmentation, value) in enumerate(zip(segmentations, values, strict=True)):
        colour, shape = BASELINE_MARKERS.get(segmentation.name, SUPER_TOKEN_MARKER)
        ax.plot(value, row, shape, color=colour, markersize=6)
        ax.annotate(f"{value:.3f}", (value, row), (8, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    names = [f"{layer_title(segmentation.name)}  ({segmentation.num_segments})" for segmentation in segmentations]
    ax.set(xlim=(low, 1.0 + 0.09 * (1 - low)), ylim=(len(segmentations) - 0.4, -0.6))
    ax.set_yticks(range(len(segmentations)), names if named else [""] * len(segmentations), fontsize=9)
    ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set(visible=side == "bottom", color=FAINT, linewidth=0.6)
