"""The segmentations of one scene: super tokens of each layer, and baselines with the same number of segments.

Two baselines know the pixels: the regular grid and SLIC. Super tokens cannot be finer than the tokens of their layer, so two more
are made of whole tokens, and resized to the image in the same way: the layer's cells, from which the iterations of Algorithm 1
start, and SLIC on the image reduced to one mean color for each token.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from stvit_cli.analysis.associations.maps import LayerMaps, associations
from stvit_cli.analysis.associations.superpixels import (
    Labels,
    SlicSearch,
    measure,
    nearest_grid,
    num_components,
    regular_grid,
)
from stvit_cli.analysis.associations.token_grid import MIN_SIDE, Size, TokenGrid, fit_input_size
from stvit_cli.analysis.superpixels.scenes import Scene
from stvit_cli.data.segmentation_transforms import fit_size
from stvit_cli.errors import UserError
from stvit_cli.models.weights.info import WeightsInfo
from stvit_cli.recipe import SegmentationSection

SUPER_TOKENS: Kind = "super tokens"
CELLS: Kind = "cells"
GRID: Kind = "regular grid"
SLIC_ON_TOKENS: Kind = "SLIC on tokens"
SLIC: Kind = "SLIC"
KINDS = (SUPER_TOKENS, CELLS, SLIC_ON_TOKENS, GRID, SLIC)
"""In the order of the table."""
Kind = Literal["super tokens", "cells", "SLIC on tokens", "regular grid", "SLIC"]

COMPACTNESS = 30
"""Of SLIC: the best of 10, 20 and 30 on the first twelve training scenes, with 80 segments. At scikit-image's default of 10 the
noise of the scenes tears segments apart: the undersegmentation error is 0.097 instead of 0.005, and that of the grid 0.103."""

METRICS = ("boundary_recall", "undersegmentation_error", "accuracy")
VALUES = ("segments", "components", "boundary_share", *METRICS)
"""What is measured of a segmentation, in the order of the arrays."""
LOWER_IS_BETTER = ("undersegmentation_error",)
NAMES = {
    "segments": "segments",
    "components": "connected parts",
    "boundary_share": "boundary pixels",
    "boundary_recall": "boundary recall",
    "undersegmentation_error": "undersegmentation error",
    "accuracy": "achievable accuracy",
}
COLUMNS = ("weights", "layer", "stride", "segmentation", *NAMES.values())

Values = NDArray[np.float64]


class SceneMeasures:
    """Measures segmentations of one scene. A baseline that several layers and models share is measured once.

    Args:
        scene: the image and the map of its objects.
        kinds: what is measured; without SLIC where scikit-image is not installed.
    """

    def __init__(self, scene: Scene, kinds: tuple[Kind, ...] = KINDS) -> None:
        self.scene, self.kinds = scene, kinds
        self.size: Size = (scene.truth.shape[0], scene.truth.shape[1])
        self._known: dict[Any, Values] = {}
        self._searches: dict[TokenGrid | None, SlicSearch] = {}

    def of_layer(self, layer: LayerMaps, pixels: NDArray[np.uint8]) -> dict[Kind, Values]:
        """Measure the super tokens of a layer and their baselines.

        Args:
            layer: the maps of the scene, made at the size of ``pixels``.
            pixels: the model's input, (h, w, 3): the resized scene.

        Returns:
            The `VALUES` of each kind.
        """
        count = len(np.unique(layer.token_labels()))
        return {kind: self._measured(kind, layer, pixels, count) for kind in self.kinds}

    def labels(self, kind: Kind, layer: LayerMaps, pixels: NDArray[np.uint8], num_segments: int) -> Labels:
        """Segment the scene, (height, width).

        Args:
            kind: the segmentation.
            layer: the maps of the scene, made at the size of ``pixels``.
            pixels: the model's input, (h, w, 3).
            num_segments: number of super tokens that occur in the layer; cells are as many as the layer has.
        """
        grid = layer.grid
        if kind == SUPER_TOKENS:
            return layer.label_map(self.size)
        if kind == CELLS:
            return grid.resize_nearest(cells(layer), self.size)
        if kind == GRID:
            return regular_grid(self.size, nearest_grid(num_segments, self.size))
        if kind == SLIC_ON_TOKENS:
            if grid not in self._searches:
                self._searches[grid] = SlicSearch(token_colors(grid, pixels), COMPACTNESS)
            return grid.resize_nearest(self._searches[grid].nearest(num_segments), self.size)
        if None not in self._searches:
            self._searches[None] = SlicSearch(np.asarray(self.scene.image), COMPACTNESS)
        return self._searches[None].nearest(num_segments)

    def _measured(self, kind: Kind, layer: LayerMaps, pixels: NDArray[np.uint8], num_segments: int) -> Values:
        # What the segmentation depends on beside the scene; super tokens depend on the weights too, and are always measured.
        of_tokens = {CELLS: (layer.grid, layer.grid_size), SLIC_ON_TOKENS: (layer.grid, num_segments)}
        key = (kind, of_tokens.get(kind, num_segments))
        if kind == SUPER_TOKENS or key not in self._known:
            labels = self.labels(kind, layer, pixels, num_segments)
            found = measure(kind, labels, self.scene.truth)
            components = num_components(labels) if SLIC in self.kinds else np.nan
            metrics = (getattr(found, name) for name in METRICS)
            self._known[key] = np.array([found.num_segments, components, found.boundary_share, *metrics])
        return self._known[key]


def cells(layer: LayerMaps) -> Labels:
    """Return the index of the cell that each token lies in, (H, W): its super token before any iteration of Algorithm 1."""
    (height, width), (h, w) = layer.grid.tokens, layer.grid_size
    return np.arange(height)[:, None] // h * layer.num_super_tokens[1] + np.arange(width) // w


def token_colors(grid: TokenGrid, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mean color of the pixels that are nearest to each token, (H, W, 3).

    Args:
        grid: the positions of the tokens; its image is the model's input.
        pixels: the input, (h, w, 3).
    """
    rows, columns = (grid.nearest(axis, side) for axis, side in enumerate(pixels.shape[:2]))
    token = (rows[:, None] * grid.tokens[1] + columns).ravel()
    count = grid.tokens[0] * grid.tokens[1]
    sizes = np.bincount(token, minlength=count)
    means = [np.bincount(token, pixels[..., channel].ravel(), count) / sizes for channel in range(3)]
    return np.rint(np.stack(means, -1)).astype(np.uint8).reshape(*grid.tokens, 3)


def layers_of(model: nn.Module, image: Image.Image, info: WeightsInfo, size: Size) -> tuple[list[LayerMaps], NDArray[np.uint8]]:
    """Run a model on an image resized to a height and width; return its layers with super tokens and the pixels of its input."""
    height, width = size
    resized = image.resize((width, height), Image.Resampling[info.interpolation.upper()])
    maps = associations(model, resized, info, keep_size=True)
    return maps.super_token_layers, maps.image


def cell_side(model: nn.Module, info: WeightsInfo) -> int:
    """Return the side of the largest cell of a model's layers, in pixels of its input: 32 for STViT-S, 16 for stvit-nano.

    Raises:
        UserError: the model has no layers with super tokens.
    """
    layers, _ = layers_of(model, Image.new("RGB", (64, 64)), info, (64, 64))
    if not layers:
        raise UserError(f"{info.model}: the attention of all its layers is global, so there are no super tokens to measure.")
    return max(layer.grid.stride * max(layer.grid_size) for layer in layers)


def input_size(image_hw: Size, info: WeightsInfo, cell: int, image_size: int | None = None) -> Size:
    """Return the size at which a model sees an image: as in the evaluation of its task, rounded so that all cells are complete.

    Args:
        image_hw: height and width of the image.
        info: how the model was trained; of a segmenter ``segmentation.max_size`` counts.
        cell: see `cell_side`.
        image_size: short side; by default that of the evaluation.

    Returns:
        Height and width, multiples of ``cell``.

    Example:
        >>> input_size((96, 80), WeightsInfo("stvit-nano", image_size=64), 16)
        (80, 64)
    """
    if image_size is None and info.task == "segmentation" and info.settings:
        max_size = SegmentationSection.model_validate_json(info.settings).max_size
        width, height = fit_size((image_hw[1], image_hw[0]), max_size, 1.0)
    else:
        height, width = fit_input_size(image_hw, image_size or info.image_size)
    least = -(-MIN_SIDE // cell)  # cells
    return cell * max(least, round(height / cell)), cell * max(least, round(width / cell))
