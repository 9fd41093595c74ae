"""Measure the super tokens of trained models, and of the same models with random weights, on a set of scenes."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from stvit_cli.analysis.superpixels.measure import (
    KINDS,
    SLIC,
    SLIC_ON_TOKENS,
    Kind,
    SceneMeasures,
    Values,
    cell_side,
    input_size,
    layers_of,
)
from stvit_cli.analysis.superpixels.result import Example, Layer, Row, SuperpixelOptions, SuperpixelResult
from stvit_cli.analysis.superpixels.scenes import synthetic_scenes
from stvit_cli.analysis.superpixels.settings import Setting, open_settings

NUM_EXAMPLES = 3
"""Scenes whose segmentations are drawn: the first ones of the set, not chosen ones."""


@dataclass(frozen=True)
class _Group:
    """The networks of a setting: the trained ones, or random ones."""

    setting: Setting
    trained: bool
    models: tuple[nn.Module, ...]
    cell: int


def evaluate_superpixels(
    weights: Sequence[str | Path],
    options: SuperpixelOptions | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SuperpixelResult:
    """Measure super tokens as superpixels, of each layer, trained and untrained, beside baselines with as many segments.

    Args:
        weights: see `settings.open_settings`.
        options: the set of scenes.
        progress: called with the number of scenes that are done, and of all.

    Raises:
        UserError: weights that cannot be opened, or a model without super tokens.
    """
    options = options or SuperpixelOptions()
    groups = []
    for setting in open_settings(weights):
        cell = cell_side(setting.models[0], setting.info)
        groups.append(_Group(setting, True, setting.models, cell))
        if options.untrained:
            groups.append(_Group(setting, False, setting.untrained(options.untrained), cell))
    with_slic = importlib.util.find_spec("skimage") is not None
    kinds = KINDS if with_slic else tuple(kind for kind in KINDS if kind not in (SLIC, SLIC_ON_TOKENS))
    found: dict[tuple[int, Layer, Kind], list[Values]] = defaultdict(list)
    examples = []
    for index, scene in enumerate(synthetic_scenes(options.num_scenes, options.scene_size, options.scene_seed)):
        measures, example = SceneMeasures(scene, kinds), Example(scene)
        for number, group in enumerate(groups):
            for key, values in _measure(
                group, measures, options, example if index < NUM_EXAMPLES and number < 2 else None
            ).items():
                found[number, *key].append(values)
        if index < NUM_EXAMPLES:
            examples.append(example)
        progress(index + 1, options.num_scenes)
    rows = [
        Row(groups[number].setting.name, groups[number].trained, layer, kind, np.stack(values, 1))
        for (number, layer, kind), values in found.items()
    ]
    return SuperpixelResult([group.setting for group in groups if group.trained], rows, options, examples, with_slic)


def _measure(
    group: _Group, measures: SceneMeasures, options: SuperpixelOptions, example: Example | None
) -> dict[tuple[Layer, Kind], Values]:
    """Return (seeds, `VALUES`) of a scene by layer and kind; keep the label maps of the first seed for ``example``."""
    scene, info = measures.scene, group.setting.info
    size = input_size((scene.image.height, scene.image.width), info, group.cell, options.image_size)
    found: dict[tuple[Layer, Kind], list[Values]] = defaultdict(list)
    for seed, model in enumerate(group.models):
        layers, pixels = layers_of(model, scene.image, info, size)
        for maps in layers:
            layer = Layer(maps.name, maps.grid.stride, maps.grid_size)
            for kind, values in measures.of_layer(maps, pixels).items():
                found[layer, kind].append(values)
            if example is not None and seed == 0:
                example.keep(measures, maps, pixels, group.trained)
    return {key: np.stack(values) for key, values in found.items()}
