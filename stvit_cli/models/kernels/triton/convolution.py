"""The position encoding, and GELU before it, of `operators` on a GPU, by Triton.

A program goes down a strip of an image, some columns and channels wide: it reads each row once, and its neighbours to the left
and right from the cache. Sums are in float32. B C H W as in `operators`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stvit_cli.models.kernels.triton.attention import channels_last


@triton.jit
def _value(tokens, shift, inside, GELU: tl.constexpr):
    """Tokens in float32, after GELU where asked, zeros where not inside."""
    x = tl.load(tokens, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        x += shift[None, :]
        x = tl.where(inside, 0.5 * x * (1 + tl.erf(x * 0.7071067811865476)), 0.0)
    return x


@triton.jit
def _slope(tokens, shift, inside):
    """The slope of GELU."""
    x = tl.load(tokens, mask=inside, other=0.0).to(tl.float32) + shift[None, :]
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _add_sums(near, under, level, over, top, mid, low):
    """The sums of three taps of a column of the kernel, with what a row of tokens adds to them."""
    return top + tl.sum(under * near, 0), mid + tl.sum(level * near, 0), low + tl.sum(over * near, 0)


@triton.jit
def _strip(height, width, channels, bands, strips, BAND: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of a program: its image, rows, columns and channels."""
    number = tl.program_id(0).to(tl.int64)
    first = number // strips % bands * BAND
    column = number % strips * BLOCK_X + tl.arange(0, BLOCK_X)
    return (
        number // (strips * bands),
        first,
        tl.minimum(first + BAND, height),
        column,
        tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C),
    )


@triton.jit
def _convolve_kernel(
    tokens, shift, weight, bias, result,
    height, width, channels, bands, strips, stride_b, stride_h, stride_w,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, BAND: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Depth-wise 3 x 3, down a strip of the image: each row is read once and gives its part to three rows of the result."""
    image, first, last, column, c = _strip(height, width, channels, bands, strips, BAND, BLOCK_X, BLOCK_C)
    there = (c < channels)[None, :]
    add = tl.load(shift + c, mask=c < channels, other=0.0).to(tl.float32) if GELU else 0.0
    of_bias = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    above = tl.zeros((BLOCK_X, BLOCK_C), dtype=tl.float32)
    here = tl.zeros((BLOCK_X, BLOCK_C), dtype=tl.float32)
    for row in range(first - 1, last + 1):
        below = tl.zeros((BLOCK_X, BLOCK_C), dtype=tl.float32)
        for j in tl.static_range(3):
            x = column + j - 1
            inside = ((x >= 0) & (x < width) & (row >= 0) & (row < height))[:, None] & there
            near = _value(tokens + image * stride_b + row * stride_h + x[:, None] * stride_w + c[None, :], add, inside, GELU)
            tap = weight + c * 9 + j
            above += near * tl.load(tap + 6, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            here += near * tl.load(tap + 3, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            below += near * tl.load(tap, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            if RESIDUAL and j == 1:
                here += near
        to = result + ((image * height + row - 1) * width + column[:, None]) * channels + c[None, :]
        done = (row > first) & (column < width)[:, None] & there
        tl.store(to, (above + of_bias[None, :]).to(result.dtype.element_ty), mask=done)
        above, here = here, below


@triton.jit
def _convolve_backward_kernel(
    grad, tokens, shift, weight, result, sums,
    height, width, channels, bands, strips,
    grad_b, grad_h, grad_w, stride_b, stride_h, stride_w,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, BAND: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of the tokens, and the strip's sums (11, C): nine taps, the bias, the shift."""
    image, first, last, column, c = _strip(height, width, channels, bands, strips, BAND, BLOCK_X, BLOCK_C)
    there = (c < channels)[None, :]
    own = (column < width)[:, None] & there
    add = tl.load(shift + c, mask=c < channels, other=0.0).to(tl.float32) if GELU else 0.0
    g, u = grad + image * grad_b + c[None, :], tokens + image * stride_b + c[None, :]
    above = tl.zeros((BLOCK_X, BLOCK_C), dtype=tl.float32)
    here = tl.zeros((BLOCK_X, BLOCK_C), dtype=tl.float32)
    # Sums over the strip's columns and rows; tap k = 3 i + j is row i of the kernel, column j.
    top_0, top_1, top_2 = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    mid_0, mid_1, mid_2 = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    low_0, low_1, low_2 = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    of_bias, of_shift = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for row in range(first - 1, last + 1):
        below = tl.zeros((BLOCK_X, BLOCK_C), dtype=tl.float32)
        for j in tl.static_range(3):
            x = column - j + 1  # the kernel is turned
            inside = ((x >= 0) & (x < width) & (row >= 0) & (row < height))[:, None] & there
            near = tl.load(g + row * grad_h + x[:, None] * grad_w, mask=inside, other=0.0).to(tl.float32)
            tap = weight + c * 9 + j
            above += near * tl.load(tap, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            here += near * tl.load(tap + 3, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            below += near * tl.load(tap + 6, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            if RESIDUAL and j == 1:
                here += near
        done = (row > first) & own
        if GELU:
            above *= _slope(u + (row - 1) * stride_h + column[:, None] * stride_w, add, done)
            of_shift += tl.sum(tl.where(done, above, 0.0), 0)
        to = result + ((image * height + row - 1) * width + column[:, None]) * channels + c[None, :]
        tl.store(to, above.to(result.dtype.element_ty), mask=done)
        above, here = here, below
        # The strip's own rows of the gradient that meet this row of tokens, as upper, middle and lower row of the kernel.
        under = tl.load(g + (row + 1) * grad_h + column[:, None] * grad_w, mask=(row + 1 < last) & own, other=0.0).to(tl.float32)
        level = tl.load(g + row * grad_h + column[:, None] * grad_w, mask=(row >= first) & (row < last) & own, other=0.0).to(
            tl.float32
        )
        over = tl.load(g + (row - 1) * grad_h + column[:, None] * grad_w, mask=(row > first) & own, other=0.0).to(tl.float32)
        of_bias += tl.sum(level, 0)
        for j in tl.static_range(3):
            x = column + j - 1
            inside = ((x >= 0) & (x < width) & (row >= 0) & (row < height))[:, None] & there
            near = _value(u + row * stride_h + x[:, None] * stride_w, add, inside, GELU)
            if j == 0:
                top_0, mid_0, low_0 = _add_sums(near, under, level, over, top_0, mid_0, low_0)
            elif j == 1:
                top_1, mid_1, low_1 = _add_sums(near, under, level, over, top_1, mid_1, low_1)
            else:
                top_2, mid_2, low_2 = _add_sums(near, under, level, over, top_2, mid_2, low_2)
    to = sums + tl.program_id(0).to(tl.int64) * 11 * channels + c
    tl.store(to, top_0, mask=c < channels)
    tl.store(to + channels, top_1, mask=c < channels)
    tl.store(to + 2 * channels, top_2, mask=c < channels)
    tl.store(to + 3 * channels, mid_0, mask=c < channels)
    tl.store(to + 4 * channels, mid_1, mask=c < channels)
    tl.store(to + 5 * channels, mid_2, mask=c < channels)
    tl.store(to + 6 * channels, low_0, mask=c < channels)
    tl.store(to + 7 * channels, low_1, mask=c < channels)
    tl.store(to + 8 * channels, low_2, mask=c < channels)
    tl.store(to + 9 * channels, of_bias, mask=c < channels)
    tl.store(to + 10 * channels, of_shift, mask=c < channels)


CONVOLVE = {"BAND": 14, "BLOCK_X": 8, "BLOCK_C": 64}  # rows, columns and channels of a program


def _strips(tokens: Tensor) -> tuple[tuple[int, int], int, int]:
    """The grid of programs for tokens (B, H, W, C); bands of rows and strips of columns of an image."""
    b, height, width, channels = tokens.shape
    bands, strips = triton.cdiv(height, CONVOLVE["BAND"]), triton.cdiv(width, CONVOLVE["BLOCK_X"])
    return (b * bands * strips, triton.cdiv(channels, CONVOLVE["BLOCK_C"])), bands, strips


def _convolve(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    tokens = channels_last(x)
    grid, bands, strips = _strips(tokens)
    y = torch.empty(tokens.shape, device=x.device, dtype=x.dtype)
    _convolve_kernel[grid](
        tokens, bias if shift is None else shift, weight.contiguous(), bias, y,
        *tokens.shape[1:], bands, strips, *tokens.stride()[:3], shift is not None, residual, **CONVOLVE,
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def _convolve_backward(
    grad: Tensor, x: Tensor, shift: Tensor | None, weight: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_y, tokens = channels_last(grad), channels_last(x)
    grid, bands, strips = _strips(tokens)
    of_x = torch.empty(tokens.shape, device=x.device, dtype=x.dtype)
    channels = tokens.shape[3]
    sums = torch.empty(grid[0], 11, channels, device=x.device, dtype=torch.float32)
    _convolve_backward_kernel[grid](
        of_y, tokens, weight if shift is None else shift, weight.contiguous(), of_x, sums,
        *tokens.shape[1:], bands, strips, *of_y.stride()[:3], *tokens.stride()[:3], shift is not None, residual, **CONVOLVE,
    )  # fmt: skip
    totals = sums.sum(0).to(weight.dtype)
    of_weight = totals[:9].t().contiguous().view(weight.shape)
    return of_x.permute(0, 3, 1, 2), totals[10].clone(), of_weight, totals[9].clone()


def conv_pos_enc(x: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    """The depthwise convolution of the positional encoding; the contract is in `operators`."""
    return _convolve(x, None, weight, bias, residual)


def conv_pos_enc_backward(grad: Tensor, x: Tensor, weight: Tensor, residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `conv_pos_enc`."""
    of_x, _, of_weight, of_bias = _convolve_backward(grad, x, None, weight, residual)
    return of_x, of_weight, of_bias


def gelu_conv_pos_enc(u: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    """GELU, then the depthwise convolution of the ConvFFN; the contract is in `operators`."""
    return _convolve(u, shift, weight, bias, residual)


def gelu_conv_pos_enc_backward(
    grad: Tensor, u: Tensor, shift: Tensor, weight: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `gelu_conv_pos_enc`."""
    return _convolve_backward(grad, u, shift, weight, residual)
