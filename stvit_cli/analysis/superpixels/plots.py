"""The table as Markdown, the metrics as a plot, and the first scenes with the outlines of their super tokens."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from stvit_cli.analysis.associations.panels import FAINT, INK, Sheet, draw_lines, segment_borders
from stvit_cli.analysis.associations.superpixels import Labels
from stvit_cli.analysis.superpixels.measure import (
    CELLS,
    COLUMNS,
    GRID,
    LOWER_IS_BETTER,
    METRICS,
    NAMES,
    SLIC,
    SLIC_ON_TOKENS,
    SUPER_TOKENS,
    Kind,
)
from stvit_cli.analysis.superpixels.scenes import Scene
from stvit_cli.analysis.superpixels.statistics import estimate
from stvit_cli.utils.text import markdown_table

if TYPE_CHECKING:
    from stvit_cli.analysis.superpixels.result import Example, Row, SuperpixelResult

# Okabe and Ito's colours, safe for colour-blind readers, and a shape of its own for each.
MARKERS: dict[tuple[Kind, bool], tuple[str, str, str]] = {
    (SUPER_TOKENS, True): ("super tokens, trained", "#0072b2", "o"),
    (SUPER_TOKENS, False): ("super tokens, untrained", "#56b4e9", "v"),
    (CELLS, True): ("cells (of tokens)", "#7a7a7a", "P"),
    (SLIC_ON_TOKENS, True): ("SLIC on tokens", "#e69f00", "d"),
    (GRID, True): ("regular grid (of pixels)", "#7a7a7a", "s"),
    (SLIC, True): ("SLIC (of pixels)", "#d55e00", "D"),
}
PANEL = 1.95
"""Inches: side of a scene."""


def as_markdown(result: SuperpixelResult) -> str:
    """Return the table and the notes as Markdown."""
    lines = ["# Super tokens as superpixels", "", *markdown_table(COLUMNS, result.table()), ""]
    return "\n".join([*lines, *(f"- {note}" for note in result.notes())]) + "\n"


def plot(result: SuperpixelResult) -> bytes:
    """Plot the metrics of every layer, one row per segmentation, with their intervals; return an SVG file."""
    order = list(MARKERS)
    layers = [(setting.name, layer) for setting in result.settings for layer in result.layers(setting.name)]
    rows = [
        sorted(
            (row for row in result.rows if (row.setting, row.layer.name) == key and (row.kind, row.trained) in MARKERS),
            key=lambda row: order.index((row.kind, row.trained)),
        )
        for key in layers
    ]
    heights = [len(group) + 0.9 for group in rows]
    figure = Figure(figsize=(11.5, 0.29 * sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(layers), len(METRICS), squeeze=False, sharex="col", height_ratios=heights)
    for (setting, layer), group, axes in zip(layers, rows, panels, strict=True):
        stride, grid = group[0].layer.stride, " × ".join(map(str, group[0].layer.grid_size))
        axes[0].set_title(f"{setting}, {layer}: stride {stride}, cells of {grid} tokens", fontsize=9, loc="left", color=INK)
        for ax, metric in zip(axes, METRICS, strict=True):
            _draw_dots(ax, group, metric)
        axes[0].set_yticks(range(len(group)), [MARKERS[row.kind, row.trained][0] for row in group], fontsize=8.5)
    for ax, metric in zip(panels[-1], METRICS, strict=True):
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        ax.set_xlabel(f"{NAMES[metric]} ({better} is better)", fontsize=9, color=INK)
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "stvit", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw_dots(ax: Axes, rows: list[Row], metric: str) -> None:
    for height, row in enumerate(rows):
        found = estimate(row.of(metric))
        _, color, shape = MARKERS[row.kind, row.trained]
        if not np.isnan(found.interval.low):
            ax.plot([found.interval.low, found.interval.high], [height, height], color=color, linewidth=1.4)
        ax.plot(found.mean, height, shape, color=color, markersize=5.5)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), [""] * len(rows))
    ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set(visible=side == "bottom", color=FAINT, linewidth=0.6)


def scenes(result: SuperpixelResult) -> bytes:
    """Draw the first scenes with the outlines of their objects, of untrained and trained super tokens, and of SLIC.

    Of the first weights, in their first and last layer with super tokens; return a PNG file.
    """
    setting = result.settings[0]
    layers = result.layers(setting.name)
    layers = [layers[0], *layers[1:][-1:]]
    columns: list[tuple[str, str, tuple[str, bool, Kind] | None]] = [("Objects", "", None)]
    for layer in layers:
        columns += [(f"{layer}", "untrained", (layer, False, SUPER_TOKENS)), (f"{layer}", "trained", (layer, True, SUPER_TOKENS))]
    columns.append(("SLIC", "as many segments", (layers[-1], True, SLIC)))
    columns = [column for column in columns if column[2] is None or column[2] in result.examples[0].labels]
    top, gap = 0.52, 0.06
    heights = [PANEL * example.scene.image.height / result.options.scene_size for example in result.examples]
    sheet = Sheet(len(columns) * (PANEL + gap) + gap, top + sum(heights) + gap * len(heights) + 0.04)
    for column, (heading, below, key) in enumerate(columns):
        x = gap + column * (PANEL + gap)
        sheet.text(x, 0.22, heading, fontsize=10.5, weight="bold")
        sheet.text(x, 0.42, below, color=FAINT)
        y = top
        for example, height in zip(result.examples, heights, strict=True):
            width = PANEL * example.scene.image.width / result.options.scene_size
            _draw_scene(sheet.axes((x, y, width, height)), example.scene, _labels(example, key))
            y += height + gap
    drawn, buffer = io.BytesIO(), io.BytesIO()
    sheet.figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:  # the noise of the scenes takes three times the space in full color
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _labels(example: Example, key: tuple[str, bool, Kind] | None) -> Labels:
    return example.scene.truth if key is None else example.labels[key]


def _draw_scene(ax: Axes, scene: Scene, labels: Labels) -> None:
    height, width = labels.shape
    ax.imshow(np.asarray(scene.image), extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    draw_lines(ax, segment_borders(labels, np.arange(height + 1.0), np.arange(width + 1.0)), 0.55)
    for spine in ax.spines.values():
        spine.set(visible=False)
