"""The association plots: an overview, one sheet per super token layer, and the attention heads of each point."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.figure import Figure

from stvit_cli.analysis.associations.maps import LayerMaps
from stvit_cli.analysis.associations.panels import ATTENTION, FAINT, PANELS, PlotContext, Point, Sheet, draw_attention

TOP = 1.45  # inches for the title
GAP = 0.12  # inches between panels
SMALL, PER_ROW = 1.61, 7  # width in inches and number of the small panels in a row of the overview


def overview(context: PlotContext, points: Sequence[Point]) -> Figure:
    """Draw one row of four panels per super token layer, and below them the attention of each point in every layer."""
    layers, panel, left = context.maps.super_token_layers, 2.55, 1.5
    panel_height, small_height = panel * context.panel_shape, SMALL * context.panel_shape + 0.3
    strip = 0.65 + ceil(len(context.maps.layers) / PER_ROW) * small_height
    bottom = TOP + len(layers) * (panel_height + GAP) + (0.7 if layers else -0.2)
    sheet = Sheet(left + len(PANELS) * (panel + GAP) + 0.1, bottom + len(points) * strip + 0.1)
    ring = f"point 1 at ({points[0][0]}, {points[0][1]})" if points else "the centre of the image"
    note = f"The ring marks {ring}; the column One super token shows the super token there." if layers else ""
    sheet.title(context.name, "", context.subtitle, note)
    for column, kind in enumerate(PANELS if layers else ()):
        x = left + column * (panel + GAP)
        sheet.text(x, TOP - 0.1, kind.title, fontsize=11, weight="bold")
        for row, layer in enumerate(layers):
            ax = sheet.axes((x, TOP + row * (panel_height + GAP), panel, panel_height))
            kind.draw(ax, context, layer, points)
        if kind.scale:
            sheet.colour_bar(x, TOP + len(layers) * (panel_height + GAP) - 0.05, panel, kind.scale(context))
    for row, layer in enumerate(layers):
        _describe(sheet, layer, TOP + row * (panel_height + GAP))
    for number, point in enumerate(points):
        _strip(sheet, context, number + 1, point, bottom + number * strip)
    return sheet.figure


def layer_sheet(context: PlotContext, layer: LayerMaps, points: Sequence[Point]) -> Figure:
    """Draw the four panels of one super token layer at a larger size."""
    panel = float(np.clip(0.09 * layer.num_super_tokens[1], 4.4, 9.0))  # inches; more super tokens need larger panels
    panel_height = panel * context.panel_shape
    sheet = Sheet(2 * panel + 0.65, TOP + 2 * (panel_height + 0.4) + 0.35)
    sheet.title(context.name, f", {layer_title(layer.name)}", context.subtitle, f"{_sizes(layer)}.")
    for number, kind in enumerate(PANELS):
        x, y = 0.2 + number % 2 * (panel + 0.25), TOP + 0.15 + number // 2 * (panel_height + 0.4)
        sheet.text(x, y - 0.08, kind.title, fontsize=11, weight="bold")
        kind.draw(sheet.axes((x, y, panel, panel_height)), context, layer, points)
        if kind.scale:
            sheet.colour_bar(x, y + panel_height, panel, kind.scale(context))
    return sheet.figure


def head_sheet(context: PlotContext, layers: Sequence[LayerMaps], number: int, point: Point) -> Figure:
    """Draw the attention of a point in the layers of one stage, one row per layer: the mean over the heads, then every head."""
    panel, left, heads = 1.75, 1.5, max(layer.num_heads for layer in layers)
    step, panel_height = panel + 0.1, panel * context.panel_shape
    sheet = Sheet(max(left + (heads + 1) * step + 0.1, 8.5), TOP + 0.1 + len(layers) * (panel_height + 0.3) + 0.6)
    stage = layer_title(layers[0].name.split(".")[0])
    sheet.title(
        context.name,
        f", {stage}: attention of point {number}",
        context.subtitle,
        f"Point {number} is at ({point[0]}, {point[1]}).",
    )
    for column in range(heads + 1):
        sheet.text(left + column * step, TOP, f"Head {column}" if column else "Mean of the heads", fontsize=10, weight="bold")
    for row, layer in enumerate(layers):
        y = TOP + 0.1 + row * (panel_height + 0.3)
        _describe(sheet, layer, y)
        maps = layer.token_attention(layer.grid.token_at(*point))
        for column, values in enumerate([maps.mean(0), *maps]):
            x = left + column * step
            draw_attention(sheet.axes((x, y, panel, panel_height)), context, layer, values, point)
    sheet.colour_bar(left, TOP + 0.1 + len(layers) * (panel_height + 0.3), 2 * panel, ATTENTION)
    return sheet.figure


def layer_title(name: str) -> str:
    """Return ``stage 1, block 2`` for ``stage1.block2``."""
    return name.replace("stage", "stage ").replace(".block", ", block ")


def _strip(sheet: Sheet, context: PlotContext, number: int, point: Point, y: float) -> None:
    """Draw the attention of a point, averaged over the heads, in one small panel per layer, starting at y inches."""
    sheet.text(0.2, y + 0.2, f"Attention of point {number} at ({point[0]}, {point[1]})", fontsize=11, weight="bold")
    sheet.text(
        0.2,
        y + 0.4,
        "Mean over the heads, on one scale. Outside: the part that goes outside the image, which the colours leave out.",
        fontsize=9,
        color=FAINT,
    )
    sheet.colour_bar(sheet.width - 3.0, y, 2.8, ATTENTION)
    panel_height = SMALL * context.panel_shape
    for index, layer in enumerate(context.maps.layers.values()):
        x, top = 0.2 + index % PER_ROW * (SMALL + 0.1), y + 0.75 + index // PER_ROW * (panel_height + 0.3)
        sheet.text(x, top - 0.06, layer_title(layer.name), fontsize=8)
        values = layer.token_attention(layer.grid.token_at(*point)).mean(0)
        draw_attention(sheet.axes((x, top, SMALL, panel_height)), context, layer, values, point)


def _describe(sheet: Sheet, layer: LayerMaps, y: float) -> None:
    """Write the name and sizes of a layer to the left of its row of panels."""
    stage, _, block = layer_title(layer.name).partition(", ")
    sheet.text(0.2, y + 0.16, stage.capitalize(), fontsize=10.5, weight="bold")
    sheet.text(0.2, y + 0.33, block, fontsize=10)
    (p, q), (height, width) = layer.num_super_tokens, layer.grid.tokens
    sizes = f"{width} × {height} tokens"
    if not layer.is_global:
        sizes += f"\n{q} × {p} super tokens"
    sheet.text(0.2, y + 0.44, sizes, fontsize=8, color=FAINT, va="top", linespacing=1.4)


def _sizes(layer: LayerMaps) -> str:
    (p, q), (h, w), (height, width) = layer.num_super_tokens, layer.grid_size, layer.grid.tokens
    return f"{q} × {p} super tokens of {width} × {height} tokens, cells of {w} × {h}"
