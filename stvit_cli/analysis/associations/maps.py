"""Read the super tokens of an image and the attention between tokens from a model.

    trained = open_trained(Path("runs/RUN"))                                    # tasks.loading
    maps = associations(trained.model, open_image("img.jpg"), trained.info)     # data.images
    layer = maps.layers["stage1.block1"]
    layer.label_map()                                      # (height, width): super token of every pixel of the image
    layer.association(), layer.neighbour_index()           # both (H, W, 9): weights of every token, and their super tokens
    layer.attention()                                      # (heads, p q, p q), between super tokens
    layer.token_attention(layer.grid.token_at(320, 200))   # (heads, H, W): attention of the token at a pixel to every token

Shapes: H W tokens of a layer; height, width pixels of the image; h w tokens of a cell (the grid size), n = h * w; p q super
tokens, numbered row-major from 0 to p * q - 1; 9 neighbours (the 3 x 3 super tokens around a cell, row-major); d channels of a
head.

Nothing is reimplemented: hooks record the input of each `SuperTokenAttention`, and the maps are computed by the functions that
the module itself calls.
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

from stvit_cli.analysis.associations.token_grid import MIN_SIDE, Size, TokenGrid, fit_input_size
from stvit_cli.errors import UserError
from stvit_cli.models.isotropic import Isotropic, TableSuperTokenAttention, position_bias
from stvit_cli.models.neighbours import EPS, neighbours, sum_neighbours
from stvit_cli.models.stvit import STViT
from stvit_cli.models.super_token import SuperTokenAttention, from_cells, sample, to_cells, upsample
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.tasks.finite import require_finite
from stvit_cli.utils.text import did_you_mean

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_BLOCK = re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class LayerMaps:
    """The maps of one attention layer for one image.

    Attributes:
        name: ``stage1.block2``, counted from one as in Table I.
        grid: positions of the tokens in the image.
        grid_size: tokens of a cell, h and w; (1, 1) in layers with global attention, where every token is its own super token.
        num_super_tokens: p and q.
        cells: association Q as computed by the model, (1, p, q, n, 9), including padding; None if attention is global.
        queries: (heads, p q, d).
        keys: (heads, p q, d). Attention is computed from queries and keys on demand, as its matrix is large for large images.
        bias: relative position bias of the attention logits, (heads, p q, p q), or None.
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
        """Whether every token is its own super token, so that there is no association."""
        return self.cells is None

    @property
    def num_heads(self) -> int:
        return self.queries.shape[0]

    def association(self) -> Floats:
        """Return the association Q (Equation 1) without padding, (H, W, 9).

        The nine weights of a token with its nearest super tokens sum to one.

        Raises:
            UserError: the layer has global attention; also raised by the other methods about super tokens.
        """
        return _array(self._tokens(self._cells()).permute(1, 2, 0))

    def neighbour_index(self) -> Ints:
        """Return the indices of the super tokens that the weights of `association` belong to, (H, W, 9); -1 is outside."""
        cells = self._neighbours_of_cells()[None, :, :, None].expand(self._cells().shape)
        return _array(self._tokens(cells).permute(1, 2, 0))

    def token_labels(self) -> Ints:
        """Return the index of each token's strongest super token within the image, (H, W)."""
        index, inside = self.neighbour_index(), self._inside_association()
        return np.take_along_axis(index, inside.argmax(-1)[..., None], -1)[..., 0]

    def confidence(self) -> Floats:
        """Return the association weight of each token with its strongest super token, (H, W)."""
        strongest: Floats = self._inside_association().max(-1)
        return strongest

    def label_map(self, size: Size | None = None) -> Ints:
        """Return the index of the strongest super token of every pixel, (height, width) of the image or of ``size``."""
        return self.grid.resize_nearest(self.token_labels(), size)

    def association_with(self, super_token: int) -> Floats:
        """Return the association weights of all tokens with one super token, (H, W): a column of Q."""
        weights: Floats = (self.association() * (self.neighbour_index() == super_token)).sum(-1)
        return weights

    def attention(self, rows: Sequence[int] | Tensor | None = None) -> Tensor:
        """Return the attention between super tokens.

        Args:
            rows: indices of the queries; all if not given.

        Returns:
            (heads, number of rows, p q); each row sums to one.
        """
        selected = slice(None) if rows is None else rows
        queries = self.queries[:, selected]
        logits: Tensor = queries * queries.shape[-1] ** -0.5 @ self.keys.transpose(-1, -2)
        return (logits if self.bias is None else logits + self.bias[:, selected]).softmax(-1)

    @torch.no_grad()
    def token_attention(self, token: Size) -> Floats:
        """Return the attention of one token to every token: the weights with which their values enter its output.

        It is the token's row of Q A Q^T, with the columns of Q normalised as in the aggregation of Algorithm 1. Each map sums to
        one, minus what goes outside the image: to super tokens there, which are zero vectors, and to padding. `times_uniform`
        compares what is left.

        Args:
            token: row and column, such as from ``grid.token_at(x, y)``.

        Returns:
            (heads, H, W).
        """
        (y, x), (p, q), (h, w) = token, self.num_super_tokens, self.grid_size
        if self.cells is None:
            return _array(self.attention([y * q + x]).unflatten(-1, (p, q))[:, 0])
        cell, index_in_cell = (y // h, x // w), (y % h) * w + x % w
        index = self._neighbours_of_cells()[cell]
        inside = index >= 0
        mixed = torch.einsum("s,hst->ht", self.cells[0][cell][index_in_cell][inside], self.attention(index[inside]))
        weights = mixed.reshape(-1, p, q, 1) / self._column_sums()
        return _array(from_cells(upsample(self.cells, weights), self.grid_size, self.grid.tokens)[:, 0])

    def column_sums(self) -> Floats:
        """Return the column sums of Q including padding, (p, q): the normaliser of the aggregation."""
        return _array(self._column_sums()[0, ..., 0])

    def _column_sums(self) -> Tensor:
        return sum_neighbours(self._cells().sum(3)[..., None]) + EPS

    def _inside_association(self) -> Floats:
        return np.where(self.neighbour_index() >= 0, self.association(), -1.0).astype(np.float32)

    def _cells(self) -> Tensor:
        if self.cells is None:
            raise UserError(f"{self.name} has global attention: every token is its own super token, so there is no association.")
        return self.cells

    def _neighbours_of_cells(self) -> Tensor:
        """Return the indices of the nine super tokens around each cell, (p, q, 9), -1 outside, gathered as the model does it."""
        p, q = self.num_super_tokens
        numbers = torch.arange(1, p * q + 1).reshape(1, p, q, 1)
        return neighbours(numbers)[0, ..., 0] - 1

    def _tokens(self, cells: Tensor) -> Tensor:
        """Rearrange cells (1, p, q, n, c) to tokens (c, H, W), without padding."""
        return from_cells(cells, self.grid_size, self.grid.tokens)[0]


@dataclass(frozen=True)
class Associations:
    """The maps of all attention layers for one image.

    Attributes:
        image: (height, width, 3), uint8.
        input_size: height and width of the model's input.
        layers: by name, in the order of execution.
    """

    image: NDArray[np.uint8]
    input_size: Size
    layers: dict[str, LayerMaps]

    @property
    def super_token_layers(self) -> list[LayerMaps]:
        """The layers that have super tokens, that is, no global attention."""
        return [layer for layer in self.layers.values() if not layer.is_global]

    def select(self, names: Sequence[str]) -> Associations:
        """Return a copy with some of the layers.

        Args:
            names: layers such as ``stage1.block2``, or stages such as ``stage1`` for all their blocks.

        Raises:
            UserError: a layer does not exist.
        """
        stages = list(dict.fromkeys(name.split(".")[0] for name in self.layers))
        for name in names:
            if name not in self.layers and name not in stages:
                known = ", ".join(stages) + ", and blocks such as " + next(iter(self.layers))
                raise UserError(f"no layer '{name}'.{did_you_mean(name, [*self.layers, *stages])} Known: {known}.")
        selected = {name: layer for name, layer in self.layers.items() if name in names or name.split(".")[0] in names}
        return Associations(self.image, self.input_size, selected)


def associations(
    model: nn.Module, image: Image.Image, info: WeightsInfo, *, image_size: int | None = None, keep_size: bool = False
) -> Associations:
    """Run ``model`` on an image and return the association and attention maps of its layers.

    Args:
        model: a model of this package, or a detector or segmenter with one as its backbone. Its mode and weights are unchanged.
        image: RGB.
        info: how the model was trained: its image size, mean, std and channels. ``WeightsInfo(name)`` is ImageNet at 224.
        image_size: short side of the model's input in pixels; ``info.image_size`` if not given. The image is resized without a
            crop, see `fit_input_size`.
        keep_size: run the model at the image's own size.

    Returns:
        `Associations`, with one `LayerMaps` per attention layer.

    Raises:
        UserError: ``keep_size`` with a side below 32 pixels, a model without super token attention, or one whose outputs are not
            finite.

    Example:
        >>> import stvit_cli
        >>> model = stvit_cli.create_model("stvit-nano")
        >>> maps = associations(model, Image.new("RGB", (96, 64)), WeightsInfo("stvit-nano"), keep_size=True)
        >>> layer = maps.layers["stage1.block1"]
        >>> layer.num_super_tokens, layer.association().shape, layer.label_map().shape
        ((4, 6), (16, 24, 9), (64, 96))
    """
    own = (image.height, image.width)
    if keep_size and min(own) < MIN_SIDE:
        raise UserError(
            f"keep_size: the image has {own[1]} x {own[0]} pixels, but the model needs at least {MIN_SIDE} on each side."
        )
    input_size = own if keep_size else fit_input_size(own, image_size or info.image_size)
    layers: dict[str, LayerMaps] = {}
    backbone = next((part for part in model.modules() if isinstance(part, (STViT, Isotropic))), None)
    if backbone is not None:
        was_training = backbone.training
        backbone.eval()
        with torch.no_grad(), _recording(backbone, layers, input_size, own):
            features = backbone.forward_features(_to_input(image, input_size, info))
        backbone.train(was_training)
        require_finite(features)
    if not layers:
        raise UserError(f"{info.model} has no super token attention.")
    return Associations(np.asarray(image), input_size, layers)


def times_uniform(attention: Floats) -> Floats:
    """Return attention within the image as a multiple of uniform attention: divided by its mean, so that the result's mean is 1.

    Args:
        attention: of one token to every token, (H, W) or (heads, H, W), as from `LayerMaps.token_attention`.

    Example:
        >>> times_uniform(np.array([[0.1, 0.1], [0.1, 0.5]], dtype=np.float32))
        array([[0.5, 0.5],
               [0.5, 2.5]], dtype=float32)
    """
    multiples: Floats = attention / attention.mean((-2, -1), keepdims=True)
    return multiples


def layer_name(module_name: str) -> str:
    """Return ``stage1.block2`` for the module ``stages.0.blocks.1.attn``; other names are returned unchanged."""
    match = _BLOCK.match(module_name)
    return f"stage{int(match[1]) + 1}.block{int(match[2]) + 1}" if match else module_name


@contextmanager
def _recording(model: nn.Module, layers: dict[str, LayerMaps], input_size: Size, image_hw: Size) -> Iterator[None]:
    """Record the maps of each attention of ``model`` in ``layers`` while the context is open.

    Convolutions and Swin's patch merging are hooked too: their strides and paddings determine the input pixel on which a token
    is centred.
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
    """Compute the maps of one layer from its input (1, C, H, W)."""
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
    """Resize and normalise the image, without a crop, to (1, in_chans, height, width)."""
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling[info.interpolation.upper()])
    pixels = np.asarray(image.convert("L"))[..., None] if info.in_chans == 1 else np.asarray(image)
    x = torch.from_numpy(pixels.astype(np.float32) / 255)
    return ((x - torch.tensor(info.mean)) / torch.tensor(info.std)).permute(2, 0, 1)[None]


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
