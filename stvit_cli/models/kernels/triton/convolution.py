"""The position encoding of `operators`, and GELU before it, on a GPU, by Triton.

Shapes: tokens (B, H, W, C), contiguous; the depth-wise kernel (C, 1, 3, 3). Sums are in float32.

A program works on a strip: `ROWS` rows of `COLUMNS` columns and `CHANNELS` channels of one image. It goes down the strip and
reads each row once. A row contributes to three rows of the result, its own and the two beside it, so three partial sums are
carried: `above` is complete once the row has been added, and is written; then `here` becomes `above` and `below` becomes `here`.

`size` is (H, W, C) in all functions, `c` the channels of the program, `columns` the columns of its strip.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stvit_cli.models.kernels.triton.layout import channels_last

ROWS, COLUMNS, CHANNELS = tl.constexpr(14), tl.constexpr(8), tl.constexpr(64)
SUMS = tl.constexpr(11)
"""The sums of a strip in the backward pass, for each channel: nine of the kernel, row by row, then the bias, then the shift."""


@triton.jit
def _strip(size):
    """Return the strip of this program: its image, its first row, the row after its last, its columns, its channels."""
    height, width, _ = size
    bands, strips = tl.cdiv(height, ROWS), tl.cdiv(width, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    first = program // strips % bands * ROWS
    columns = program % strips * COLUMNS + tl.arange(0, COLUMNS)
    return (
        program // (strips * bands),
        first,
        tl.minimum(first + ROWS, height),
        columns,
        tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS),
    )


@triton.jit
def _at(row, columns, c, size):
    """Return the offsets (COLUMNS, CHANNELS) of tokens in their image, and which of them are inside it."""
    height, width, channels = size
    inside = (columns >= 0) & (columns < width) & (row >= 0) & (row < height)
    return (row * width + columns[:, None]) * channels + c[None, :], inside[:, None] & (c < channels)[None, :]


@triton.jit
def _load_row(tokens, row, columns, c, size):
    """Load the tokens of a row in float32, zeros outside the image; ``tokens`` points to the image."""
    at, inside = _at(row, columns, c, size)
    return tl.load(tokens + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_values(tokens, shift, row, columns, c, size, GELU: tl.constexpr):
    """Load what is convolved: the tokens of a row, or GELU(tokens + shift); zeros outside the image."""
    x = _load_row(tokens, row, columns, c, size)
    if GELU:
        _, inside = _at(row, columns, c, size)
        x += shift[None, :]
        x = tl.where(inside, 0.5 * x * (1 + tl.erf(x * 0.7071067811865476)), 0.0)
    return x


@triton.jit
def _gelu_slope(x):
    """Return the derivative of GELU: P(x) + x P'(x), with P the normal distribution."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _load_channels(vector, c, size, stride: tl.constexpr = 1):
    """Load one number for each channel in float32."""
    return tl.load(vector + c * stride, mask=c < size[2], other=0.0).to(tl.float32)


@triton.jit
def _no_sums():
    return tl.zeros((COLUMNS, CHANNELS), dtype=tl.float32)


@triton.jit
def _add_column(sums, x, weight, j, c, size, FLIPPED: tl.constexpr):
    """Add what a row ``x`` gives to the three rows of the result by column ``j`` of the kernel.

    The row above takes it by the kernel's last row, the row below by its first; with FLIPPED, the transposed convolution of the
    backward pass, the other way round.
    """
    above, here, below = sums
    first = _load_channels(weight + j, c, size, stride=9)[None, :]
    middle = _load_channels(weight + 3 + j, c, size, stride=9)[None, :]
    last = _load_channels(weight + 6 + j, c, size, stride=9)[None, :]
    if FLIPPED:
        first, last = last, first
    return above + x * last, here + x * middle, below + x * first


@triton.jit
def _store_row(result, values, row, columns, c, size, mask):
    at, inside = _at(row, columns, c, size)
    tl.store(result + at, values.to(result.dtype.element_ty), mask=inside & mask)


@triton.jit
def _convolve_kernel(
    tokens, shift, weight, bias, result, height, width, channels, GELU: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    """Depth-wise 3 x 3 convolution of the tokens, or of GELU(tokens + shift), plus what is convolved where RESIDUAL."""
    size = height, width, channels
    image, first, end, columns, c = _strip(size)
    tokens += image * height * width * channels
    result += image * height * width * channels
    add = _load_channels(shift, c, size)  # not used without GELU
    add_bias = _load_channels(bias, c, size)[None, :]
    above, here = _no_sums(), _no_sums()
    for row in range(first - 1, end + 1):
        below = _no_sums()
        for j in tl.static_range(3):
            x = _load_values(tokens, add, row, columns + j - 1, c, size, GELU)
            above, here, below = _add_column((above, here, below), x, weight, j, c, size, False)
            if RESIDUAL and j == 1:
                here += x
        _store_row(result, above + add_bias, row - 1, columns, c, size, row > first)
        above, here = here, below


@triton.jit
def _add_products(sums, x, grad_above, grad_here, grad_below):
    """Add to the sums of one column of the kernel (its first, middle and last row) the products of a row of tokens.

    In the convolution the row ``x`` meets the kernel's first row in the result below it, and its last in the result above.
    """
    first, middle, last = sums
    return first + tl.sum(grad_below * x, 0), middle + tl.sum(grad_here * x, 0), last + tl.sum(grad_above * x, 0)


@triton.jit
def _convolve_backward_kernel(
    grad, tokens, shift, weight, grad_tokens, sums, height, width, channels, GELU: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    """Write the gradient of the tokens, and the strip's SUMS for the gradients of kernel, bias and shift."""
    size = height, width, channels
    image, first, end, columns, c = _strip(size)
    grad += image * height * width * channels
    tokens += image * height * width * channels
    grad_tokens += image * height * width * channels
    add = _load_channels(shift, c, size)  # not used without GELU
    zero = tl.zeros((CHANNELS,), tl.float32)
    left, centre, right, of_bias, of_shift = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero), zero, zero
    above, here = _no_sums(), _no_sums()
    for row in range(first - 1, end + 1):
        # The gradient of the tokens: the transposed convolution of the gradient, times the slope of GELU.
        below = _no_sums()
        for j in tl.static_range(3):
            g = _load_row(grad, row, columns + 1 - j, c, size)
            above, here, below = _add_column((above, here, below), g, weight, j, c, size, True)
            if RESIDUAL and j == 1:
                here += g
        if GELU:
            above *= _gelu_slope(_load_row(tokens, row - 1, columns, c, size) + add[None, :])
            _, inside = _at(row - 1, columns, c, size)
            of_shift += tl.sum(tl.where(inside & (row > first), above, 0.0), 0)
        _store_row(grad_tokens, above, row - 1, columns, c, size, row > first)
        above, here = here, below
        # The gradient of the kernel: products of this row of tokens with the strip's own gradient in the rows around it.
        grad_above, grad_here, grad_below = (
            _load_own(grad, row - 1, columns, c, size, first, end),
            _load_own(grad, row, columns, c, size, first, end),
            _load_own(grad, row + 1, columns, c, size, first, end),
        )
        of_bias += tl.sum(grad_here, 0)
        left = _add_products(left, _load_values(tokens, add, row, columns - 1, c, size, GELU), grad_above, grad_here, grad_below)
        centre = _add_products(centre, _load_values(tokens, add, row, columns, c, size, GELU), grad_above, grad_here, grad_below)
        right = _add_products(
            right, _load_values(tokens, add, row, columns + 1, c, size, GELU), grad_above, grad_here, grad_below
        )
    sums += tl.program_id(0).to(tl.int64) * SUMS * channels
    for i in tl.static_range(3):
        _store_channels(sums, 3 * i, left[i], c, channels)
        _store_channels(sums, 3 * i + 1, centre[i], c, channels)
        _store_channels(sums, 3 * i + 2, right[i], c, channels)
    _store_channels(sums, 9, of_bias, c, channels)
    _store_channels(sums, 10, of_shift, c, channels)


@triton.jit
def _load_own(grad, row, columns, c, size, first, end):
    """Load a row of the gradient, zeros where it belongs to another strip."""
    at, inside = _at(row, columns, c, size)
    return tl.load(grad + at, mask=inside & (row >= first) & (row < end), other=0.0).to(tl.float32)


@triton.jit
def _store_channels(sums, k, values, c, channels):
    tl.store(sums + k * channels + c, values, mask=c < channels)


def _grid(tokens: Tensor) -> tuple[int, int]:
    """Return the numbers of programs for (B, H, W, C): strips of all images, blocks of channels."""
    b, height, width, channels = tokens.shape
    strips = b * triton.cdiv(height, ROWS.value) * triton.cdiv(width, COLUMNS.value)
    return strips, triton.cdiv(channels, CHANNELS.value)


def _convolve(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    tokens = channels_last(x)
    y = torch.empty_like(tokens)
    _convolve_kernel[_grid(tokens)](
        tokens, bias if shift is None else shift, weight.contiguous(), bias, y, *tokens.shape[1:], shift is not None, residual
    )
    return y.permute(0, 3, 1, 2)


def _convolve_backward(
    grad: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, shift, weight and bias."""
    tokens, unused = channels_last(x), weight
    grad_x = torch.empty_like(tokens)
    grid = _grid(tokens)
    sums = torch.empty(grid[0], SUMS.value, tokens.shape[3], device=x.device, dtype=torch.float32)
    _convolve_backward_kernel[grid](
        channels_last(grad), tokens, unused if shift is None else shift, weight.contiguous(), grad_x, sums, *tokens.shape[1:],
        shift is not None, residual,
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
