"""The figures of `associations`: an overview, a sheet for each super-token layer, the heads of each point."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib.figure import Figure

from stvit_cli.analysis.associations.maps import LayerMaps
from stvit_cli.analysis.associations.panels import ATTENTION, FAINT, PANELS, Look, Point, Sheet, draw_attention

TOP = 1.45  # inches for the title
GAP = 0.12  # between panels
SMALL, PER_ROW = 1.61, 7  # width and number of the small panels that fill a row of the overview


def overview(look: Look, points: Sequence[Point]) -> Figure:
    """Draw the four panels of every super-token layer, a row each, and below them what each point attends to in every layer."""
    layers, panel, left = look.maps.super_token_layers, 2.55, 1.5
    tall, low = panel * look.panel_shape, SMALL * look.panel_shape + 0.3
    strip = 0.65 + ceil(len(look.maps.layers) / PER_ROW) * low
    bottom = TOP + len(layers) * (tall + GAP) + (0.7 if layers else -0.2)
    sheet = Sheet(left + len(PANELS) * (panel + GAP) + 0.1, bottom + len(points) * strip + 0.1)
    ring = f"point 1 at ({points[0][0]}, {points[0][1]})" if points else "the image's centre"
    sheet.title(look.name, "", look.subtitle, f"The ring is {ring}; the one super token is the one there." if layers else "")
    for column, kind in enumerate(PANELS if layers else ()):
        x = left + column * (panel + GAP)
        sheet.text(x, TOP - 0.1, kind.title, fontsize=11, weight="bold")
        for row, layer in enumerate(layers):
            ax = sheet.axes((x, TOP + row * (tall + GAP), panel, tall))
            kind.draw(ax, look, layer, points)
        if kind.scale:
            sheet.colour_bar(x, TOP + len(layers) * (tall + GAP) - 0.05, panel, kind.scale(look))
    for row, layer in enumerate(layers):
        _describe(sheet, layer, TOP + row * (tall + GAP))
    for number, point in enumerate(points):
        _strip(sheet, look, number + 1, point, bottom + number * strip)
    return sheet.figure


def layer_sheet(look: Look, layer: LayerMaps, points: Sequence[Point]) -> Figure:
    """Draw the four panels of one super-token layer, large."""
    panel = float(np.clip(0.09 * layer.num_super_tokens[1], 4.4, 9.0))  # the more super tokens, the larger
    tall = panel * look.panel_shape
    sheet = Sheet(2 * panel + 0.65, TOP + 2 * (tall + 0.4) + 0.35)
    sheet.title(look.name, f", {spoken(layer.name)}", look.subtitle, f"{_counted(layer)}.")
    for number, kind in enumerate(PANELS):
        x, y = 0.2 + number % 2 * (panel + 0.25), TOP + 0.15 + number // 2 * (tall + 0.4)
        sheet.text(x, y - 0.08, kind.title, fontsize=11, weight="bold")
        kind.draw(sheet.axes((x, y, panel, tall)), look, layer, points)
        if kind.scale:
            sheet.colour_bar(x, y + tall, panel, kind.scale(look))
    return sheet.figure


def head_sheet(look: Look, layers: Sequence[LayerMaps], number: int, point: Point) -> Figure:
    """Draw what a point attends to in these layers (of one stage), a row each: the mean over heads, then every head."""
    panel, left, heads = 1.75, 1.5, max(layer.num_heads for layer in layers)
    step, tall = panel + 0.1, panel * look.panel_shape
    sheet = Sheet(max(left + (heads + 1) * step + 0.1, 8.5), TOP + 0.1 + len(layers) * (tall + 0.3) + 0.6)
    stage = spoken(layers[0].name.split(".")[0])
    sheet.title(
        look.name, f", {stage}: what point {number} attends to", look.subtitle, f"Point {number} is at ({point[0]}, {point[1]})."
    )
    for column in range(heads + 1):
        sheet.text(left + column * step, TOP, f"Head {column}" if column else "Mean of the heads", fontsize=10, weight="bold")
    for row, layer in enumerate(layers):
        y = TOP + 0.1 + row * (tall + 0.3)
        _describe(sheet, layer, y)
        maps = layer.place_attention(layer.grid.token_at(*point))
        for column, values in enumerate([maps.mean(0), *maps]):
            x = left + column * step
            draw_attention(sheet.axes((x, y, panel, tall)), look, layer, values, point)
    sheet.colour_bar(left, TOP + 0.1 + len(layers) * (tall + 0.3), 2 * panel, ATTENTION)
    return sheet.figure


def spoken(name: str) -> str:
    """Return ``stage 1, block 2`` for ``stage1.block2``."""
    return name.replace("stage", "stage ").replace(".block", ", block ")


def _strip(sheet: Sheet, look: Look, number: int, point: Point, y: float) -> None:
    """Draw the mean attention of a point in every layer, a small panel each, from y down."""
    sheet.text(0.2, y + 0.2, f"What point {number} at ({point[0]}, {point[1]}) attends to", fontsize=11, weight="bold")
    sheet.text(
        0.2,
        y + 0.4,
        "Mean of the heads. The figure is the largest attention, where even attention is 1.",
        fontsize=9,
        color=FAINT,
    )
    sheet.colour_bar(sheet.width - 3.0, y, 2.8, ATTENTION)
    tall = SMALL * look.panel_shape
    for place, layer in enumerate(look.maps.layers.values()):
        x, top = 0.2 + place % PER_ROW * (SMALL + 0.1), y + 0.75 + place // PER_ROW * (tall + 0.3)
        sheet.text(x, top - 0.06, spoken(layer.name), fontsize=8)
        values = layer.place_attention(layer.grid.token_at(*point)).mean(0)
        draw_attention(sheet.axes((x, top, SMALL, tall)), look, layer, values, point)


def _describe(sheet: Sheet, layer: LayerMaps, y: float) -> None:
    """Write what the layer is to the left of its row of panels."""
    stage, _, block = spoken(layer.name).partition(", ")
    sheet.text(0.2, y + 0.16, stage.capitalize(), fontsize=10.5, weight="bold")
    sheet.text(0.2, y + 0.33, block, fontsize=10)
    (p, q), (height, width) = layer.num_super_tokens, layer.grid.tokens
    counted = f"{width} × {height} tokens"
    if not layer.is_global:
        counted += f"\n{q} × {p} super tokens"
    sheet.text(0.2, y + 0.44, counted, fontsize=8, color=FAINT, va="top", linespacing=1.4)


def _counted(layer: LayerMaps) -> str:
    (p, q), (h, w), (height, width) = layer.num_super_tokens, layer.grid_size, layer.grid.tokens
    return f"{q} × {p} super tokens of {width} × {height} tokens, cells of {w} × {h}"
