"""The arrays behind the plots, for use in a notebook: ``np.load("out.npz")``.

| key | shape | dtype | content |
|---|---|---|---|
| image_hw, input_size | (2,) | int64 | height and width of the image, and of the model's input |
| points | (points, 2) | int64 | x and y in pixels of the image |
| LAYER.tokens, LAYER.super_tokens | (2,) | int64 | H and W, p and q |
| LAYER.centres | (2,) | float64 | offset and stride: token i is centred on input pixel offset + i * stride |
| LAYER.association | (H, W, 9) | float32 | association weights of each token with its nine super tokens; they sum to one |
| LAYER.neighbours | (H, W, 9) | int32 | indices of these super tokens, 0 to p * q - 1 in row-major order; -1 outside the image |
| LAYER.label_map | (height, width) | int32 | index of the strongest super token of each pixel of the image |
| LAYER.attention | (heads, p * q, p * q) | float32 | attention between super tokens; rows sum to one |
| LAYER.point_attention | (points, heads, H, W) | float32 | attention of each point to every token |

The attention of a point sums to one, minus what goes outside the image (`maps.times_uniform` compares what is left). LAYER is a
name such as stage1.block2. Association, neighbours and label map exist for super token layers only; in layers with global
attention, p and q equal H and W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.analysis.associations.maps import Associations, LayerMaps

MAX_ATTENTION_VALUES = 1 << 26  # per layer, 256 MiB; larger matrices are not saved


def arrays(maps: Associations, points: Sequence[tuple[int, int]]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Collect the arrays of all layers.

    Args:
        maps: the maps of one image.
        points: (x, y) in pixels of the image, for ``point_attention``.

    Returns:
        The arrays by key (see the table above), and the names of the layers whose attention matrix is too large to save.
    """
    result: dict[str, NDArray[Any]] = {
        "image_hw": np.array(maps.image.shape[:2]),
        "input_size": np.array(maps.input_size),
        "points": np.array(points, dtype=np.int64).reshape(-1, 2),
    }
    too_large = []
    for name, layer in maps.layers.items():
        result |= {f"{name}.{key}": array for key, array in _layer_arrays(layer, points).items()}
        if layer.num_heads * layer.keys.shape[1] ** 2 <= MAX_ATTENTION_VALUES:
            result[f"{name}.attention"] = layer.attention().numpy()
        else:
            too_large.append(name)
    return result, too_large


def _layer_arrays(layer: LayerMaps, points: Sequence[tuple[int, int]]) -> dict[str, NDArray[Any]]:
    result: dict[str, NDArray[Any]] = {
        "tokens": np.array(layer.grid.tokens),
        "super_tokens": np.array(layer.num_super_tokens),
        "centres": np.array([layer.grid.offset, layer.grid.stride], dtype=np.float64),
    }
    if not layer.is_global:
        result["association"] = layer.association()
        result["neighbours"] = layer.neighbour_index().astype(np.int32)
        result["label_map"] = layer.label_map().astype(np.int32)
    if points:
        result["point_attention"] = np.stack([layer.token_attention(layer.grid.token_at(*point)) for point in points])
    return result
