"""What the super tokens of an image are and who attends to whom, taken from a model while it looks at the image.

    trained = open_trained(Path("runs/RUN"))                                    # tasks.loading
    maps = associations(trained.model, open_image("img.jpg"), trained.info)     # data.images
    layer = maps.layers["stage1.block1"]
    layer.label_map()                                      # (height, width): the super token of every pixel of the image
    layer.association(), layer.neighbour_index()           # (H, W, 9) both: shares of every token, and in which super tokens
    layer.attention()                                      # (heads, p q, p q), among super tokens
    layer.place_attention(layer.grid.token_at(320, 200))   # (heads, H, W): what this pixel's token takes from every token

H W tokens of a layer, (height, width) pixels of the image, h w tokens of a cell, n = h * w, p q super tokens, 9 neighbours
(the 3 x 3 super tokens around a cell, row by row). Super tokens are counted row by row, 0 to p * q - 1.

Nothing is computed twice over in a form of its own: hooks note what enters each `SuperTokenAttention`, and the functions that the
module itself calls say the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from stvit_cli.analysis.associations.token_grid import MIN_SIDE, Size, TokenGrid, fit
from stvit_cli.errors import UserError
from stvit_cli.models.isotropic import Isotropic, TableSuperTokenAttention, position_bias
from stvit_cli.models.stvit import STViT
from stvit_cli.models.super_token import (
    EPS,
    SuperTokenAttention,
    from_cells,
    neighbours,
    sample,
    sum_neighbours,
    to_cells,
    upsample,
)
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.tasks.finite import require_finite
from stvit_cli.utils.text import did_you_mean

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_BLOCK = re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class LayerMaps:
    """One attention layer's maps of one image.

    Attributes:
        name: ``stage1.block2``, counted from one as in Table I.
        grid: where the layer's tokens lie in the image.
        grid_size: tokens of a cell, h and w; (1, 1) where every token is its own super token (global attention).
        num_super_tokens: p and q.
        cells: association Q as the model made it, (1, p, q, n, 9), padding included; None where the attention is global.
        bias: what a relative position encoding adds to the logits of attention, (heads, p q, p q); None without one.
        queries, keys: (heads, p q, d). Attention follows from them; kept, since a large image's (p q)^2 matrix is too large.
    """

    name: str
    grid: TokenGrid
    grid_size: Size
    num_super_tokens: Size
    cells: Tensor | None
    queries: Tensor
    keys: Tensor
    bias: Tensor | None = None

    @property
    def is_global(self) -> bool:
        return self.cells is None

    @property
    def num_heads(self) -> int:
        return self.queries.shape[0]

    def association(self) -> Floats:
        """Return Q without the padding, (H, W, 9): each token's shares in its nine super tokens. They sum to one."""
        return _array(self._tokens(self._cells()).permute(1, 2, 0))

    def neighbour_index(self) -> Ints:
        """Return the super tokens that `association` speaks of, (H, W, 9); -1 is a place outside the image."""
        cells = self._neighbours_of_cells()[None, :, :, None].expand(self._cells().shape)
        return _array(self._tokens(cells).permute(1, 2, 0))

    def token_labels(self) -> Ints:
        """Return each token's strongest super token, (H, W); places outside the image do not count."""
        index, inside = self.neighbour_index(), self._inside_association()
        return np.take_along_axis(index, inside.argmax(-1)[..., None], -1)[..., 0]

    def confidence(self) -> Floats:
        """Return each token's share in its strongest super token, (H, W)."""
        strongest: Floats = self._inside_association().max(-1)
        return strongest

    def label_map(self, size: Size | None = None) -> Ints:
        """Return the super token of every pixel of the image, at its own size (height, width) or at ``size``."""
        return self.grid.spread(self.token_labels(), size)

    def association_with(self, super_token: int) -> Floats:
        """Return every token's share in one super token, (H, W): a column of Q."""
        weights: Floats = (self.association() * (self.neighbour_index() == super_token)).sum(-1)
        return weights

    def attention(self, rows: Sequence[int] | Tensor | None = None) -> Tensor:
        """Return the attention among super tokens, (heads, p q, p q): all of it, or these rows."""
        chosen = slice(None) if rows is None else rows
        queries = self.queries[:, chosen]
        logits: Tensor = queries * queries.shape[-1] ** -0.5 @ self.keys.transpose(-1, -2)
        return (logits if self.bias is None else logits + self.bias[:, chosen]).softmax(-1)

    @torch.no_grad()
    def place_attention(self, token: Size) -> Floats:
        """Return what the token at (row, column) takes from every token in each head, (heads, H, W).

        It is that token's row of association x attention x association^T, the last one divided by each super token's sum as in
        the aggregation: the weights with which the tokens' values enter the output here. A map sums to one, less what falls on
        places outside the image.
        """
        (y, x), (p, q), (h, w) = token, self.num_super_tokens, self.grid_size
        if self.cells is None:
            return _array(self.attention([y * q + x]).unflatten(-1, (p, q))[:, 0])
        cell, place = (y // h, x // w), (y % h) * w + x % w
        index = self._neighbours_of_cells()[cell]
        inside = index >= 0
        mixed = torch.einsum("s,hst->ht", self.cells[0][cell][place][inside], self.attention(index[inside]))
        shares = mixed.reshape(-1, p, q, 1) / self._sums()
        return _array(from_cells(upsample(self.cells, shares), self.grid_size, self.grid.tokens)[:, 0])

    def sums(self) -> Floats:
        """Return the sum of each super token's column of Q, padding included, (p, q): what the aggregation divides by."""
        return _array(self._sums()[0, ..., 0])

    def _sums(self) -> Tensor:
        return sum_neighbours(self._cells().sum(3)[..., None]) + EPS

    def _inside_association(self) -> Floats:
        return np.where(self.neighbour_index() >= 0, self.association(), -1.0).astype(np.float32)

    def _cells(self) -> Tensor:
        if self.cells is None:
            raise UserError(f"{self.name}: global attention, every token is its own super token; it has no association.")
        return self.cells

    def _neighbours_of_cells(self) -> Tensor:
        """Return which super tokens the nine neighbours of a cell are, (p, q, 9), -1 outside: the model gathers their numbers."""
        p, q = self.num_super_tokens
        numbers = torch.arange(1, p * q + 1).reshape(1, p, q, 1)
        return neighbours(numbers)[0, ..., 0] - 1

    def _tokens(self, cells: Tensor) -> Tensor:
        """Put what is said of cells (1, p, q, n, c) together to (c, H, W), without the padding."""
        return from_cells(cells, self.grid_size, self.grid.tokens)[0]


@dataclass(frozen=True)
class Associations:
    """The maps of one image.

    Attributes:
        image: (height, width, 3), 8 bits a channel.
        input_size: height and width of what the model saw.
        layers: by name, in the order in which they run.
    """

    image: NDArray[np.uint8]
    input_size: Size
    layers: dict[str, LayerMaps]

    @property
    def super_token_layers(self) -> list[LayerMaps]:
        return [layer for layer in self.layers.values() if not layer.is_global]

    def chosen(self, names: Sequence[str]) -> Associations:
        """Return the same with the layers named: ``stage1.block2``, or ``stage1`` for all its blocks.

        Raises:
            UserError: no such layer.
        """
        stages = {name.split(".")[0] for name in self.layers}
        for name in names:
            if name not in self.layers and name not in stages:
                known = ", ".join(sorted(stages)) + ", and blocks such as " + next(iter(self.layers))
                raise UserError(f"no layer '{name}'.{did_you_mean(name, [*self.layers, *stages])} Known: {known}.")
        wanted = {name: layer for name, layer in self.layers.items() if name in names or name.split(".")[0] in names}
        return Associations(self.image, self.input_size, wanted)


def associations(
    model: nn.Module, image: Image.Image, info: WeightsInfo, *, image_size: int | None = None, keep_size: bool = False
) -> Associations:
    """Show ``image`` (RGB) to ``model`` and return the maps of its attention layers.

    Args:
        model: a model of this package, or a detector or segmenter made of one.
        info: how the model was trained: its image size, mean, std and channels. `WeightsInfo(name)` is ImageNet at 224.
        image_size: short side of the input in pixels; ``info.image_size`` if not given. The whole image is shown, see `fit`.
        keep_size: the image as large as it is.

    Raises:
        UserError: ``keep_size`` with a side below 32 pixels; a model without such layers, or with outputs that are not finite.
    """
    own = (image.height, image.width)
    if keep_size and min(own) < MIN_SIDE:
        raise UserError(
            f"--keep-size: the image is {own[1]} x {own[0]} pixels, the model needs at least {MIN_SIDE} on each side."
        )
    input_size = own if keep_size else fit(own, image_size or info.image_size)
    layers: dict[str, LayerMaps] = {}
    body = next((part for part in model.modules() if isinstance(part, (STViT, Isotropic))), None)
    if body is not None:
        was_training = body.training
        body.eval()
        with torch.no_grad(), _watching(body, layers, input_size, own):
            features = body.forward_features(_to_input(image, input_size, info))
        body.train(was_training)
        require_finite(features)
    if not layers:
        raise UserError(f"{info.model} has no super token attention.")
    return Associations(np.asarray(image), input_size, layers)


def layer_name(module_name: str) -> str:
    """Return ``stage1.block2`` for the module ``stages.0.blocks.1.attn``; another module's name stays."""
    match = _BLOCK.match(module_name)
    return f"stage{int(match[1]) + 1}.block{int(match[2]) + 1}" if match else module_name


@contextmanager
def _watching(model: nn.Module, layers: dict[str, LayerMaps], input_size: Size, image_hw: Size) -> Iterator[None]:
    """While it is open, note in ``layers`` what enters each attention of ``model``.

    The convolutions (and Swin's merging of 2 x 2 tokens) are watched too: which input pixel a token is centred on follows from
    their strides and paddings.
    """
    stride, offset = 1, 0.0

    def enter_convolution(conv: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal stride, offset
        assert isinstance(conv, nn.Conv2d)
        assert not isinstance(conv.padding, str)
        offset += ((conv.kernel_size[0] - 1) / 2 - conv.padding[0]) * stride
        stride *= conv.stride[0]

    def enter_merging(merging: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal stride, offset
        offset += 0.5 * stride
        stride *= 2

    def enter_attention(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def enter(attn: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(attn, SuperTokenAttention)
            x = args[0].permute(0, 3, 1, 2) if isinstance(attn, TableSuperTokenAttention) else args[0]
            grid = TokenGrid((x.shape[2], x.shape[3]), stride, offset, input_size, image_hw)
            layers[layer_name(name)] = _maps(layer_name(name), attn, x, grid)

        return enter

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, SuperTokenAttention):
            handles.append(module.register_forward_pre_hook(enter_attention(name)))
        elif isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_pre_hook(enter_convolution))
        elif isinstance(module, PatchMerging):
            handles.append(module.register_forward_pre_hook(enter_merging))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _maps(name: str, attn: SuperTokenAttention, x: Tensor, grid: TokenGrid) -> LayerMaps:
    """Return the maps of one layer for its input (1, C, H, W)."""
    association = None
    if attn.grid_size != (1, 1):
        super_tokens, association = sample(to_cells(x, attn.grid_size), attn.num_iters)
        x = super_tokens.permute(0, 3, 1, 2)
    queries, keys, _ = attn.split_heads(x)
    p, q = x.shape[2:]
    table = getattr(attn, "relative_position_bias_table", None)
    bias = None if table is None else position_bias(table, p, q)
    return LayerMaps(name, grid, attn.grid_size, (p, q), association, queries[0], keys[0], bias)


def _to_input(image: Image.Image, size: Size, info: WeightsInfo) -> Tensor:
    """Return the whole image as (1, in_chans, height, width), resized and normalised."""
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling[info.interpolation.upper()])
    pixels = np.asarray(image.convert("L"))[..., None] if info.in_chans == 1 else np.asarray(image)
    x = torch.from_numpy(pixels.astype(np.float32) / 255)
    return ((x - torch.tensor(info.mean)) / torch.tensor(info.std)).permute(2, 0, 1)[None]


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
