"""Building blocks of the association plots: a sheet laid out in inches, and the panels on it.

Heat maps are blended over the greyscale image, from transparent to the colour map inferno, whose lightness rises monotonically,
so that it is safe for colour-blind readers. Attention has one scale in all panels and on the page, its multiple of uniform
attention: blue below, orange above, transparent at 1. Outlines and markers are white on black, visible on light and dark images.
Matplotlib is used without pyplot, which would keep every figure in memory until it is closed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, log
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.analysis.associations.maps import Associations, LayerMaps, times_uniform
from stvit_cli.analysis.associations.superpixels import paint
from stvit_cli.analysis.associations.token_grid import Size
from stvit_cli.utils.text import printable

Point = tuple[int, int]
"""x and y in pixels of the image."""
Box = tuple[float, float, float, float]
"""Left, top, width and height on a sheet, in inches."""
Palette = NDArray[np.float32]
"""(256, 4): red, green, blue and opacity over the greyscale image, 0 to 1."""

ATTENTION_RANGE = 4
"""The scale of attention goes from 1 / ATTENTION_RANGE to ATTENTION_RANGE times uniform attention."""
INK, FAINT = "#1a1a1a", "#595959"
LONG_SIDE = (360, 640, 1280)  # pixels of the drawn image: minimum, maximum, and maximum with many super tokens
SMALL_SIDE = 260  # pixels, in the small panels
PANEL_SHAPE = (0.4, 2.0)  # range of height / width of a panel; images outside it are drawn distorted
BACKGROUND_GREY = 0.3  # of a colour bar, and of a heat map without the image
DPI = 120


def _palette(colours: NDArray[Any], opacity: NDArray[Any]) -> Palette:
    return np.concatenate([colours[:, :3], opacity[:, None]], -1).astype(np.float32)


_POSITIONS = np.arange(256) / 255
_BLUE_TO_ORANGE = LinearSegmentedColormap.from_list(
    "", [(0, "#1447f0"), (0.5, "#4f93ff"), (0.5, "#f28a1c"), (1, "#ffd060")]
)  # they meet where the opacity is 0

SEQUENTIAL = _palette(colormaps["inferno"](0.2 + 0.75 * _POSITIONS), 0.1 + 0.8 * _POSITIONS)
DIVERGING = _palette(_BLUE_TO_ORANGE(_POSITIONS), 0.92 * np.abs(2 * _POSITIONS - 1) ** 0.6)


@dataclass(frozen=True)
class Scale:
    """The colour scale of a heat map.

    Attributes:
        caption: of the colour bar.
        low: value of the first colour.
        high: value of the last colour.
        ticks: labels of the colour bar by value.
        logarithmic: equal ratios are equally far apart, else equal differences.
        palette: its colours.
    """

    caption: str
    low: float
    high: float
    ticks: dict[float, str]
    logarithmic: bool = False
    palette: Palette = field(default_factory=lambda: SEQUENTIAL)

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map values from low..high to 0..1."""
        if self.logarithmic:
            with np.errstate(divide="ignore"):  # nothing is below the scale, like everything small
                positions: NDArray[np.float32] = np.log(values / np.float32(self.low)) / np.float32(log(self.high / self.low))
            return positions.clip(0, 1)
        return ((values - self.low) / (self.high - self.low)).clip(0, 1)


WEIGHT = Scale("association weight, relative to the largest", 0, 1, {0: "0", 0.5: "half", 1: "largest"})
ATTENTION = Scale(
    "attention, as a multiple of uniform attention",
    1 / ATTENTION_RANGE,
    ATTENTION_RANGE,
    {1 / ATTENTION_RANGE: "≤ 1/4", 0.5: "1/2", 1: "uniform", 2: "2", ATTENTION_RANGE: "≥ 4"},
    logarithmic=True,
    palette=DIVERGING,
)


def confidence_scale(layers: Sequence[LayerMaps]) -> Scale:
    """Return one scale for all layers: from 1/9 (uniform) to the largest confidence, rounded up to a tenth."""
    largest = max((float(layer.confidence().max()) for layer in layers), default=1.0)
    high = min(1.0, ceil(10 * largest) / 10)
    return Scale("weight of each token's strongest super token", 1 / 9, high, {1 / 9: "1/9, uniform", high: f"{high:g}"})


@dataclass(frozen=True)
class PlotContext:
    """The data shared by all plots of one image.

    Attributes:
        maps: the image and its maps.
        name: of the image, for the titles.
        model: description of the model, such as ``stvit-s, untrained``.
        canvas: the image at its drawn size, (height, width, 3), uint8.
        confidence_scale: the colour scale of confidence.
    """

    maps: Associations
    name: str
    model: str
    canvas: NDArray[np.uint8]
    confidence_scale: Scale

    @property
    def size(self) -> Size:
        """Height and width of the canvas in pixels."""
        return self.canvas.shape[0], self.canvas.shape[1]

    @cached_property
    def grey(self) -> NDArray[np.float32]:
        """The canvas in greyscale, (height, width), 0 to 1."""
        grey: NDArray[np.float32] = self.canvas.mean(-1, dtype=np.float32) / np.float32(255)
        return grey

    @cached_property
    def small_grey(self) -> NDArray[np.float32]:
        """The greyscale canvas resized for the small panels."""
        image = Image.fromarray(self.grey)
        image.thumbnail((SMALL_SIDE, SMALL_SIDE))
        return np.asarray(image)

    @property
    def panel_shape(self) -> float:
        """Height / width of a panel."""
        height, width = self.maps.image.shape[:2]
        return float(np.clip(height / width, *PANEL_SHAPE))

    @property
    def subtitle(self) -> str:
        """The model, and the size of the image and of the model's input."""
        (height, width), (h, w) = self.maps.image.shape[:2], self.maps.input_size
        resized = f", model input {w} × {h}" if (h, w) != (height, width) else ""
        distorted = ", aspect ratio not to scale" if abs(self.panel_shape * width / height - 1) > 0.01 else ""
        return f"{self.model}. Image of {width} × {height} pixels{resized}{distorted}."


def plot_context(maps: Associations, name: str, model: str) -> PlotContext:
    """Prepare the plots of an image: small images are enlarged without smoothing, large ones reduced.

    Args:
        maps: the image and its maps.
        name: of the image, for the titles.
        model: description of the model.
    """
    height, width = maps.image.shape[:2]
    smallest, largest, largest_with_many = LONG_SIDE
    many = max((10 * max(layer.num_super_tokens) for layer in maps.super_token_layers), default=0)
    scale = float(np.clip(max(height, width), smallest, np.clip(many, largest, largest_with_many))) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    canvas = np.asarray(Image.fromarray(maps.image).resize(size, method))
    return PlotContext(maps, printable(name), printable(model), canvas, confidence_scale(maps.super_token_layers))


class Sheet:
    """A figure whose parts are positioned in inches from its left and top edge."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure((width, height), dpi=DPI, facecolor="white")

    def axes(self, box: Box) -> Axes:
        """Add axes."""
        x, y, width, height = box
        return self.figure.add_axes((x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height))

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Add text with its baseline at y; ``style`` is passed to matplotlib."""
        defaults: dict[str, Any] = {"color": INK, "fontsize": 9, "va": "baseline"}
        self.figure.text(x / self.width, 1 - y / self.height, text, **(defaults | style))

    def title(self, name: str, rest: str, *below: str) -> None:
        """Add the title, with the name shortened to fit, and wrapped lines below it: 1.2 inches with three lines."""
        heading = ellipsize(name, max(12, int((self.width - 0.4) / 0.135) - len(rest))) + rest
        self.text(0.2, 0.4, heading, fontsize=15, weight="bold", parse_math=False)
        lines = [line for text in below for line in textwrap.wrap(text, int((self.width - 0.4) / 0.079))]
        self.text(0.2, 0.52, "\n".join(lines), color=FAINT, fontsize=9.5, va="top", linespacing=1.5, parse_math=False)

    def colour_bar(self, x: float, y: float, width: float, scale: Scale) -> None:
        """Draw a horizontal colour bar with its caption and ticks, 0.5 inches high."""
        ax = self.axes((x, y + 0.2, width, 0.09))
        bar = blend(np.linspace(0, 1, 256, dtype=np.float32)[None], BACKGROUND_GREY, scale.palette)
        ax.imshow(bar, aspect="auto", extent=(0, 1, 0, 1))
        ax.set(yticks=[])
        positions = scale(np.array(list(scale.ticks), dtype=np.float32))
        ax.set_xticks(list(positions), list(scale.ticks.values()), fontsize=8, color=INK)
        ax.tick_params(length=2.5, width=0.6, pad=2)
        ax.get_xticklabels()[0].set_horizontalalignment("left")
        ax.get_xticklabels()[-1].set_horizontalalignment("right")
        for spine in ax.spines.values():
            spine.set(linewidth=0.5)
        self.text(x, y + 0.14, scale.caption, fontsize=8.5)


def ellipsize(text: str, limit: int) -> str:
    """Replace the middle of a text longer than ``limit`` characters by an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[len(text) - limit // 2 + 3 :]}"


def in_left_half(context: PlotContext, point: Point) -> bool:
    """Whether a point lies in the left half of the image, so that a note goes to the right."""
    return bool(point[0] < context.maps.image.shape[1] / 2)


def example_super_token(context: PlotContext, layer: LayerMaps, points: Sequence[Point]) -> tuple[int, Point]:
    """Return the super token to plot as an example, which is that of the first point or else of the centre, and the point."""
    height, width = context.maps.image.shape[:2]
    point = points[0] if points else (width // 2, height // 2)
    return int(layer.token_labels()[layer.grid.token_at(*point)]), point


def draw_outlines(ax: Axes, context: PlotContext, layer: LayerMaps, points: Sequence[Point]) -> None:
    """Draw the outlines of the super tokens on the image."""
    draw_image(ax, context, context.canvas)
    # Thinner lines for small super tokens, so that the image stays visible between them.
    cell = ax.get_window_extent().width / DPI * 72 / layer.num_super_tokens[1]  # points
    draw_lines(ax, outlines(layer, layer.token_labels()), min(0.6, 0.04 * cell))


def draw_mean_colours(ax: Axes, context: PlotContext, layer: LayerMaps, points: Sequence[Point]) -> None:
    """Fill each super token with its mean colour."""
    draw_image(ax, context, paint(context.canvas, layer.label_map(context.size)))


def draw_one_super_token(ax: Axes, context: PlotContext, layer: LayerMaps, points: Sequence[Point]) -> None:
    """Draw the association weights of one super token, with its outline."""
    super_token, point = example_super_token(context, layer, points)
    values = layer.association_with(super_token)
    draw_image(ax, context, overlay(layer, WEIGHT(values / values.max()), context.grey, WEIGHT))
    draw_lines(ax, outlines(layer, layer.token_labels() == super_token), 0.7)
    draw_marker(ax, point)
    draw_note(ax, f"largest {values.max():.2g}", right=in_left_half(context, point))


def draw_confidence(ax: Axes, context: PlotContext, layer: LayerMaps, points: Sequence[Point]) -> None:
    """Draw the association weight of each token with its strongest super token."""
    scale = context.confidence_scale
    heat = layer.grid.resize_linear(scale(layer.confidence()), context.size)
    draw_image(ax, context, blend(heat, BACKGROUND_GREY, scale.palette))


def draw_attention(ax: Axes, context: PlotContext, layer: LayerMaps, values: NDArray[np.float32], point: Point) -> None:
    """Draw the attention map (H, W) of a point on the scale of all panels; note its range, and what goes outside the image."""
    multiples, outside = times_uniform(values), 1 - float(values.sum())
    draw_image(ax, context, overlay(layer, ATTENTION(multiples), context.small_grey, ATTENTION))
    draw_marker(ax, point)
    note = f"{multiples.min():.2g} to {multiples.max():.2g} × uniform"
    if outside >= 0.005:
        note += f"\n{100 * outside:.2g} % outside"
    draw_note(ax, note, right=in_left_half(context, point))


@dataclass(frozen=True)
class Panel:
    """A column of the overview; ``scale`` returns its colour scale, if it is a heat map."""

    title: str
    draw: Callable[[Axes, PlotContext, LayerMaps, Sequence[Point]], None]
    scale: Callable[[PlotContext], Scale] | None = None


PANELS = (
    Panel("Super tokens", draw_outlines),
    Panel("Their mean colours", draw_mean_colours),
    Panel("One super token", draw_one_super_token, lambda context: WEIGHT),
    Panel("Confidence", draw_confidence, lambda context: context.confidence_scale),
)


def draw_image(ax: Axes, context: PlotContext, image: NDArray[Any]) -> None:
    """Fill the axes with an image and set their coordinates to pixels of the original image."""
    height, width = context.maps.image.shape[:2]
    ax.imshow(image, extent=(0, width, height, 0), aspect="auto", interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color="#8a8a8a", linewidth=0.5)


def overlay(layer: LayerMaps, heat: NDArray[np.float32], grey: NDArray[np.float32], scale: Scale) -> NDArray[np.float32]:
    """Blend a map (H, W) of positions on a scale, in 0..1, over the greyscale image."""
    return blend(layer.grid.resize_linear(heat, (grey.shape[0], grey.shape[1])), grey[..., None], scale.palette)


def blend(heat: NDArray[np.float32], grey: NDArray[np.float32] | float, palette: Palette) -> NDArray[np.float32]:
    """Blend the colours of heat (height, width) over grey (height, width, 1), both in 0..1."""
    colours = palette[np.rint(heat.clip(0, 1) * 255).astype(np.intp)]
    opacity = colours[..., 3:]
    blended: NDArray[np.float32] = (0.06 + 0.54 * grey) * (1 - opacity) + colours[..., :3] * opacity
    return blended


def outlines(layer: LayerMaps, labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the borders between labels (H, W) of a layer's tokens, see `segment_borders`."""
    return segment_borders(labels, layer.grid.edges(0), layer.grid.edges(1))


def segment_borders(labels: NDArray[Any], ys: NDArray[np.float64], xs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the borders between different labels as line segments.

    Args:
        labels: (rows, columns).
        ys: edges of the rows, (rows + 1,); row i lies between ``ys[i]`` and ``ys[i + 1]``.
        xs: edges of the columns, (columns + 1,).

    Returns:
        (number of lines, 2, 2): start and end, x and y.
    """
    rows, columns = np.nonzero(labels[1:] != labels[:-1])
    horizontal = np.stack([xs[columns], ys[rows + 1], xs[columns + 1], ys[rows + 1]], -1)
    rows, columns = np.nonzero(labels[:, 1:] != labels[:, :-1])
    vertical = np.stack([xs[columns + 1], ys[rows], xs[columns + 1], ys[rows + 1]], -1)
    return np.concatenate([horizontal, vertical]).reshape(-1, 2, 2)


def draw_lines(ax: Axes, lines: NDArray[np.float64], width: float) -> None:
    """Draw lines (number, 2, 2) in white on black, ``width`` in points."""
    for colour, thickness in (("black", 2.6 * width), ("white", width)):
        ax.add_collection(LineCollection(list(lines), colors=colour, linewidths=thickness, capstyle="round"), autolim=False)


def draw_marker(ax: Axes, point: Point) -> None:
    """Draw a ring around a pixel."""
    x, y = point[0] + 0.5, point[1] + 0.5
    for colour, thickness in (("black", 3.2), ("white", 1.4)):
        ax.plot(x, y, "o", ms=6.5, mfc="none", mec=colour, mew=thickness)


def draw_note(ax: Axes, text: str, *, right: bool = False) -> None:
    """Write into the lower left or lower right corner."""
    box = {"boxstyle": "square,pad=0.25", "facecolor": "black", "alpha": 0.6, "linewidth": 0}
    side: dict[str, Any] = {"xy": (1, 0), "xytext": (-3, 3.5), "ha": "right"} if right else {"xy": (0, 0), "xytext": (3, 3.5)}
    ax.annotate(text, xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color="white", bbox=box, **side)
