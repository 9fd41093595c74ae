"""Where the tokens of a layer lie in the image: sizes, positions, and maps over tokens stretched over pixels.

H W are tokens of a layer, (height, width) pixels. Three frames are spoken of: the image's own pixels, those of the input that
the image is resized to (never cropped), and tokens. Token i is centred on input pixel ``offset + i * stride``, which follows
from the convolutions before the layer: after the stem and patch merging (3 x 3, padded by one) it is ``i * stride``, so that a
token stands for the pixels around it, not for those to its right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
MIN_SIDE = 32  # the smallest input of the models
MAX_ASPECT = 3.0  # a longer image is made smaller still: its cost grows with its long side


def fit(image_hw: Size, image_size: int) -> Size:
    """Return the input size (height, width) for an image: its short side becomes ``image_size``, as in evaluation; no crop.

    The long side is held to three times that, and no side falls below 32. Only images longer than about 3 * image_size / 32
    to 1 change their proportions.
    """
    short, long = min(image_hw), max(image_hw)
    scale = min(image_size / short, MAX_ASPECT * image_size / long)
    height, width = (max(MIN_SIDE, round(side * scale)) for side in image_hw)
    return height, width


@dataclass(frozen=True)
class TokenGrid:
    """The tokens of a layer in the image.

    Attributes:
        tokens: H and W.
        stride: input pixels from token to token.
        offset: input pixel at the centre of token 0.
        input_size: height and width of the input.
        image_hw: height and width of the image itself.
    """

    tokens: Size
    stride: int
    offset: float
    input_size: Size
    image_hw: Size

    def positions(self, axis: int, num_samples: int) -> NDArray[np.float64]:
        """Return the centres, in tokens, of ``num_samples`` equal parts of the image's height (axis 0) or width (1)."""
        pixels = (np.arange(num_samples) + 0.5) / num_samples * self.input_size[axis] - 0.5
        return (pixels - self.offset) / self.stride

    def nearest(self, axis: int, num_samples: int) -> NDArray[np.int64]:
        """Return the token nearest to each of these places."""
        tokens = np.floor(self.positions(axis, num_samples) + 0.5).astype(np.int64)
        return tokens.clip(0, self.tokens[axis] - 1)

    def borders(self, axis: int) -> NDArray[np.float64]:
        """Return where the tokens begin and end in the image's own pixels (0 is the image's edge): H + 1 or W + 1 values."""
        count, pixels = self.tokens[axis], self.image_hw[axis]
        inner = (self.offset + (np.arange(1, count) - 0.5) * self.stride + 0.5) * pixels / self.input_size[axis]
        return np.concatenate([[0.0], inner, [float(pixels)]])

    def token_at(self, x: int, y: int) -> Size:
        """Return the row and column of the token nearest to the image's own pixel (x, y)."""
        return int(self.nearest(0, self.image_hw[0])[y]), int(self.nearest(1, self.image_hw[1])[x])

    def spread(self, values: NDArray[Any], size: Size | None = None) -> NDArray[Any]:
        """Stretch a map (H, W) over the whole image at ``size`` (or its own); every pixel takes its nearest token's value."""
        height, width = size or self.image_hw
        return values[self.nearest(0, height)][:, self.nearest(1, width)]

    def smooth(self, values: NDArray[Any], size: Size | None = None) -> NDArray[np.float32]:
        """Stretch a map (H, W) over the whole image at ``size`` (or its own), linearly between the tokens' centres."""
        result = values.astype(np.float32)
        for axis, samples in enumerate(size or self.image_hw):
            places = self.positions(axis, samples).clip(0, self.tokens[axis] - 1)
            low = np.floor(places).astype(np.int64)
            high = np.minimum(low + 1, self.tokens[axis] - 1)
            share = (places - low).astype(np.float32)
            share = share[:, None] if axis == 0 else share
            result = result.take(low, axis) * (1 - share) + result.take(high, axis) * share
        return result
