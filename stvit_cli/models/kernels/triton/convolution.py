"""The position encoding of `operators`, and GELU before it, on a GPU, by Triton.

Shapes: tokens (B, H, W, C), contiguous; the depth-wise kernel (C, 1, 3, 3). Sums are in float32.

The tokens are divided into strips of `COLUMNS` columns and some rows. A program works on `GROUPS` strips, wherever they lie, and
`CHANNELS` channels of each, which are contiguous in memory. It goes down its strips row by row. The columns of a strip are
separate tensors (GROUPS, CHANNELS) in registers, so that a token is read, and its GELU computed, once for the strip. There are
no atomic sums: the order of additions is a function of the shape alone, and the same in every run.

`size` is (H, W, C) in all functions, `c` the channels of the program.
"""

# The tuples in kernels are Triton's, which grow while a loop is unrolled.
# mypy: disable-error-code="assignment, misc, var-annotated"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stvit_cli.models.kernels.triton.layout import channels_last

COLUMNS = tl.constexpr(7)
"""Divides the widths 56, 28, 14 and 7 of the stages at 224 pixels; as they are unrolled, it needs not be a power of two."""
TILE = 256
"""GROUPS * CHANNELS: two values for each thread of four warps."""
ROWS = (56, 28, 14, 7)
"""Rows of a strip: many, as two more are read beside them and each strip has sums of its own to be written; but few enough for
`PROGRAMS`, so that a GPU is full."""
PROGRAMS = 1024
SUMS = tl.constexpr(11)
"""The sums of a program in the backward pass, for each channel: nine of the kernel, row by row, then the bias, then the shift."""


@triton.jit
def _strips(rows, strips, size, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the strips of this program: offset (GROUPS, CHANNELS), row, end of the image, column, channels (1, CHANNELS).

    Row and column are those of a strip's first token, (GROUPS, 1). The last strips of the last program may not exist: then the
    image ends at row 0.
    """
    height, width, channels = size
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, rows)
    strip = (tl.program_id(0) * GROUPS + tl.arange(0, GROUPS))[:, None]
    image = strip // (across * down)
    first, column = strip // across % down * rows, strip % across * COLUMNS
    bottom = tl.where(strip < strips, height, 0)
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    offset = ((image.to(tl.int64) * height + first) * width + column) * channels
    return offset + c, first, bottom, column, c


@triton.jit
def _load(at, first, bottom, column, c, i, k, size):
    """Load token ``k`` of row ``i`` of the strips in float32; zeros outside the image."""
    _, width, channels = size
    inside = (first + i >= 0) & (first + i < bottom) & (column + k >= 0) & (column + k < width) & (c < channels)
    return tl.load(at + (i * width + k) * channels, mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def _load_row(at, first, bottom, column, c, i, size):
    """Load row ``i`` of the strips: COLUMNS + 2 tensors, the first and the last from beside the strip."""
    xs = ()
    for k in tl.static_range(COLUMNS + 2):
        x, _ = _load(at, first, bottom, column, c, i, k - 1, size)
        xs = xs + (x,)  # noqa: RUF005 (Triton has no starred expressions)
    return xs


@triton.jit
def _load_channels(vector, c, size, stride: tl.constexpr = 1):
    """Load one number for each channel in float32: (1, CHANNELS)."""
    return tl.load(vector + c * stride, mask=c < size[2], other=0.0).to(tl.float32)


@triton.jit
def _load_kernel(weight, c, size):
    """Load the depth-wise kernel: nine tensors (1, CHANNELS)."""
    w = ()
    for k in tl.static_range(9):
        w = w + (_load_channels(weight + k, c, size, stride=9),)  # noqa: RUF005
    return w


@triton.jit
def _normal(x):
    """Return the distribution function of the normal distribution: GELU(x) is x times it."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _density(x):
    """Return the derivative of `_normal`."""
    return 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _convolve_kernel(
    tokens, shift, weight, bias, result, strips, rows, height, width, channels,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Depth-wise 3 x 3 convolution of the tokens, or of GELU(tokens + shift), plus what is convolved where RESIDUAL.

    A row contributes to three rows of the result, its own and the two beside it. `above` is complete once the row has been
    added, and is written; then `here` becomes `above` and `below` becomes `here`.
    """
    size = height, width, channels
    offset, first, bottom, column, c = _strips(rows, strips, size, GROUPS, CHANNELS)
    at, to = tokens + offset, result + offset
    w = _load_kernel(weight, c, size)
    add = _load_channels(shift, c, size)  # not used without GELU
    add_bias = _load_channels(bias, c, size)
    above, here = (), ()
    for _ in tl.static_range(COLUMNS):
        above = above + (tl.zeros((GROUPS, CHANNELS), tl.float32),)  # noqa: RUF005
        here = here + (tl.zeros((GROUPS, CHANNELS), tl.float32),)  # noqa: RUF005
    for i in range(-1, rows + 1):
        xs = ()
        for k in tl.static_range(COLUMNS + 2):
            x, inside = _load(at, first, bottom, column, c, i, k - 1, size)
            if GELU:
                x += add
                x = tl.where(inside, x * _normal(x), 0.0)
            xs = xs + (x,)  # noqa: RUF005
        sums, below = (), ()
        for k in tl.static_range(COLUMNS):
            left, centre, right = xs[k], xs[k + 1], xs[k + 2]
            y = above[k] + (w[6] * left + w[7] * centre + w[8] * right)
            row, inside = first + i - 1, (i > 0) & (column + k < width) & (c < channels)
            tl.store(
                to + ((i - 1) * width + k) * channels,
                (y + add_bias).to(result.dtype.element_ty),
                mask=inside & (row < bottom),
            )
            own = here[k] + (w[3] * left + w[4] * centre + w[5] * right)
            sums = sums + (own + centre if RESIDUAL else own,)  # noqa: RUF005
            below = below + (w[0] * left + w[1] * centre + w[2] * right,)  # noqa: RUF005
        above, here = sums, below


@triton.jit
def _convolve_backward_kernel(
    grad, tokens, shift, weight, grad_tokens, sums, strips, rows, height, width, channels,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the tokens, and the program's SUMS for the gradients of kernel, bias and shift.

    The nine gradients around a token make the gradient of the token, with the kernel turned round, and with the token itself
    the gradient of the kernel. Three rows of gradients are carried.
    """
    size = height, width, channels
    offset, first, bottom, column, c = _strips(rows, strips, size, GROUPS, CHANNELS)
    at, of_y, to = tokens + offset, grad + offset, grad_tokens + offset
    w = _load_kernel(weight, c, size)
    add = _load_channels(shift, c, size)  # not used without GELU
    totals = ()
    for _ in tl.static_range(SUMS):
        totals = totals + (tl.zeros((GROUPS, CHANNELS), tl.float32),)  # noqa: RUF005
    above = _load_row(of_y, first, bottom, column, c, -1, size)
    here = _load_row(of_y, first, bottom, column, c, 0, size)
    for i in range(rows):
        below = _load_row(of_y, first, bottom, column, c, i + 1, size)
        for k in tl.static_range(COLUMNS):
            around = (
                below[k + 2], below[k + 1], below[k],
                here[k + 2], here[k + 1], here[k],
                above[k + 2], above[k + 1], above[k],
            )  # fmt: skip
            x, inside = _load(at, first, bottom, column, c, i, k, size)
            h = x
            if GELU:
                x += add
                share = _normal(x)
                h = tl.where(inside, x * share, 0.0)
            g = here[k + 1]
            of_x = g if RESIDUAL else tl.zeros((GROUPS, CHANNELS), tl.float32)
            added = ()
            for j in tl.static_range(9):
                of_x += w[j] * around[j]
                added = added + (totals[j] + h * around[j],)  # noqa: RUF005
            if GELU:
                of_x = tl.where(inside, of_x * (share + x * _density(x)), 0.0)
            tl.store(to + (i * width + k) * channels, of_x.to(grad_tokens.dtype.element_ty), mask=inside)
            totals = added + (totals[9] + tl.where(inside, g, 0.0), totals[10] + of_x)  # noqa: RUF005
        above, here = here, below
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    sums += tl.program_id(0).to(tl.int64) * SUMS * channels + channel
    for k in tl.static_range(SUMS):
        tl.store(sums + k * channels, tl.sum(totals[k], 0), mask=channel < channels)


def _plan(tokens: Tensor) -> tuple[tuple[int, int], tuple[int, int], dict[str, int]]:
    """Return for (B, H, W, C) the grid of programs, the numbers of strips and of rows of a strip, and the sides of a tile."""
    b, height, width, channels = tokens.shape
    power = channels & -channels  # the largest power of two that divides C: no thread without a channel
    wide = min(TILE, power if power >= 32 else triton.next_power_of_2(channels))
    groups, blocks = TILE // wide, triton.cdiv(channels, wide)
    for most in ROWS:
        down = triton.cdiv(height, most)
        strips = b * down * triton.cdiv(width, COLUMNS.value)
        if triton.cdiv(strips, groups) * blocks >= PROGRAMS:
            break
    rows = triton.cdiv(height, down)  # bands of equal height
    return (triton.cdiv(strips, groups), blocks), (strips, rows), {"GROUPS": groups, "CHANNELS": wide}


def _convolve(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    tokens = channels_last(x)
    y = torch.empty_like(tokens)
    if y.numel():
        grid, strips, blocks = _plan(tokens)
        _convolve_kernel[grid](
            tokens, bias if shift is None else shift, weight.contiguous(), bias, y, *strips, *tokens.shape[1:],
            shift is not None, residual, **blocks,
        )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def _convolve_backward(
    grad: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, shift, weight and bias."""
    tokens, unused = channels_last(x), weight
    grad_x = torch.empty_like(tokens)
    grid, strips, blocks = _plan(tokens) if tokens.numel() else ((0, 0), (0, 0), {})
    sums = torch.empty(grid[0], SUMS.value, tokens.shape[3], device=x.device, dtype=torch.float32)
    if tokens.numel():
        _convolve_backward_kernel[grid](
            channels_last(grad), tokens, unused if shift is None else shift, weight.contiguous(), grad_x, sums, *strips,
            *tokens.shape[1:], shift is not None, residual, **blocks,
        )  # fmt: skip
    totals = sums.sum(0).to(weight.dtype)
    grad_weight = totals[:9].t().contiguous().view(weight.shape)
    return grad_x.permute(0, 3, 1, 2), totals[10].clone(), grad_weight, totals[9].clone()


def conv_pos_enc(x: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    """The depthwise convolution of the positional encoding; the contract is in `operators`."""
    return _convolve(x, None, weight, bias, residual)


def conv_pos_enc_backward(grad: Tensor, x: Tensor, weight: Tensor, residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `conv_pos_enc`."""
    grad_x, _, grad_weight, grad_bias = _convolve_backward(grad, x, None, weight, residual)
    return grad_x, grad_weight, grad_bias


def gelu_conv_pos_enc(u: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    """GELU, then the depthwise convolution of the ConvFFN; the contract is in `operators`."""
    return _convolve(u, shift, weight, bias, residual)


def gelu_conv_pos_enc_backward(
    grad: Tensor, u: Tensor, shift: Tensor, weight: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `gelu_conv_pos_enc`."""
    return _convolve_backward(grad, u, shift, weight, residual)
