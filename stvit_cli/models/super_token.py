"""Super Token Attention: Algorithm 1 of the supplement, one function for each of its steps, in its order.

Shapes: B batch, C channels, H W tokens down and across the image, h w tokens of a cell (the grid size), n = h * w; p q super
tokens (p = ceil(H / h), q = ceil(W / w)), 9 the neighbours of a cell (the 3 x 3 super tokens around it), d channels of a head.

The association Q maps tokens to super tokens and back, and carries no gradient. With Q fixed, aggregation is Q^T and upsampling
is Q, so each is the gradient of the other: that is all the backward pass there is. Two variants are there for comparison: Q with
its gradient (``association_grad``), and no iteration at all (``num_iters=0``), which leaves average pooling.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from stvit_cli.models.accelerated import Accelerated, Conv2d, Kernels
from stvit_cli.models.exporting import is_exporting
from stvit_cli.models.neighbours import EPS, neighbours, sum_neighbours


def to_cells(x: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Split an image into cells ("rearrange the tokens"), padded right and bottom with zeros to a multiple of the grid.

    Args:
        x: (B, C, H, W).
        grid_size: tokens of a cell, (h, w).

    Returns:
        (B, p, q, n, C).

    Example:
        >>> to_cells(torch.zeros(1, 3, 10, 8), (4, 4)).shape
        torch.Size([1, 3, 2, 16, 3])
    """
    (h, w), (p, q) = grid_size, _num_cells(x, grid_size)
    return rearrange(_pad(x, grid_size).permute(0, 2, 3, 1), "B (p h) (q w) C -> B p q (h w) C", p=p, q=q, h=h, w=w)


def _num_cells(x: Tensor, grid_size: tuple[int, int]) -> tuple[int, int]:
    """Return p and q of (B, C, H, W)."""
    return (x.shape[-2] + grid_size[0] - 1) // grid_size[0], (x.shape[-1] + grid_size[1] - 1) // grid_size[1]


def _pad(x: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Pad (B, C, H, W) right and bottom with zeros to a multiple of the grid."""
    (h, w), (p, q) = grid_size, _num_cells(x, grid_size)
    pad_bottom, pad_right = p * h - x.shape[-2], q * w - x.shape[-1]
    # An exported graph must hold for every size: there the padding is unconditional.
    if is_exporting() or pad_bottom or pad_right:
        x = F.pad(x, (0, pad_right, 0, pad_bottom))
    return x


def from_cells(cells: Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Join cells to an image: the inverse of `to_cells`.

    Args:
        cells: (B, p, q, n, C).
        grid_size: tokens of a cell, (h, w).
        size: (H, W) of the image; the padding is cropped.

    Returns:
        (B, C, H, W) in channels-last memory.
    """
    h, w = grid_size
    # This copies contiguous runs of w * C values. A copy straight to (B, C, H, W) would transpose the memory: ten times slower.
    return _crop(rearrange(cells, "B p q (h w) C -> B (p h) (q w) C", h=h, w=w).permute(0, 3, 1, 2), size)


def _crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop (B, C, H, W) to a size: the inverse of `_pad`."""
    if is_exporting():
        # A slice adds a guard on contiguity to the graph; a negative padding does not.
        return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))
    return x[..., : size[0], : size[1]]


def average_pool(x: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Average each cell of (B, C, H, W), padded with zeros: the super tokens (B, p, q, C) of no iteration."""
    (h, w), (p, q) = grid_size, _num_cells(x, grid_size)
    return reduce(_pad(x, grid_size).permute(0, 2, 3, 1), "B (p h) (q w) C -> B p q C", "mean", p=p, q=q, h=h, w=w)


def repeat_tokens(super_tokens: Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Give each token the super token (B, p, q, C) of its own cell: (B, C, H, W)."""
    h, w = grid_size
    return _crop(repeat(super_tokens, "B p q C -> B (p h) (q w) C", h=h, w=w).permute(0, 3, 1, 2), size)


def associate(cells: Tensor, super_tokens: Tensor) -> Tensor:
    """Compute the association Q of equation 1, sparse: the softmax of C ** -0.5 times token . super token over nine neighbours.

    A neighbour outside the image is a zero vector: its logit is 0 and it keeps its part of the softmax, as in Algorithm 1.

    Args:
        cells: (B, p, q, n, C).
        super_tokens: (B, p, q, C).

    Returns:
        Q (B, p, q, n, 9). In memory it is (B, p, q, 9, n): on a CPU a softmax over the last dimension of nine is twenty times
        slower than over the one before.
    """
    affinity = neighbours(super_tokens * cells.shape[-1] ** -0.5) @ cells.transpose(-1, -2)
    return affinity.softmax(-2).transpose(-1, -2)


def own_cell(cells: Tensor) -> Tensor:
    """Return the association Q (B, p, q, n, 9) in which a token belongs to the super token of its own cell, the fifth of nine."""
    association = cells.new_zeros(*cells.shape[:3], 9, cells.shape[3])
    association[..., 4, :] = 1
    return association.transpose(-1, -2)


def aggregate(association: Tensor, cells: Tensor, association_grad: bool = False) -> Tensor:
    """Compute the super tokens of equation 2: the mean of the surrounding tokens, weighted by the column-normalized Q.

    Args:
        association: Q (B, p, q, n, 9).
        cells: (B, p, q, n, C).
        association_grad: the gradient flows through Q too.

    Returns:
        (B, p, q, C) in the dtype of ``cells``.
    """
    with _gradient(association_grad):
        dtype = torch.promote_types(association.dtype, torch.float32)
        weight = sum_neighbours(association.sum(3, dtype=dtype)[..., None]) + EPS
    by_hand = _needs_gradient() and not association_grad
    total = _Aggregate.apply(association, cells) if by_hand else _aggregate(association, cells)
    return (total / weight).to(cells.dtype)


def sample(cells: Tensor, num_iters: int = 1, association_grad: bool = False) -> tuple[Tensor, Tensor]:
    """Super Token Sampling: start from the mean of each cell, then repeat equations 1 and 2.

    The gradient flows through the last aggregation only, unless ``association_grad`` says otherwise.

    Args:
        cells: (B, p, q, n, C).
        num_iters: number of iterations (``n_iter`` in Algorithm 1); 0: the means themselves, and each token belongs to its cell.
        association_grad: the gradient flows through Q too, in all iterations.

    Returns:
        Super tokens (B, p, q, C), and their association Q (B, p, q, n, 9).
    """
    if num_iters == 0:
        return cells.mean(3), own_cell(cells)
    with _gradient(association_grad):
        super_tokens = cells.mean(3)
        association = associate(cells, super_tokens)
        for _ in range(num_iters - 1):
            association = associate(cells, aggregate(association, cells, association_grad))
    return aggregate(association, cells, association_grad), association


def upsample(association: Tensor, super_tokens: Tensor, association_grad: bool = False) -> Tensor:
    """Token Upsampling: map super tokens back to tokens by Q.

    Args:
        association: Q (B, p, q, n, 9).
        super_tokens: (B, p, q, C).
        association_grad: the gradient flows through Q too.

    Returns:
        (B, p, q, n, C), each token the sum of its nine super tokens weighted by its row of Q.
    """
    by_hand = _needs_gradient() and not association_grad
    return _Upsample.apply(association, super_tokens) if by_hand else _upsample(association, super_tokens)


def _aggregate(association: Tensor, cells: Tensor) -> Tensor:
    return sum_neighbours(association.transpose(-1, -2) @ cells)


def _upsample(association: Tensor, super_tokens: Tensor) -> Tensor:
    return association @ neighbours(super_tokens)


class _Aggregate(torch.autograd.Function):
    """Q^T; its gradient is Q."""

    @staticmethod
    def forward(ctx: Any, association: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(association)
        return _aggregate(association, cells)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (association,) = ctx.saved_tensors
        return None, _upsample(association.to(grads[0].dtype), grads[0])


class _Upsample(torch.autograd.Function):
    """Q; its gradient is Q^T."""

    @staticmethod
    def forward(ctx: Any, association: Tensor, super_tokens: Tensor) -> Tensor:
        ctx.save_for_backward(association)
        return _upsample(association, super_tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (association,) = ctx.saved_tensors
        return None, _aggregate(association.to(grads[0].dtype), grads[0])


def _needs_gradient() -> bool:
    """Return whether the autograd functions are needed. `torch.jit.trace` cannot compare graphs that contain them."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing()


def _gradient(flows: bool) -> AbstractContextManager[Any]:
    """Return a context in which autograd records what is computed, if it does around it, or nothing."""
    return nullcontext() if flows else torch.no_grad()


class SuperTokenAttention(Accelerated):
    """Super Token Attention (Algorithm 1), (B, C, H, W) -> (B, C, H, W) for any H and W.

    With a grid of 1 every token is its own super token: ordinary multi-head self-attention (section B, stages 3 and 4).

    Args:
        dim: number of channels C.
        num_heads: number of heads of the self-attention among super tokens; divides ``dim``.
        grid_size: tokens of a cell, (h, w), or one number for both.
        num_iters: number of iterations of the super token sampling. 0: average pooling alone, and each token gets the super token
            of its cell back.
        association_grad: the gradient flows through the association too. Training is then without the custom kernels.

    Raises:
        ValueError: ``dim`` is not divisible by ``num_heads``.

    Example:
        >>> attention = SuperTokenAttention(dim=64, num_heads=2, grid_size=8)
        >>> attention(torch.zeros(1, 64, 56, 50)).shape
        torch.Size([1, 64, 56, 50])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: int | tuple[int, int] = 1,
        num_iters: int = 1,
        association_grad: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.grid_size = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        self.num_iters = num_iters
        self.association_grad = association_grad
        self.qkv = Conv2d(dim, 3 * dim, 1)
        self.proj = Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.grid_size == (1, 1):
            return self.attend(x)
        size = (x.shape[2], x.shape[3])
        if self.num_iters == 0:
            return repeat_tokens(self.attend_channels_last(average_pool(x, self.grid_size)), self.grid_size, size)
        if (kernels := self.sampling_kernels(x)) is not None:
            super_tokens, association = kernels.sample(x, self.grid_size, self.num_iters)
            super_tokens = self.attend_channels_last(super_tokens)
            return kernels.upsample(association, super_tokens, self.grid_size, size)
        cells = to_cells(x, self.grid_size)
        super_tokens, association = sample(cells, self.num_iters, self.association_grad)
        super_tokens = self.attend_channels_last(super_tokens)
        return from_cells(upsample(association, super_tokens, self.association_grad), self.grid_size, size)

    def sampling_kernels(self, x: Tensor) -> Kernels | None:
        """Return the kernels that sample and upsample (B, C, H, W) ``x``, if they do.

        They need an iteration, and have no gradient of the association.
        """
        if self.kernels is None or self.num_iters == 0 or (self.association_grad and torch.is_grad_enabled()):
            return None
        return self.kernels if self.kernels.supports(x) else None

    def attend_channels_last(self, super_tokens: Tensor) -> Tensor:
        """`attend` for (B, p, q, C)."""
        return self.attend(super_tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def attend(self, x: Tensor) -> Tensor:
        """Apply multi-head self-attention among the p * q super tokens of (B, C, p, q)."""
        return self.proj(self.mix_tokens(x))

    def mix_tokens(self, x: Tensor) -> Tensor:
        """`attend` without its last projection."""
        if self.kernels is not None and self.kernels.supports_self_attention(x, self.head_dim):
            return self.kernels.self_attention(self.qkv(x), self.num_heads)
        q, k, v = self.split_heads(x)
        y = F.scaled_dot_product_attention(q, k, v)
        return rearrange(y, "B heads (p q) d -> B p q (heads d)", p=x.shape[2]).permute(0, 3, 1, 2)

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, heads, p * q, d) of (B, C, p, q).

        The 3 C output channels of ``qkv`` hold q, k and v of the first head, then of the second, and so on.
        """
        # Fused attention needs the d channels of a head contiguous; otherwise it materializes the matrix of all pairs.
        x = x.contiguous(memory_format=torch.channels_last)
        qkv = rearrange(self.qkv(x), "B (heads three d) p q -> B (p q) heads three d", heads=self.num_heads, three=3)
        # Views of one tensor, so that their gradients are collected in one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
        return q, k, v
