"""The positions of a layer's tokens in the image, and resampling of token maps to pixels.

Shapes: H W tokens of a layer; height, width pixels. There are three coordinate systems: pixels of the image, pixels of the
model's input (the image resized, never cropped), and tokens. Token i is centred on input pixel ``offset + i * stride``, which
follows from the convolutions before the layer. After the stem and patch merging (3 x 3, padding 1) the offset is 0, so a token
stands for the pixels around its centre, not for those to its right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
MIN_SIDE = 32  # pixels; the smallest input of the models
MAX_ASPECT = 3.0  # a longer image is reduced further, as the cost grows with its long side


def fit_input_size(image_hw: Size, image_size: int) -> Size:
    """Return the model's input size for an image: the short side is resized to ``image_size`` as in evaluation, without a crop.

    The long side is at most three times ``image_size``, and no side is below 32 pixels. The aspect ratio changes only for
    images longer than about 3 * image_size / 32 to 1.

    Args:
        image_hw: height and width of the image in pixels.
        image_size: short side of the input in pixels.

    Returns:
        Height and width of the input in pixels.

    Example:
        >>> fit_input_size((400, 600), 224)
        (224, 336)
    """
    short, long = min(image_hw), max(image_hw)
    scale = min(image_size / short, MAX_ASPECT * image_size / long)
    height, width = (max(MIN_SIDE, round(side * scale)) for side in image_hw)
    return height, width


@dataclass(frozen=True)
class TokenGrid:
    """The positions of a layer's tokens in the image.

    Attributes:
        tokens: H and W.
        stride: distance of neighbouring tokens in input pixels.
        offset: input pixel at the centre of token 0.
        input_size: height and width of the model's input.
        image_hw: height and width of the image.
    """

    tokens: Size
    stride: int
    offset: float
    input_size: Size
    image_hw: Size

    def positions(self, axis: int, num_samples: int) -> NDArray[np.float64]:
        """Divide an axis of the image (0: height, 1: width) into ``num_samples`` parts and return their centres in tokens."""
        pixels = (np.arange(num_samples) + 0.5) / num_samples * self.input_size[axis] - 0.5
        return (pixels - self.offset) / self.stride

    def nearest(self, axis: int, num_samples: int) -> NDArray[np.int64]:
        """Return the index of the token nearest to each of `positions`."""
        tokens = np.floor(self.positions(axis, num_samples) + 0.5).astype(np.int64)
        return tokens.clip(0, self.tokens[axis] - 1)

    def edges(self, axis: int) -> NDArray[np.float64]:
        """Return the edges of the tokens along an axis in pixels of the image: H + 1 or W + 1 values, the first is 0."""
        count, pixels = self.tokens[axis], self.image_hw[axis]
        inner = (self.offset + (np.arange(1, count) - 0.5) * self.stride + 0.5) * pixels / self.input_size[axis]
        return np.concatenate([[0.0], inner, [float(pixels)]])

    def token_at(self, x: int, y: int) -> Size:
        """Return row and column of the token nearest to the pixel (x, y) of the image."""
        return int(self.nearest(0, self.image_hw[0])[y]), int(self.nearest(1, self.image_hw[1])[x])

    def resize_nearest(self, values: NDArray[Any], size: Size | None = None) -> NDArray[Any]:
        """Resize a token map (H, W) to the image (or to ``size`` pixels) by nearest neighbour."""
        height, width = size or self.image_hw
        return values[self.nearest(0, height)][:, self.nearest(1, width)]

    def resize_linear(self, values: NDArray[Any], size: Size | None = None) -> NDArray[np.float32]:
        """Resize a token map (H, W) to the image (or to ``size`` pixels), bilinearly between the centres of the tokens."""
        result = values.astype(np.float32)
        for axis, samples in enumerate(size or self.image_hw):
            positions = self.positions(axis, samples).clip(0, self.tokens[axis] - 1)
            low = np.floor(positions).astype(np.int64)
            high = np.minimum(low + 1, self.tokens[axis] - 1)
            weight = (positions - low).astype(np.float32)
            weight = weight[:, None] if axis == 0 else weight
            result = result.take(low, axis) * (1 - weight) + result.take(high, axis) * weight
        return result
