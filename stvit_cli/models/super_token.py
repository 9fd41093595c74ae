"""Algorithm 1 of the supplement: sample super tokens, attend among them, map the result back.

B batch, C channels, H W tokens of the image, h w tokens of a cell (the grid size), n = h * w; p q super tokens
(p = ceil(H / h), q = ceil(W / w)), k = 9 neighbours (the 3 x 3 super tokens around a cell), d channels of a head.

The association Q maps tokens to super tokens and back, and carries no gradient. With Q fixed, aggregation is Q^T and upsampling
is Q, so each is the gradient of the other: that is all the backward pass there is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stvit_cli.models import kernels
from stvit_cli.models.kernels import operators

EPS = 1e-12  # of the normaliser in Algorithm 1


def to_cells(x: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Cut (B, C, H, W) into cells (B, p, q, n, C), padded right and bottom with zeros to a multiple of the grid."""
    h, w = grid_size
    height, width = x.shape[-2:]
    p, q = (height + h - 1) // h, (width + w - 1) // w
    pad_bottom, pad_right = p * h - height, q * w - width
    # An exported graph must hold for every size, so there the padding is not asked about but always applied.
    if torch.compiler.is_exporting() or pad_bottom or pad_right:
        x = F.pad(x, (0, pad_right, 0, pad_bottom))
    return rearrange(x.permute(0, 2, 3, 1), "B (p h) (q w) C -> B p q (h w) C", p=p, q=q, h=h, w=w)


def from_cells(cells: Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put cells (B, p, q, n, C) together to (B, C, H, W), cropped to ``size`` = (H, W): the inverse of `to_cells`."""
    h, w = grid_size
    # Runs of w * C values are copied as they lie. Straight to (B, C, H, W) the copy would turn the memory over: ten times slower.
    x = rearrange(cells, "B p q (h w) C -> B (p h) (q w) C", h=h, w=w).permute(0, 3, 1, 2)
    if torch.compiler.is_exporting():
        # A slice would ask whether it left the memory dense, a padding by less than nothing does not.
        return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))
    return x[..., : size[0], : size[1]]


def neighbours(super_tokens: Tensor) -> Tensor:
    """Gather the nine super tokens around each cell: (B, p, q, C) -> (B, p, q, 9, C), zeros outside the image ("Unfold")."""
    padded = F.pad(super_tokens, (0, 0, 1, 1, 1, 1))
    return rearrange(padded.unfold(1, 3, 1).unfold(2, 3, 1), "B p q C i j -> B p q (i j) C")


def sum_neighbours(parts: Tensor) -> Tensor:
    """Add what every cell gives to its nine super tokens: (B, p, q, 9, C) -> (B, p, q, C), the adjoint of `neighbours` ("Fold").

    Half precision is added up in float32.
    """
    p, q = parts.shape[1:3]
    # Super token (y, x) receives part (2 - i, 2 - j) of cell (y + i - 1, x + j - 1). Adding slices of one padded tensor, instead
    # of adding into slices of the result, is what a compiler fuses: the other way takes it minutes.
    padded = F.pad(parts, (0, 0, 0, 0, 1, 1, 1, 1))
    total = torch.zeros_like(parts[..., 0, :], dtype=torch.promote_types(parts.dtype, torch.float32))
    for i in range(3):
        for j in range(3):
            total += padded[:, i : i + p, j : j + q, 8 - 3 * i - j]
    return total.to(parts.dtype)


def associate(cells: Tensor, super_tokens: Tensor) -> Tensor:
    """Equation 1, sparse: association Q (B, p, q, n, 9) of the tokens (B, p, q, n, C) with their super tokens (B, p, q, C).

    The scale is C ** -0.5 over all channels. A neighbour outside the image is a zero vector and keeps its share (logit 0).
    In memory Q lies as (B, p, q, 9, n): a softmax over the last of nine is twenty times slower on a CPU than over the one before.
    """
    affinity = neighbours(super_tokens * cells.shape[-1] ** -0.5) @ cells.transpose(-1, -2)
    return affinity.softmax(-2).transpose(-1, -2)


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, association: Tensor, cells: Tensor) -> Tensor:
        ctx.save_for_backward(association)
        return _aggregate(association, cells)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (association,) = ctx.saved_tensors
        return None, _upsample(association.to(grads[0].dtype), grads[0])


class _Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, association: Tensor, super_tokens: Tensor) -> Tensor:
        ctx.save_for_backward(association)
        return _upsample(association, super_tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (association,) = ctx.saved_tensors
        return None, _aggregate(association.to(grads[0].dtype), grads[0])


def _aggregate(association: Tensor, cells: Tensor) -> Tensor:
    return sum_neighbours(association.transpose(-1, -2) @ cells)


def _upsample(association: Tensor, super_tokens: Tensor) -> Tensor:
    return association @ neighbours(super_tokens)


def _needs_own_gradient() -> bool:
    """Whether a gradient may be asked for. `torch.jit.trace` records autograd functions as what it cannot compare: none there."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing()


def aggregate(association: Tensor, cells: Tensor) -> Tensor:
    """Equation 2: super tokens (B, p, q, C), each the mean of the tokens around it (B, p, q, n, C) by Q (B, p, q, n, 9)."""
    with torch.no_grad():
        dtype = torch.promote_types(association.dtype, torch.float32)
        weight = sum_neighbours(association.sum(3, dtype=dtype)[..., None]) + EPS
    total = _Aggregate.apply(association, cells) if _needs_own_gradient() else _aggregate(association, cells)
    return (total / weight).to(cells.dtype)


def sample(cells: Tensor, num_iters: int = 1) -> tuple[Tensor, Tensor]:
    """Super Token Sampling: super tokens (B, p, q, C) and association Q (B, p, q, n, 9) of the tokens (B, p, q, n, C).

    The gradient flows through the last aggregation alone.
    """
    with torch.no_grad():
        super_tokens = cells.mean(3)
        association = associate(cells, super_tokens)
        for _ in range(num_iters - 1):
            association = associate(cells, aggregate(association, cells))
    return aggregate(association, cells), association


def upsample(association: Tensor, super_tokens: Tensor) -> Tensor:
    """Token Upsampling: tokens (B, p, q, n, C), each the mix of its nine super tokens (B, p, q, C) by Q (B, p, q, n, 9)."""
    return _Upsample.apply(association, super_tokens) if _needs_own_gradient() else _upsample(association, super_tokens)


class SuperTokenAttention(nn.Module):
    """Super Token Attention, (B, C, H, W) -> (B, C, H, W) for any H and W.

    With a grid of 1 every token is its own super token: ordinary multi-head self-attention (section B, stages 3 and 4).

    Args:
        dim: channels C.
        num_heads: heads of the attention among super tokens; divides ``dim``.
        grid_size: tokens of a cell, h and w.
        num_iters: how often association and aggregation are repeated.
    """

    kernels = False  # set by `kernels.use_kernels`

    def __init__(self, dim: int, num_heads: int, grid_size: int | tuple[int, int] = 1, num_iters: int = 1) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.grid_size = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        self.num_iters = num_iters
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.grid_size == (1, 1):
            return self.attend(x)
        if self.kernels and kernels.serve(x):
            return self._forward_by_kernels(x)
        cells = to_cells(x, self.grid_size)
        super_tokens, association = sample(cells, self.num_iters)
        super_tokens = self.attend(super_tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return from_cells(upsample(association, super_tokens), self.grid_size, (x.shape[2], x.shape[3]))

    def _forward_by_kernels(self, x: Tensor) -> Tensor:
        super_tokens, association = operators.sample(x, self.grid_size, self.num_iters)
        super_tokens = self.attend(super_tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return operators.ops.upsample(association, super_tokens, *self.grid_size, x.shape[2], x.shape[3])

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head self-attention among the p * q places of (B, C, p, q)."""
        if self.kernels and x.device.type == "cpu" and kernels.serve(x, self.head_dim):  # a GPU has its own
            return self.proj(operators.ops.self_attention(self.qkv(x), self.num_heads)[0])
        q, k, v = self.split_heads(x)
        y = F.scaled_dot_product_attention(q, k, v)
        y = rearrange(y, "B heads (p q) d -> B p q (heads d)", p=x.shape[2])
        return self.proj(y.permute(0, 3, 1, 2))

    def split_heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, p q, d) of (B, C, p, q). The 3 C channels hold head after head its q, k and v."""
        # Fused attention wants the d channels of a head beside each other; otherwise it makes a matrix of all pairs.
        x = x.contiguous(memory_format=torch.channels_last)
        qkv = rearrange(self.qkv(x), "B (heads three d) p q -> B (p q) heads three d", heads=self.num_heads, three=3)
        # Split where they lie, so that their gradients are put beside each other in one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
        return q, k, v
