"""Super token sampling and upsampling of `operators` on a GPU, by Triton.

Shapes as in `operators`. One program works on one cell and reads its tokens once, in the channels-last image: tokens are not
copied into cells, and the association is not read back.

- `_gather_kernel`: association and aggregation. Reads tokens and nine super tokens; writes Q, and what the cell contributes to
  the nine sums.
- `_fold_kernel`: adds these contributions up, each super token by itself: no atomic sums, the same order in every run.
- `_spread_kernel`: upsampling. Reads Q and nine super tokens, writes tokens.

With Q constant, the backward pass of each is the other kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stvit_cli.models.kernels.triton.layout import channels_last
from stvit_cli.models.neighbours import EPS

NEAR = tl.constexpr(16)  # nine neighbours, padded to the smallest side of a matrix product


@triton.jit
def _positions(cell, num_rows, num_columns, height, width, h: tl.constexpr, w: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return for a cell: its image; rows, columns and mask of its tokens; indices and mask of its nine neighbours."""
    image = cell // (num_rows * num_columns)
    cell_row = cell // num_columns % num_rows
    cell_column = cell % num_columns
    token = tl.arange(0, BLOCK_N)
    row, column = cell_row * h + token // w, cell_column * w + token % w
    inside = (token < h * w) & (row < height) & (column < width)
    near = tl.arange(0, NEAR)
    near_row, near_column = cell_row + near // 3 - 1, cell_column + near % 3 - 1
    exists = (near < 9) & (near_row >= 0) & (near_row < num_rows) & (near_column >= 0) & (near_column < num_columns)
    return image, row, column, inside, (image * num_rows + near_row) * num_columns + near_column, exists


@triton.jit
def _gather_kernel(
    tokens, super_tokens, association, parts, column_sums,
    height, width, channels, num_rows, num_columns, stride_b, stride_h, stride_w, scale,
    h: tl.constexpr, w: tl.constexpr, ASSOCIATE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write Q (9, n) if ASSOCIATE, else read it; write parts (9, C) = Q^T X of the cell, and if ASSOCIATE column_sums (9)."""
    cell = tl.program_id(0).to(tl.int64)
    image, row, column, inside, near_index, exists = _positions(cell, num_rows, num_columns, height, width, h, w, BLOCK_N)
    x = tokens + image * stride_b + row * stride_h + column * stride_w
    token, near = tl.arange(0, BLOCK_N), tl.arange(0, NEAR)
    q_at = association + (cell * 9 + near[:, None]) * (h * w) + token[None, :]
    valid = (near < 9)[:, None] & (token < h * w)[None, :]
    if ASSOCIATE:
        affinity = tl.zeros((NEAR, BLOCK_N), dtype=tl.float32)
        for start in range(0, channels, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            x_cell = tl.load(x[:, None] + c[None, :], mask=inside[:, None] & (c < channels)[None, :], other=0.0)
            centres_at = super_tokens + near_index[:, None] * channels + c[None, :]
            centres = tl.load(centres_at, mask=exists[:, None] & (c < channels)[None, :], other=0.0)
            affinity = tl.dot(centres, tl.trans(x_cell), affinity, input_precision="ieee")
        # A neighbour outside the image is a zero vector: logit 0. The padding beyond the ninth takes no part.
        affinity = tl.where((near < 9)[:, None], affinity * scale, float("-inf"))
        q = tl.exp(affinity - tl.max(affinity, 0)[None, :])
        q = tl.where(valid, q / tl.sum(q, 0)[None, :], 0.0).to(association.dtype.element_ty)
        tl.store(q_at, q, mask=valid)
        tl.store(column_sums + cell * 9 + near, tl.sum(q.to(tl.float32), 1), mask=near < 9)
    else:
        q = tl.load(q_at, mask=valid, other=0.0)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x_cell = tl.load(x[:, None] + c[None, :], mask=inside[:, None] & (c < channels)[None, :], other=0.0)
        part = tl.dot(q.to(x_cell.dtype), x_cell, input_precision="ieee")
        to = parts + (cell * 9 + near[:, None]) * channels + c[None, :]
        tl.store(to, part.to(parts.dtype.element_ty), mask=(near < 9)[:, None] & (c < channels)[None, :])


@triton.jit
def _spread_kernel(
    association, super_tokens, tokens,
    height, width, channels, num_rows, num_columns, stride_b, stride_h, stride_w,
    h: tl.constexpr, w: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the tokens of the cell, Q S with its nine super tokens S."""
    cell = tl.program_id(0).to(tl.int64)
    image, row, column, inside, near_index, exists = _positions(cell, num_rows, num_columns, height, width, h, w, BLOCK_N)
    y = tokens + image * stride_b + row * stride_h + column * stride_w
    token, near = tl.arange(0, BLOCK_N), tl.arange(0, NEAR)
    q_at = association + (cell * 9 + near[None, :]) * (h * w) + token[:, None]
    q = tl.load(q_at, mask=(token < h * w)[:, None] & (near < 9)[None, :], other=0.0)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        centres_at = super_tokens + near_index[:, None] * channels + c[None, :]
        centres = tl.load(centres_at, mask=exists[:, None] & (c < channels)[None, :], other=0.0)
        mixed = tl.dot(q.to(centres.dtype), centres, input_precision="ieee")
        to = y[:, None] + c[None, :]
        tl.store(to, mixed.to(tokens.dtype.element_ty), mask=inside[:, None] & (c < channels)[None, :])


@triton.jit
def _fold_kernel(
    parts, column_sums, result, weight,
    num_cells, channels, num_rows, num_columns, eps,
    NORMALIZE: tl.constexpr, CELLS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the sums of nine parts; if NORMALIZE divided by the sum of nine column sums plus eps, which is written to weight."""
    cell = tl.program_id(0).to(tl.int64) * CELLS + tl.arange(0, CELLS)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, column = cell // num_columns % num_rows, cell % num_columns
    total, mass = tl.zeros((CELLS, BLOCK_C), tl.float32), tl.zeros((CELLS,), tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            exists = (row + i > 0) & (row + i <= num_rows) & (column + j > 0) & (column + j <= num_columns) & (cell < num_cells)
            source = (cell + (i - 1) * num_columns + j - 1) * 9 + 8 - 3 * i - j
            at = parts + source[:, None] * channels + c[None, :]
            total += tl.load(at, mask=exists[:, None] & (c < channels)[None, :], other=0.0).to(tl.float32)
            if NORMALIZE:
                mass += tl.load(column_sums + source, mask=exists, other=0.0)
    if NORMALIZE:
        mass += eps
        total = total / mass[:, None]
        tl.store(weight + cell, mass, mask=(cell < num_cells) & (tl.program_id(1) == 0))
    inside = (cell < num_cells)[:, None] & (c < channels)[None, :]
    tl.store(result + cell[:, None] * channels + c[None, :], total.to(result.dtype.element_ty), mask=inside)


TILE, FOLDED = {2: 4096, 4: 2048}, 1024
"""Numbers of a tile that the registers of four warps hold, by bytes of a token's number; and of a tile of sums."""


def _blocks(grid_size: tuple[int, int], channels: int, itemsize: int) -> dict[str, int]:
    """Return the sides of a tile: the tokens of a cell, and as many channels as the registers hold."""
    block_n = max(16, triton.next_power_of_2(grid_size[0] * grid_size[1]))
    return {"BLOCK_N": block_n, "BLOCK_C": min(max(16, triton.next_power_of_2(channels)), max(16, TILE[itemsize] // block_n))}


def _gather(
    x: Tensor, super_tokens: Tensor | None, association: Tensor, grid_size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """Return the super tokens Q^T x (B, p, q, C), and the sums of the columns of Q, plus EPS, by which they are divided.

    With super tokens, Q is computed and written to ``association`` (B, p, q, 9, n). Without, it is read from there, there are no
    column sums, and nothing is divided.
    """
    tokens = channels_last(x)
    b, height, width, channels = tokens.shape
    p, q = association.shape[1:3]
    normalize = super_tokens is not None
    result = torch.empty(b, p, q, channels, device=x.device, dtype=x.dtype)
    weight = torch.empty(b, p, q, 1, device=x.device, dtype=torch.float32) if normalize else None
    if not tokens.numel():
        return result, weight
    parts = torch.empty(b, p, q, 9, channels, device=x.device, dtype=x.dtype)
    column_sums = torch.empty(b, p, q, 9, device=x.device, dtype=torch.float32) if normalize else association
    _gather_kernel[(b * p * q,)](
        tokens, association if super_tokens is None else super_tokens, association, parts, column_sums,
        height, width, channels, p, q, *tokens.stride()[:3], channels**-0.5,
        *grid_size, normalize, **_blocks(grid_size, channels, x.element_size()),
    )  # fmt: skip
    block_c = min(128, max(16, triton.next_power_of_2(channels)))
    cells = FOLDED // block_c
    _fold_kernel[(triton.cdiv(b * p * q, cells), triton.cdiv(channels, block_c))](
        parts, column_sums, result, result if weight is None else weight,
        b * p * q, channels, p, q, EPS, normalize, CELLS=cells, BLOCK_C=block_c,
    )  # fmt: skip
    return result, weight


def associate_and_aggregate(x: Tensor, super_tokens: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 1 and 2; the contract is in `operators`."""
    association = x.new_empty(*super_tokens.shape[:3], 9, h * w)
    result, weight = _gather(x, super_tokens.contiguous(), association, (h, w))
    assert weight is not None
    return result, association, weight


def aggregate(association: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    """Equation 2, not normalized; the contract is in `operators`."""
    return _gather(x, None, association, (h, w))[0]


def upsample(association: Tensor, super_tokens: Tensor, h: int, w: int, height: int, width: int) -> Tensor:
    """Token Upsampling; the contract is in `operators`."""
    b, p, q, channels = super_tokens.shape
    y = super_tokens.new_empty(b, height, width, channels)
    if y.numel():
        _spread_kernel[(b * p * q,)](
            association, super_tokens.contiguous(), y,
            height, width, channels, p, q, *y.stride()[:3], h, w, **_blocks((h, w), channels, y.element_size()),
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)
