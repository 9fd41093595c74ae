"""One self-contained page for an image, on which a click shows that place's super token and attention.

`page.html` does the arithmetic of `LayerMaps` again, from what is packed here: associations in 16 bits, the strongest
super tokens, attention in 8 bits with the largest value of each row, the sums that the aggregation divides by.
"""

from __future__ import annotations

import base64
import io
import json
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.analysis.associations.maps import LayerMaps
from stvit_cli.analysis.associations.panels import COLOURS, Look, Point
from stvit_cli.errors import UserError

MOST_BYTES = 40 << 20  # of attention in a page; a browser takes a moment for more


def association_page(look: Look, point: Point, *, trained: bool) -> str:
    """Return the page as HTML; ``point`` is where it starts.

    Raises:
        UserError: the image has too many super tokens for a page.
    """
    layers = list(look.maps.layers.values())
    pairs = [layer.keys.shape[1] ** 2 for layer in layers]
    per_head = sum(layer.num_heads * count for layer, count in zip(layers, pairs, strict=True)) <= MOST_BYTES
    if sum(pairs) > MOST_BYTES:
        h, w = look.maps.input_size
        raise UserError(
            f"--html: at {w} x {h} the page would hold {sum(pairs) >> 20} MiB of attention; {MOST_BYTES >> 20} are the most.\n"
            "Give a smaller --image-size, or fewer --layers."
        )
    height, width = look.maps.image.shape[:2]
    data = {
        "name": look.name,
        "about": look.subtitle,
        "trained": trained,
        "width": width,
        "height": height,
        "input": look.maps.input_size,
        "point": point,
        "perHead": per_head,
        "certain": look.certain.high,
        "colours": _base64(np.rint(COLOURS(0.2 + 0.75 * np.arange(256) / 255)[:, :3] * 255).astype(np.uint8)),
        "image": "data:image/png;base64," + base64.b64encode(_png(look.canvas)).decode(),
        "layers": [_packed(layer, per_head) for layer in layers],
    }
    page = resources.files("stvit_cli.analysis.associations").joinpath("page.html").read_text(encoding="utf-8")
    # In a script element only "<" could end the data early.
    return page.replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))


def _packed(layer: LayerMaps, per_head: bool) -> dict[str, Any]:
    attention = layer.attention()
    if not per_head:
        attention = attention.mean(0, keepdim=True)
    largest = attention.amax(-1)
    packed: dict[str, Any] = {
        "name": layer.name,
        "tokens": layer.grid.tokens,
        "stride": layer.grid.stride,
        "offset": layer.grid.offset,
        "cell": layer.grid_size,
        "grid": layer.num_super_tokens,
        "heads": attention.shape[0],
        "attention": _base64((attention / largest[..., None] * 255).round().to(torch.uint8).numpy()),
        "largest": _base64(largest.numpy()),
    }
    if not layer.is_global:
        packed["association"] = _base64(np.rint(layer.association() * 65535).astype(np.uint16))
        packed["labels"] = _base64(layer.token_labels().astype(np.uint16))
        packed["sums"] = _base64(layer.sums())
    return packed


def _base64(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), order="C")
    return base64.b64encode(little.tobytes()).decode()


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
