"""Draw the figures of docs/model.md: `python docs/examples/model_figures.py [FOLDER]` (by default docs/images/model).

Two are drawings, one is computed from formulas, two are read from the weights `stvit-nano.shapes-upernet`, which come with the
package, and one held-out scene.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import stvit_cli
from stvit_cli.analysis.associations import Associations, associations
from stvit_cli.analysis.associations.maps import times_uniform
from stvit_cli.analysis.superpixels.scenes import synthetic_scenes

WEIGHTS = "stvit-nano.shapes-upernet"
SCENE = 0
"""The held-out scene that is shown."""
BLUE, ORANGE, GREY, GREEN = "#3b6fb6", "#e07b28", "#9aa0a6", "#4a9a62"
STYLE = {
    "svg.fonttype": "none",  # the reader's font, and a smaller file
    "svg.hashsalt": "stvit",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.dpi": 100,
}


def main(folder: Path = Path(__file__).parents[1] / "images" / "model") -> list[Path]:
    """Draw all figures.

    Args:
        folder: of the SVG files.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = stvit_cli.open_trained(WEIGHTS)
    (*_, scene) = synthetic_scenes(SCENE + 1, 96)
    maps = associations(trained.model, scene.image, trained.info, image_size=128)
    with mpl.rc_context(STYLE):
        drawn = {
            "sampling": sampling(),
            "gradients": gradients(),
            "cost": cost(),
            "associations": association_maps(maps),
            "attention": attention(maps),
        }
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", facecolor="white")
            plt.close(figure)
    return [folder / f"{name}.svg" for name in drawn]


def sampling() -> Any:
    """Return the figure of cells, super tokens and the nine that a token is compared with: inside, and at the border."""
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.6))
    for axis, (x, y), title in (
        (axes[0], (9.5, 10.5), "A token is compared with nine super tokens"),
        (axes[1], (17.5, 1.5), "At the border, neighbours outside are zeros"),
    ):
        row, column = int(y) // 4, int(x) // 4
        for i in range(21):
            axis.plot([0, 20], [i, i], color=GREY, linewidth=0.2 if i % 4 else 1.0, zorder=1)
            axis.plot([i, i], [0, 20], color=GREY, linewidth=0.2 if i % 4 else 1.0, zorder=1)
        axis.add_patch(Rectangle((column * 4, row * 4), 4, 4, color=BLUE, alpha=0.15, linewidth=0))
        for r in range(-1, 6):
            for c in range(-1, 6):
                inside, near = 0 <= r < 5 and 0 <= c < 5, abs(r - row) <= 1 and abs(c - column) <= 1
                centre = (c * 4 + 2, r * 4 + 2)
                if near:
                    axis.plot(
                        [x, centre[0]], [y, centre[1]], color=ORANGE, linewidth=0.9, zorder=2, linestyle="-" if inside else ":"
                    )
                if inside:
                    axis.plot(*centre, "o", markersize=7, color=BLUE if near else GREY, zorder=3)
                elif near:
                    axis.plot(*centre, "o", markersize=7, markerfacecolor="white", markeredgecolor=ORANGE, zorder=3)
        axis.add_patch(Rectangle((int(x), int(y)), 1, 1, color=ORANGE, zorder=4))
        axis.set(xlim=(-0.5, 23), ylim=(20.5, -3), aspect="equal", title=title)
        axis.axis("off")
    figure.text(
        0.5,
        0.02,
        "thin lines: tokens; thick lines: cells of 4 x 4 tokens; dots: super tokens; orange: one token and its weights",
        ha="center",
        color="#444444",
    )
    return figure


def gradients() -> Any:
    """Return the diagram of the attention, forward and backward."""
    figure, axis = plt.subplots(figsize=(7.4, 2.7))
    boxes = {"X": 0.0, "S": 2.7, "S'": 5.4, "Y": 8.1}
    names = {"X": "tokens X\nH W", "S": "super tokens S\np q", "S'": "super tokens\nafter attention", "Y": "tokens Y\nH W"}
    for key, x in boxes.items():
        axis.add_patch(FancyBboxPatch((x, 0.95), 1.6, 0.8, boxstyle="round,pad=0.06", facecolor="#e8eef7", edgecolor=BLUE))
        axis.text(x + 0.8, 1.35, names[key], ha="center", va="center")
    axis.add_patch(FancyBboxPatch((4.05, 2.55), 1.6, 0.5, boxstyle="round,pad=0.06", facecolor="#f3f3f3", edgecolor=GREY))
    axis.text(4.85, 2.8, "association Q", ha="center", va="center")
    between = [(1.7, 2.6, "Q transposed"), (4.4, 5.3, "attention"), (7.1, 8.0, "Q")]
    for (start, end, text), back in zip(between, ("Q", "autograd", "Q transposed"), strict=True):
        axis.add_patch(FancyArrowPatch((start, 1.5), (end, 1.5), arrowstyle="-|>", mutation_scale=11, color=BLUE))
        axis.text((start + end) / 2, 1.83, text, ha="center", color=BLUE, fontsize=8)
        axis.add_patch(FancyArrowPatch((end, 1.15), (start, 1.15), arrowstyle="-|>", mutation_scale=11, color=ORANGE))
        axis.text((start + end) / 2, 0.72, back, ha="center", color=ORANGE, fontsize=8)
    axis.add_patch(
        FancyArrowPatch(
            (0.8, 1.85),
            (4.0, 2.8),
            arrowstyle="-|>",
            mutation_scale=11,
            color=GREY,
            linestyle="--",
            connectionstyle="arc3,rad=-0.2",
        )
    )
    axis.text(0.75, 2.75, "no gradient", color="#666666", fontsize=8)
    for x in (2.15, 7.55):
        axis.add_patch(FancyArrowPatch((4.85, 2.5), (x, 2.02), arrowstyle="-|>", mutation_scale=9, color=GREY, linestyle=":"))
    axis.text(0, 0.25, "blue: forward; orange: the gradient on its way back", color="#444444", fontsize=8)
    axis.set(xlim=(-0.2, 9.9), ylim=(0.1, 3.2))
    axis.axis("off")
    return figure


def multiply_adds(tokens: int, channels: int, cell: int) -> float:
    """Return the multiply-adds of super token attention without its projections, or of full attention where a cell is 1."""
    super_tokens = tokens / cell**2
    sampling_cost = 3 * 9 * tokens * channels if cell > 1 else 0.0  # association, aggregation, upsampling
    return sampling_cost + 2 * super_tokens**2 * channels


def cost() -> Any:
    """Return the plot of multiply-adds by image size, of the first two stages of stvit-s."""
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.9), sharey=True)
    sides = np.array([128, 224, 384, 512, 768, 1024])
    for axis, (stage, stride, channels, cell) in zip(axes, ((1, 4, 64, 8), (2, 8, 128, 4)), strict=True):
        tokens = (sides / stride) ** 2
        full = [multiply_adds(int(n), channels, 1) / 1e9 for n in tokens]
        sparse = [multiply_adds(int(n), channels, cell) / 1e9 for n in tokens]
        axis.plot(sides, full, "o-", color=GREY, markersize=3, label="attention among all tokens")
        axis.plot(sides, sparse, "o-", color=BLUE, markersize=3, label=f"super token attention, cells of {cell} x {cell}")
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="side of the image, pixels",
            title=f"Stage {stage}: stride {stride}, {channels} channels",
        )
        axis.set_xticks(sides, [str(side) for side in sides])
        axis.minorticks_off()
        axis.grid(color="#e5e5e5", linewidth=0.6)
        axis.set_ylim(5e-4, 3e4)
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    axes[0].set_ylabel("G multiply-adds of one layer")
    return figure


def association_maps(maps: Associations) -> Any:
    """Return the super tokens of one image in the layers that have them: outlines, weights of one, confidence."""
    layers, point = [maps.super_token_layers[0], maps.super_token_layers[-1]], _point(maps)
    figure, axes = plt.subplots(len(layers), 4, figsize=(7.4, 4.3))
    for row, layer in zip(axes, layers, strict=True):
        chosen = int(layer.token_labels()[layer.grid.token_at(*point)])
        _show(row[0], maps.image, f"{layer.name}: outlines")
        _outline(row[0], layer.label_map())
        _show(row[1], _mean_colours(maps.image, layer.label_map()), "mean colours")
        height, width = maps.image.shape[:2]
        _show(row[2], layer.grid.resize_nearest(layer.association_with(chosen), (height, width)), "weights of one", cmap="Blues")
        _show(
            row[3],
            layer.grid.resize_nearest(layer.confidence(), (height, width)),
            "largest weight",
            cmap="viridis",
            vmin=0,
            vmax=1,
        )
    figure.tight_layout(pad=0.5)
    return figure


def attention(maps: Associations) -> Any:
    """Return the attention of one pixel in a layer of each stage, as a multiple of uniform attention."""
    stages = {name.partition(".")[0]: layer for name, layer in maps.layers.items()}  # the last layer of each
    x, y = _point(maps)
    figure, axes = plt.subplots(1, len(stages) + 1, figsize=(7.4, 2.1), layout="constrained")
    _show(axes[0], maps.image, "image and pixel")
    axes[0].plot(x, y, "x", color="white", markersize=7, markeredgewidth=2)
    for axis, layer in zip(axes[1:], stages.values(), strict=True):
        found = times_uniform(layer.token_attention(layer.grid.token_at(x, y))).mean(0)
        shown = np.log2(layer.grid.resize_nearest(found, maps.image.shape[:2]).clip(1e-3))
        drawn = _show(axis, shown, layer.name, cmap="PuOr_r", vmin=-2, vmax=2)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
    bar.set_label("times uniform")
    return figure


def _point(maps: Associations) -> tuple[int, int]:
    """Return a pixel of the object: of the color that differs most from that of the corners."""
    image = maps.image.astype(float)
    ground = np.median([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]], axis=0)
    far = np.abs(image - ground).sum(-1)
    rows, columns = np.nonzero(far > far.max() * 0.7)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def _mean_colours(image: Any, labels: Any) -> Any:
    """Return the image with the mean colour of each super token's pixels."""
    count = np.bincount(labels.ravel())
    means = np.stack([np.bincount(labels.ravel(), image[..., k].ravel()) / np.maximum(count, 1) for k in range(3)], -1)
    return means[labels].astype(np.uint8)


def _outline(axis: Any, labels: Any) -> None:
    """Draw the borders between super tokens."""
    edges = np.zeros((*labels.shape, 4))
    border = np.zeros(labels.shape, dtype=bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[border] = (1, 1, 1, 0.9)
    axis.imshow(edges, interpolation="nearest")


def _show(axis: Any, image: Any, title: str, **settings: Any) -> Any:
    axis.set_title(title)
    axis.axis("off")
    return axis.imshow(image, interpolation="nearest", **settings)


if __name__ == "__main__":
    for path in main(*map(Path, sys.argv[1:2])):
        print(path, path.stat().st_size, "bytes")
