"""The views of an image over which a classifier's logits are averaged when it is evaluated: test-time augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple


class Views(NamedTuple):
    """Which views are taken of an image.

    Attributes:
        hflip: also the horizontal mirror image of each view (``eval.hflip``).
        translate: also the image moved by this number of pixels in the eight directions (``eval.translate``); 0: not.
    """

    hflip: bool = False
    translate: int = 0

    @classmethod
    def of(cls, content: Mapping[str, object]) -> Views:
        """Return the views that a row of results names; rows of earlier versions name fewer.

        >>> Views.of({"hflip": True, "top1": 94.8})
        Views(hflip=True, translate=0)
        """
        translate = content.get("translate", 0)
        return cls(bool(content.get("hflip", False)), translate if isinstance(translate, int) else 0)

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """How far the image is moved in each view: pixels down, pixels to the right; the image itself comes first.

        >>> Views(translate=1).offsets[:4]
        ((0, 0), (-1, -1), (-1, 0), (-1, 1))
        """
        steps = (-self.translate, 0, self.translate)
        return tuple(dict.fromkeys([(0, 0), *product(steps, steps)]))

    @property
    def num_views(self) -> int:
        """Number of forward passes for each image.

        >>> Views().num_views, Views(hflip=True, translate=1).num_views
        (1, 18)
        """
        return len(self.offsets) * (1 + self.hflip)

    def __str__(self) -> str:
        """Return what is averaged beside the image itself, empty where nothing is.

        >>> print(Views(hflip=True, translate=1))
        mirror images and images moved by 1 pixel
        """
        moved = f"images moved by {self.translate} pixel{'s' * (self.translate > 1)}"
        return " and ".join(["mirror images"] * self.hflip + [moved] * bool(self.translate))

    @property
    def clause(self) -> str:
        """What follows the images in a sentence, empty where nothing is averaged.

        >>> Views(hflip=True).clause, Views().clause
        (', averaged with mirror images', '')
        """
        return f", averaged with {self}" if str(self) else ""


NO_VIEWS = Views()
"""The image alone."""
