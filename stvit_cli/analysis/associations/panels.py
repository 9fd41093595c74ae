"""What the figures of `associations` are made of: a sheet measured in inches, and the panels on it.

Heat is drawn over the grey image, from clear to inferno, whose lightness rises all the way: it reads the same with and without
colour blindness. Outlines and marks are white on black, to be seen on light and on dark images. Matplotlib is used without
pyplot, which keeps every figure until it is closed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.analysis.associations.maps import Associations, LayerMaps
from stvit_cli.analysis.associations.superpixels import paint
from stvit_cli.analysis.associations.token_grid import Size
from stvit_cli.utils.text import printable

Point = tuple[int, int]
"""x and y in the image's own pixels."""
Box = tuple[float, float, float, float]
"""Left, top, width and height on a sheet, in inches."""

COLOURS = colormaps["inferno"]
INK, FAINT = "#1a1a1a", "#595959"
LONG_SIDE = (360, 640, 1280)  # pixels of the image as it is drawn: at least, at most, and at most where super tokens are many
SMALL_SIDE = 260  # the same in the small panels, of which there are many
PANEL_SHAPE = (0.4, 2.0)  # height by width of a panel; a longer image is squeezed into it
PLAIN = 0.3  # the grey of a colour bar, and of a heat map without the image
DPI = 120


@dataclass(frozen=True)
class Scale:
    """What the colours of a heat map say, from ``low`` to ``high``."""

    caption: str
    low: float
    high: float
    ticks: dict[float, str]

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the values between low and high as 0 to 1."""
        return ((values - self.low) / (self.high - self.low)).clip(0, 1)


SHARE = Scale("its share in each token, by the largest", 0, 1, {0: "0", 0.5: "half", 1: "largest"})
ATTENTION = Scale("attention, by the largest in the panel", 0, 1, {0: "0", 0.5: "half", 1: "largest"})


def confidence_scale(layers: Sequence[LayerMaps]) -> Scale:
    """Return one scale for all layers: from all nine super tokens alike up to the most confident token, to the next tenth."""
    largest = max((float(layer.confidence().max()) for layer in layers), default=1.0)
    high = min(1.0, ceil(10 * largest) / 10)
    return Scale("share of each token's strongest super token", 1 / 9, high, {1 / 9: "1/9, undecided", high: f"{high:g}"})


@dataclass(frozen=True)
class Look:
    """What all figures of one image share.

    Attributes:
        maps: the image and its maps.
        name: of the image, for the titles.
        model: what made the maps, such as ``stvit-s, untrained``.
        canvas: the image as it is drawn, (height, width, 3), 8 bits.
        certain: the scale of confidence.
    """

    maps: Associations
    name: str
    model: str
    canvas: NDArray[np.uint8]
    certain: Scale

    @property
    def size(self) -> Size:
        return self.canvas.shape[0], self.canvas.shape[1]

    @cached_property
    def grey(self) -> NDArray[np.float32]:
        """The canvas in grey, (height, width), 0 to 1."""
        grey: NDArray[np.float32] = self.canvas.mean(-1, dtype=np.float32) / np.float32(255)
        return grey

    @cached_property
    def small_grey(self) -> NDArray[np.float32]:
        """The same, reduced for the small panels."""
        image = Image.fromarray(self.grey)
        image.thumbnail((SMALL_SIDE, SMALL_SIDE))
        return np.asarray(image)

    @property
    def panel_shape(self) -> float:
        """Height by width of a panel."""
        height, width = self.maps.image.shape[:2]
        return float(np.clip(height / width, *PANEL_SHAPE))

    @property
    def subtitle(self) -> str:
        (height, width), (h, w) = self.maps.image.shape[:2], self.maps.input_size
        seen = f", seen by the model at {w} × {h}" if (h, w) != (height, width) else ""
        squeezed = ", drawn squeezed" if abs(self.panel_shape * width / height - 1) > 0.01 else ""
        return f"{self.model}. Image of {width} × {height} pixels{seen}{squeezed}."


def look(maps: Associations, name: str, model: str) -> Look:
    """Prepare the figures of an image: a small one is enlarged in blocks, a large one reduced."""
    height, width = maps.image.shape[:2]
    least, most, utmost = LONG_SIDE
    many = max((10 * max(layer.num_super_tokens) for layer in maps.super_token_layers), default=0)
    scale = float(np.clip(max(height, width), least, np.clip(many, most, utmost))) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    canvas = np.asarray(Image.fromarray(maps.image).resize(size, method))
    return Look(maps, printable(name), printable(model), canvas, confidence_scale(maps.super_token_layers))


class Sheet:
    """A figure whose parts are placed in inches from its left and top edge."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure((width, height), dpi=DPI, facecolor="white")

    def axes(self, box: Box) -> Axes:
        x, y, width, height = box
        return self.figure.add_axes((x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height))

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Write with the baseline at y."""
        placed: dict[str, Any] = {"color": INK, "fontsize": 9, "va": "baseline"} | style
        self.figure.text(x / self.width, 1 - y / self.height, words, **placed)

    def title(self, name: str, rest: str, *below: str) -> None:
        """Write the title, its name shortened to fit, and below it lines that are broken to fit: 1.2 inches for three of them."""
        heading = shortened(name, max(12, int((self.width - 0.4) / 0.135) - len(rest))) + rest
        self.text(0.2, 0.4, heading, fontsize=15, weight="bold", parse_math=False)
        lines = [line for text in below for line in textwrap.wrap(text, int((self.width - 0.4) / 0.079))]
        self.text(0.2, 0.52, "\n".join(lines), color=FAINT, fontsize=9.5, va="top", linespacing=1.5, parse_math=False)

    def colour_bar(self, x: float, y: float, width: float, scale: Scale) -> None:
        """Draw a lying colour bar with its caption and ticks: 0.5 inches in all."""
        ax = self.axes((x, y + 0.2, width, 0.09))
        ax.imshow(
            blend(np.linspace(0, 1, 256, dtype=np.float32)[None], PLAIN), aspect="auto", extent=(scale.low, scale.high, 0, 1)
        )
        ax.set(yticks=[])
        ax.set_xticks(list(scale.ticks), list(scale.ticks.values()), fontsize=8, color=INK)
        ax.tick_params(length=2.5, width=0.6, pad=2)
        ax.get_xticklabels()[0].set_horizontalalignment("left")
        ax.get_xticklabels()[-1].set_horizontalalignment("right")
        for spine in ax.spines.values():
            spine.set(linewidth=0.5)
        self.text(x, y + 0.14, scale.caption, fontsize=8.5)


def shortened(text: str, most: int) -> str:
    """Return the text without its middle where it has more than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[len(text) - most // 2 + 3 :]}"


def in_left_half(look: Look, place: Point) -> bool:
    return bool(place[0] < look.maps.image.shape[1] / 2)


def reference(look: Look, layer: LayerMaps, points: Sequence[Point]) -> tuple[int, Point]:
    """Return the super token that stands for the others in a figure, that of the first point or of the centre, and that place."""
    height, width = look.maps.image.shape[:2]
    place = points[0] if points else (width // 2, height // 2)
    return int(layer.token_labels()[layer.grid.token_at(*place)]), place


def draw_outlines(ax: Axes, look: Look, layer: LayerMaps, points: Sequence[Point]) -> None:
    draw_image(ax, look, look.canvas)
    # Thinner where super tokens are small, so that the image is still seen between the lines.
    cell = ax.get_window_extent().width / DPI * 72 / layer.num_super_tokens[1]  # points
    draw_lines(ax, outlines(layer, layer.token_labels()), min(0.6, 0.04 * cell))


def draw_mean_colours(ax: Axes, look: Look, layer: LayerMaps, points: Sequence[Point]) -> None:
    draw_image(ax, look, paint(look.canvas, layer.label_map(look.size)))


def draw_one_super_token(ax: Axes, look: Look, layer: LayerMaps, points: Sequence[Point]) -> None:
    super_token, place = reference(look, layer, points)
    values = layer.association_with(super_token)
    draw_image(ax, look, overlay(layer, values / values.max(), look.grey))
    draw_lines(ax, outlines(layer, layer.token_labels() == super_token), 0.7)
    draw_mark(ax, place)
    draw_note(ax, f"largest {values.max():.2g}", right=in_left_half(look, place))


def draw_confidence(ax: Axes, look: Look, layer: LayerMaps, points: Sequence[Point]) -> None:
    draw_image(ax, look, blend(layer.grid.smooth(look.certain(layer.confidence()), look.size), PLAIN))


def draw_attention(ax: Axes, look: Look, layer: LayerMaps, values: NDArray[np.float32], point: Point) -> None:
    """Draw an attention map (H, W) of a point and note its largest value, by that of even attention to all places."""
    draw_image(ax, look, overlay(layer, values / values.max(), look.small_grey))
    draw_mark(ax, point)
    draw_note(ax, f"{values.max() * values.size:.3g} × even", right=in_left_half(look, point))


@dataclass(frozen=True)
class Panel:
    """A column of the overview; ``scale`` gives what its colours say, where it has any."""

    title: str
    draw: Callable[[Axes, Look, LayerMaps, Sequence[Point]], None]
    scale: Callable[[Look], Scale] | None = None


PANELS = (
    Panel("Super tokens", draw_outlines),
    Panel("Their mean colours", draw_mean_colours),
    Panel("One super token", draw_one_super_token, lambda look: SHARE),
    Panel("Confidence", draw_confidence, lambda look: look.certain),
)


def draw_image(ax: Axes, look: Look, image: NDArray[Any]) -> None:
    """Fill the axes with the image; their coordinates are then its own pixels."""
    height, width = look.maps.image.shape[:2]
    ax.imshow(image, extent=(0, width, height, 0), aspect="auto", interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color="#8a8a8a", linewidth=0.5)


def overlay(layer: LayerMaps, values: NDArray[np.float32], grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map (H, W) of values 0..1 as colours over the grey image."""
    return blend(layer.grid.smooth(values, (grey.shape[0], grey.shape[1])), grey[..., None])


def blend(heat: NDArray[np.float32], grey: NDArray[np.float32] | float) -> NDArray[np.float32]:
    """Lay heat (height, width) in 0..1 over grey (height, width, 1) in 0..1: the hotter, the less of the grey is seen."""
    heat = heat.clip(0, 1)
    colour: NDArray[np.float32] = COLOURS(0.2 + 0.75 * heat)[..., :3].astype(np.float32)
    cover = 0.1 + 0.8 * heat[..., None]
    return (0.06 + 0.54 * grey) * (1 - cover) + colour * cover


def outlines(layer: LayerMaps, regions: NDArray[Any]) -> NDArray[np.float64]:
    """Return the borders between regions (H, W) of a layer's tokens as lines, see `borders`."""
    return borders(regions, layer.grid.borders(0), layer.grid.borders(1))


def borders(regions: NDArray[Any], ys: NDArray[np.float64], xs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the borders between regions (rows, columns) as lines (number, 2, 2): from and to, x and y.

    Row i lies from ``ys[i]`` to ``ys[i + 1]``, column j from ``xs[j]`` to ``xs[j + 1]``.
    """
    rows, columns = np.nonzero(regions[1:] != regions[:-1])
    level = np.stack([xs[columns], ys[rows + 1], xs[columns + 1], ys[rows + 1]], -1)
    rows, columns = np.nonzero(regions[:, 1:] != regions[:, :-1])
    upright = np.stack([xs[columns + 1], ys[rows], xs[columns + 1], ys[rows + 1]], -1)
    return np.concatenate([level, upright]).reshape(-1, 2, 2)


def draw_lines(ax: Axes, lines: NDArray[np.float64], width: float) -> None:
    for colour, thickness in (("black", 2.6 * width), ("white", width)):
        ax.add_collection(LineCollection(list(lines), colors=colour, linewidths=thickness, capstyle="round"), autolim=False)


def draw_mark(ax: Axes, place: Point) -> None:
    """Ring a pixel."""
    x, y = place[0] + 0.5, place[1] + 0.5
    for colour, thickness in (("black", 3.2), ("white", 1.4)):
        ax.plot(x, y, "o", ms=6.5, mfc="none", mec=colour, mew=thickness)


def draw_note(ax: Axes, words: str, *, right: bool = False) -> None:
    """Write into the lower left corner, or the lower right."""
    box = {"boxstyle": "square,pad=0.25", "facecolor": "black", "alpha": 0.6, "linewidth": 0}
    side: dict[str, Any] = {"xy": (1, 0), "xytext": (-3, 3.5), "ha": "right"} if right else {"xy": (0, 0), "xytext": (3, 3.5)}
    ax.annotate(words, xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color="white", bbox=box, **side)
