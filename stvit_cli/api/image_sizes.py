"""Sizes of images and heads that fit a data set and a device, for recipes with ``data.auto_size``."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stvit_cli.models.weights.file import WeightsInfo
    from stvit_cli.recipe import Recipe

NUM_MEASURED = 100
"""Images whose headers are read."""

DIVISOR = 32
"""Stride of the last stage, which sizes are rounded up to."""

SMALLEST = 64
"""Smaller images are enlarged: below, the last stage has a single token."""

IDX_SIZE = (28, 28)
"""Of MNIST's images, which are in no image files."""

ON_CPU = {"classification": 128, "detection": 256, "segmentation": 192}
"""Upper bound of the short side on a CPU, in pixels."""

HEADS_ON_CPU: Mapping[str, Mapping[str, float]] = {
    "classification": {},
    "detection": {
        "detection.channels": 64,
        "detection.fc_dim": 256,
        "detection.num_proposals": 256,
        "detection.num_samples": 64,
        "detection.anchor_scale": 4.0,  # of smaller images: their objects have fewer pixels
    },
    "segmentation": {"segmentation.channels": 64, "segmentation.aux_channels": 32},
}
"""Upper bounds of the heads' sizes on a CPU: at the widths of a GPU a step of four images takes ten seconds on two cores."""


def fitting_sizes(settings: Recipe, *, on_gpu: bool) -> dict[str, object]:
    """Return the keys of a recipe's image sizes: at most its own, no larger than half of the images, smaller on a CPU.

    Args:
        settings: a recipe with concrete data.
        on_gpu: the run is on a GPU.
    """
    measured = image_sizes(Path(str(settings.data.dir)).expanduser()) if settings.data.dir else []
    if settings.data.kind == "idx":
        measured = [IDX_SIZE]
    bounds = [] if on_gpu else [ON_CPU[settings.task]]
    bounds += [_rounded(statistics.median(min(size) for size in measured))] if measured else []
    if settings.task == "classification":
        return {"data.image_size": min([settings.data.image_size, *bounds])}
    if settings.task == "detection":
        short = max(settings.detection.short_sides)
        factor = min([short, *bounds]) / short
        return {
            "detection.short_sides": tuple(_rounded(side * factor) for side in settings.detection.short_sides),
            "detection.long_side": _rounded(settings.detection.long_side * factor),
        }
    long, short = settings.segmentation.max_size
    factor = min([short, *bounds]) / short
    crop = min([settings.data.image_size, *bounds])
    return {"data.image_size": crop, "segmentation.max_size": (_rounded(long * factor), _rounded(short * factor))}


def fitting_heads(settings: Recipe, weights: WeightsInfo | None, *, on_gpu: bool) -> dict[str, object]:
    """Return the keys of a recipe's heads: as in the weights of the same task, otherwise narrower on a CPU.

    Args:
        settings: the recipe.
        weights: the metadata of the weights that the run starts from.
        on_gpu: the run is on a GPU.
    """
    bounds = HEADS_ON_CPU[settings.task]
    section = getattr(settings, settings.task, None)
    if weights is not None and weights.task == settings.task and weights.settings:
        trained = json.loads(weights.settings)
        built = {key: trained[leaf] for key in bounds if (leaf := key.partition(".")[2]) in trained}
        return {key: value for key, value in built.items() if type(value) in (int, float)}
    if on_gpu:
        return {}
    return {key: min(getattr(section, key.partition(".")[2]), bound) for key, bound in bounds.items()}


def image_sizes(root: Path) -> list[tuple[int, int]]:
    """Return width and height of some images below a folder, by their headers; those that cannot be read are left out."""
    from PIL import Image

    from stvit_cli.data.folder_survey import survey

    if not root.is_dir():
        root = root.parent
    paths = [root / folder.join(name) for folder in survey(root) for name in folder.images]
    sizes = []
    for path in paths[:: max(len(paths) // NUM_MEASURED, 1)]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(path) as image:
                    sizes.append(image.size)
        except Exception:  # whatever a decoder raises: whoever trains on the image says so
            continue
    return sizes


def _rounded(side: float) -> int:
    return max(-(-round(side) // DIVISOR) * DIVISOR, SMALLEST)
