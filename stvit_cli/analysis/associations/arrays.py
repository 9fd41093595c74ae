"""The arrays behind the images, to go on from in a notebook: ``np.load("out.npz")``.

| key | shape | type | what |
|---|---|---|---|
| image_hw, input_size | (2,) | int64 | height and width of the image, and of what the model saw |
| points | (points, 2) | int64 | x and y in the image's own pixels |
| LAYER.tokens, LAYER.super_tokens | (2,) | int64 | H and W, p and q |
| LAYER.centres | (2,) | float64 | offset and stride: token i is centred on input pixel offset + i * stride |
| LAYER.association | (H, W, 9) | float32 | shares of each token in its nine super tokens; they sum to one |
| LAYER.neighbours | (H, W, 9) | int32 | which super tokens these are, 0 to p * q - 1, row by row; -1 outside the image |
| LAYER.label_map | (height, width) | int32 | the strongest super token of each pixel of the image |
| LAYER.attention | (heads, p * q, p * q) | float32 | among super tokens; rows sum to one |
| LAYER.point_attention | (points, heads, H, W) | float32 | what each point takes from every token |

LAYER is a name such as stage1.block2. Association, neighbours and label map are those of super-token layers; where attention is
global, p and q are H and W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.analysis.associations.maps import Associations, LayerMaps

MOST_ATTENTION = 1 << 26  # values of a layer's attention that are saved, 256 MiB


def arrays(maps: Associations, points: Sequence[tuple[int, int]]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays by key, and the names of the layers whose attention is left out because it is too large."""
    found: dict[str, NDArray[Any]] = {
        "image_hw": np.array(maps.image.shape[:2]),
        "input_size": np.array(maps.input_size),
        "points": np.array(points, dtype=np.int64).reshape(-1, 2),
    }
    left_out = []
    for name, layer in maps.layers.items():
        found |= {f"{name}.{key}": array for key, array in _of_layer(layer, points).items()}
        if layer.num_heads * layer.keys.shape[1] ** 2 <= MOST_ATTENTION:
            found[f"{name}.attention"] = layer.attention().numpy()
        else:
            left_out.append(name)
    return found, left_out


def _of_layer(layer: LayerMaps, points: Sequence[tuple[int, int]]) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {
        "tokens": np.array(layer.grid.tokens),
        "super_tokens": np.array(layer.num_super_tokens),
        "centres": np.array([layer.grid.offset, layer.grid.stride], dtype=np.float64),
    }
    if not layer.is_global:
        found["association"] = layer.association()
        found["neighbours"] = layer.neighbour_index().astype(np.int32)
        found["label_map"] = layer.label_map().astype(np.int32)
    if points:
        found["point_attention"] = np.stack([layer.place_attention(layer.grid.token_at(*point)) for point in points])
    return found
