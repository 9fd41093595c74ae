"""The scenes that super tokens are measured on: synthetic shapes that no run has seen, with exact maps of their objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stvit_cli.analysis.associations.superpixels import Labels
from stvit_cli.data.shapes import draw_image

SPLIT = "test"
"""Neither ``train`` nor ``val``: the images of ``data.kind=shapes`` are of these splits, whatever its seed."""


@dataclass(frozen=True)
class Scene:
    """An image and the map of its objects.

    Attributes:
        image: RGB.
        truth: (height, width): 0 for the background, and a number of its own for each object, so that the border between two
            objects of one class is a border too.
    """

    image: Image.Image
    truth: Labels


def synthetic_scenes(number: int, scene_size: int, seed: int = 0) -> Iterator[Scene]:
    """Draw held-out scenes of synthetic shapes, one after the other.

    Args:
        number: of scenes.
        scene_size: longer side in pixels; the shorter side has at least three quarters of it.
        seed: of the set.

    Example:
        >>> scene = next(synthetic_scenes(1, 64))
        >>> max(scene.image.size), scene.truth.shape == scene.image.size[::-1], int(scene.truth.min())
        (64, True, 0)
    """
    for index in range(number):
        drawn = draw_image(seed, SPLIT, index, scene_size)
        truth = np.zeros(drawn.image.shape[:2], dtype=np.int64)
        for number_of_object, mask in enumerate(drawn.masks, 1):
            truth[mask] = number_of_object
        yield Scene(Image.fromarray(drawn.image), truth)
