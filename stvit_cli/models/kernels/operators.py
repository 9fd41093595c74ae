"""The operators ``stvit::...`` of the custom kernels: arguments, results, gradients. `cpu/` and `triton/` implement them.

Shapes as in `super_token`, but for the association Q, which is (B, p, q, 9, n) here, as it lies in memory. Tokens (B, C, H, W)
may have any memory format and are returned channels-last. No gradient can be differentiated again.

On a CPU tokens are float32 or bfloat16, and what is computed of them has their dtype. Weights, shifts and biases may have either.
All sums are in float32, and so are column sums, logarithms, means and 1 / standard deviations. A gradient has the dtype of what
it is the gradient of; that of a bias, the dtype of the weight.

| operator | arguments | results |
|---|---|---|
| `conv_pos_enc` | x (B, C, H, W), weight (C, 1, 3, 3), bias (C), residual | y = dw(x) + bias, + x if residual (B, C, H, W) |
| `conv_pos_enc_backward` | gradient of y, x, weight, residual | gradients of x, weight, bias |
| `conv_pos_enc_layer_norm` | x, weight, bias, residual, weight (C) and bias (C) of the norm, eps | y of `conv_pos_enc`, its \
layer norm over C (B, C, H, W), and its mean and 1 / standard deviation (B, H, W, 1); on a CPU |
| `gelu_conv_pos_enc` | u (B, C, H, W), shift (C), weight, bias, residual | `conv_pos_enc` of x = GELU(u + shift) |
| `gelu_conv_pos_enc_backward` | gradient of y, u, shift, weight, residual | gradients of u, shift, weight, bias |
| `associate_and_aggregate` | x, super tokens (B, p, q, C), h, w | equations 1 and 2: the new super tokens (B, p, q, C), \
their Q, and its column sums (B, p, q, 1) in float32 |
| `aggregate` | Q, x, h, w | Q^T x, not normalized (B, p, q, C) |
| `upsample` | Q, super tokens, h, w, H, W | tokens (B, C, H, W), the nine super tokens of each weighted by Q |
| `upsample_add` | Q, super tokens, x (B, C, H, W), h, w | x + `upsample`, in the dtype of x; on a CPU |
| `self_attention` | qkv (B, 3 C, H, W): q, k and v of the first head, of the second, ...; number of heads | y (B, C, H, W), and \
the logarithm of the softmax' denominator of each query (B, heads, H W); on a CPU |
| `self_attention_backward` | gradient of y, qkv, y, logarithms, number of heads | gradient of qkv; on a CPU |

With Q constant, the gradient of `associate_and_aggregate` is `upsample`, and that of `upsample` is `aggregate`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

library = torch.library.Library("stvit", "DEF")
for schema in (
    "conv_pos_enc(Tensor x, Tensor weight, Tensor bias, bool residual) -> Tensor",
    "conv_pos_enc_backward(Tensor grad, Tensor x, Tensor weight, bool residual) -> (Tensor, Tensor, Tensor)",
    "conv_pos_enc_layer_norm(Tensor x, Tensor weight, Tensor bias, bool residual, Tensor norm_weight, Tensor norm_bias,"
    " float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    "gelu_conv_pos_enc(Tensor u, Tensor shift, Tensor weight, Tensor bias, bool residual) -> Tensor",
    "gelu_conv_pos_enc_backward(Tensor grad, Tensor u, Tensor shift, Tensor weight, bool residual)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "associate_and_aggregate(Tensor x, Tensor super_tokens, int h, int w) -> (Tensor, Tensor, Tensor)",
    "aggregate(Tensor association, Tensor x, int h, int w) -> Tensor",
    "upsample(Tensor association, Tensor super_tokens, int h, int w, int height, int width) -> Tensor",
    "upsample_add(Tensor association, Tensor super_tokens, Tensor x, int h, int w) -> Tensor",
    "self_attention(Tensor qkv, int num_heads) -> (Tensor, Tensor)",
    "self_attention_backward(Tensor grad, Tensor qkv, Tensor y, Tensor logs, int num_heads) -> Tensor",
):
    library.define(schema)

ops = torch.ops.stvit


def _like_tokens(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return empty channels-last tokens of a size (B, C, H, W)."""
    b, channels, height, width = size
    return x.new_empty(b, height, width, channels).permute(0, 3, 1, 2)


@torch.library.register_fake("stvit::conv_pos_enc", lib=library)
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    return _like_tokens(x, x.shape)


@torch.library.register_fake("stvit::conv_pos_enc_backward", lib=library)
def _(grad: Tensor, x: Tensor, weight: Tensor, residual: bool) -> tuple[Tensor, ...]:
    return _like_tokens(x, x.shape), weight.new_empty(weight.shape), weight.new_empty(len(weight))


@torch.library.register_fake("stvit::conv_pos_enc_layer_norm", lib=library)
def _(
    x: Tensor, weight: Tensor, bias: Tensor, residual: bool, norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> tuple[Tensor, ...]:
    b, _, height, width = x.shape
    mean, rstd = (x.new_empty(b, height, width, 1, dtype=torch.float32) for _ in range(2))
    return _like_tokens(x, x.shape), _like_tokens(x, x.shape), mean, rstd


@torch.library.register_fake("stvit::gelu_conv_pos_enc", lib=library)
def _(u: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    return _like_tokens(u, u.shape)


@torch.library.register_fake("stvit::gelu_conv_pos_enc_backward", lib=library)
def _(grad: Tensor, u: Tensor, shift: Tensor, weight: Tensor, residual: bool) -> tuple[Tensor, ...]:
    c = len(weight)
    return _like_tokens(u, u.shape), shift.new_empty(c), weight.new_empty(weight.shape), weight.new_empty(c)


@torch.library.register_fake("stvit::associate_and_aggregate", lib=library)
def _(x: Tensor, super_tokens: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    cells = super_tokens.shape[:3]
    return x.new_empty(super_tokens.shape), x.new_empty(*cells, 9, h * w), x.new_empty(*cells, 1, dtype=torch.float32)


@torch.library.register_fake("stvit::aggregate", lib=library)
def _(association: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    return x.new_empty(*association.shape[:3], x.shape[1])


@torch.library.register_fake("stvit::upsample", lib=library)
def _(association: Tensor, super_tokens: Tensor, h: int, w: int, height: int, width: int) -> Tensor:
    return _like_tokens(super_tokens, (len(super_tokens), super_tokens.shape[3], height, width))


@torch.library.register_fake("stvit::upsample_add", lib=library)
def _(association: Tensor, super_tokens: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    return _like_tokens(x, x.shape)


@torch.library.register_fake("stvit::self_attention", lib=library)
def _(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    b, channels, height, width = qkv.shape
    return _like_tokens(qkv, (b, channels // 3, height, width)), qkv.new_empty(b, num_heads, height * width, dtype=torch.float32)


@torch.library.register_fake("stvit::self_attention_backward", lib=library)
def _(grad: Tensor, qkv: Tensor, y: Tensor, logs: Tensor, num_heads: int) -> Tensor:
    return _like_tokens(qkv, qkv.shape)


def _keep_conv_pos_enc(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, ctx.residual = inputs
    ctx.save_for_backward(x, weight)


def _laid_out_as(weight: Tensor, of_weight: Tensor) -> Tensor:
    """Return a gradient with the strides of its weight: DDP warns about others, and copies."""
    if of_weight.stride() == weight.stride():
        return of_weight
    return torch.empty_like(weight, dtype=of_weight.dtype).copy_(of_weight)


def _conv_pos_enc_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ops.conv_pos_enc_backward(grad, x, weight, ctx.residual)
    return of_x, _laid_out_as(weight, of_weight), of_bias, None


def _keep_conv_pos_enc_layer_norm(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, ctx.residual, norm_weight, norm_bias, _ = inputs
    y, _, mean, rstd = output
    ctx.save_for_backward(x, weight, norm_weight, norm_bias, y, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _conv_pos_enc_layer_norm_backward(ctx: Any, grad_y: Tensor, grad_norm: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, norm_weight, norm_bias, y, mean, rstd = ctx.saved_tensors
    grad_norm, channels_last = grad_norm.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
    of_y, of_norm_weight, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
        grad_norm, channels_last, [y.shape[1]], mean, rstd, norm_weight.float(), norm_bias.float(), [True, True, True]
    )
    of_norm_weight, of_norm_bias = of_norm_weight.to(norm_weight.dtype), of_norm_bias.to(norm_bias.dtype)
    of_x, of_weight, of_bias = ops.conv_pos_enc_backward(grad_y + of_y.permute(0, 3, 1, 2), x, weight, ctx.residual)
    return of_x, _laid_out_as(weight, of_weight), of_bias, None, of_norm_weight, of_norm_bias, None


def _keep_gelu_conv_pos_enc(ctx: Any, inputs: Any, output: Any) -> None:
    u, shift, weight, _, ctx.residual = inputs
    ctx.save_for_backward(u, shift, weight)


def _gelu_conv_pos_enc_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    u, shift, weight = ctx.saved_tensors
    of_u, of_shift, of_weight, of_bias = ops.gelu_conv_pos_enc_backward(grad, u, shift, weight, ctx.residual)
    return of_u, of_shift, _laid_out_as(weight, of_weight), of_bias, None


def _keep_associate_and_aggregate(ctx: Any, inputs: Any, output: Any) -> None:
    x, _, ctx.h, ctx.w = inputs
    ctx.size = x.shape[2:]
    _, association, weight = output
    ctx.save_for_backward(association, weight)
    ctx.mark_non_differentiable(association, weight)


def _associate_and_aggregate_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    association, weight = ctx.saved_tensors
    return ops.upsample(association, (grad / weight).to(grad.dtype), ctx.h, ctx.w, *ctx.size), None, None, None


def _keep_upsample(ctx: Any, inputs: Any, output: Any) -> None:
    association, _, ctx.h, ctx.w, *_ = inputs
    ctx.save_for_backward(association)


def _upsample_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (association,) = ctx.saved_tensors
    return None, ops.aggregate(association, grad, ctx.h, ctx.w), None, None, None, None


def _keep_upsample_add(ctx: Any, inputs: Any, output: Any) -> None:
    association, _, _, ctx.h, ctx.w = inputs
    ctx.save_for_backward(association)


def _upsample_add_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (association,) = ctx.saved_tensors
    return None, ops.aggregate(association, grad, ctx.h, ctx.w), grad, None, None


def _keep_self_attention(ctx: Any, inputs: Any, output: Any) -> None:
    qkv, ctx.num_heads = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _self_attention_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return ops.self_attention_backward(grad, *ctx.saved_tensors, ctx.num_heads), None


for name, backward, keep in (
    ("conv_pos_enc", _conv_pos_enc_backward, _keep_conv_pos_enc),
    ("conv_pos_enc_layer_norm", _conv_pos_enc_layer_norm_backward, _keep_conv_pos_enc_layer_norm),
    ("gelu_conv_pos_enc", _gelu_conv_pos_enc_backward, _keep_gelu_conv_pos_enc),
    ("associate_and_aggregate", _associate_and_aggregate_backward, _keep_associate_and_aggregate),
    ("upsample", _upsample_backward, _keep_upsample),
    ("upsample_add", _upsample_add_backward, _keep_upsample_add),
    ("self_attention", _self_attention_backward, _keep_self_attention),
):
    torch.library.register_autograd(f"stvit::{name}", backward, setup_context=keep, lib=library)


def sample(x: Tensor, grid_size: tuple[int, int], num_iters: int = 1) -> tuple[Tensor, Tensor]:
    """Super Token Sampling by the operators. The gradient flows through the last aggregation only.

    Under autocast the products run in its precision, the softmax and the normalizer in float32.

    Args:
        x: tokens (B, C, H, W).
        grid_size: tokens of a cell, (h, w).
        num_iters: number of iterations, at least 1.

    Returns:
        Super tokens (B, p, q, C) and association Q (B, p, q, 9, n).
    """
    h, w = grid_size
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    with torch.no_grad():
        # The zeros of the padding count in the mean, as in `super_token.sample`.
        super_tokens = F.avg_pool2d(x, grid_size, ceil_mode=True, divisor_override=h * w).permute(0, 2, 3, 1)
        for _ in range(num_iters - 1):
            super_tokens, _, _ = ops.associate_and_aggregate(x, super_tokens, h, w)
    super_tokens, association, _ = ops.associate_and_aggregate(x, super_tokens, h, w)
    return super_tokens, association
