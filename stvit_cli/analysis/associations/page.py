"""A self-contained HTML page for an image: a click shows the super token and the attention of a pixel.

`arithmetic.js` repeats the computations of `LayerMaps` on the data packed here: association weights in 16 bits, the strongest
super tokens, attention in 8 bits with the maximum of each row, and the column sums of the association. `drawing.js` draws them
with the palettes and the scale of attention of `panels.py`, and `page.js` is what the user does on the page.
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
from stvit_cli.analysis.associations.panels import ATTENTION_RANGE, DIVERGING, SEQUENTIAL, PlotContext, Point
from stvit_cli.errors import UserError

SCRIPTS = ("arithmetic.js", "drawing.js", "page.js")
MAX_ATTENTION_BYTES = 40 << 20  # in a page; browsers are slow to load more


def association_page(context: PlotContext, point: Point, *, trained: bool) -> str:
    """Build the page.

    Args:
        context: the image and its maps.
        point: the pixel (x, y) that is selected at first.
        trained: False shows a warning that the weights are random.

    Returns:
        HTML.

    Raises:
        UserError: the image has too many super tokens for a page.
    """
    layers = list(context.maps.layers.values())
    pairs = [layer.keys.shape[1] ** 2 for layer in layers]
    per_head = sum(layer.num_heads * count for layer, count in zip(layers, pairs, strict=True)) <= MAX_ATTENTION_BYTES
    if sum(pairs) > MAX_ATTENTION_BYTES:
        h, w = context.maps.input_size
        raise UserError(
            f"The HTML page would hold {sum(pairs) >> 20} MiB of attention at {w} x {h} pixels; "
            f"the limit is {MAX_ATTENTION_BYTES >> 20} MiB.\nReduce image_size, or select fewer layers."
        )
    height, width = context.maps.image.shape[:2]
    data = {
        "name": context.name,
        "about": context.subtitle,
        "trained": trained,
        "width": width,
        "height": height,
        "input": context.maps.input_size,
        "point": point,
        "perHead": per_head,
        "maxConfidence": context.confidence_scale.high,
        "palettes": {"heat": _palette(SEQUENTIAL), "attention": _palette(DIVERGING)},
        "attentionRange": ATTENTION_RANGE,
        "image": "data:image/png;base64," + base64.b64encode(_png(context.canvas)).decode(),
        "layers": [_pack(layer, per_head) for layer in layers],
    }
    files = resources.files("stvit_cli.analysis.associations")
    page, *scripts = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", *SCRIPTS))
    # Inside a script element only "<" could end the data early. The data come last: a name may hold "@SCRIPT@".
    return page.replace("@SCRIPT@", "\n".join(scripts)).replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))


def _pack(layer: LayerMaps, per_head: bool) -> dict[str, Any]:
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
        packed["columnSums"] = _base64(layer.column_sums())
    return packed


def _palette(colours: NDArray[np.float32]) -> str:
    return _base64(np.rint(colours * 255).astype(np.uint8))


def _base64(array: NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), order="C")
    return base64.b64encode(little.tobytes()).decode()


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
