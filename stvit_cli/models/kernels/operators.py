"""The operators of the kernels: their arguments, their shapes, their gradients. Who computes them is registered elsewhere.

Shapes as in `super_token`: tokens (B, C, H, W), super tokens (B, p, q, C), n = h * w tokens of a cell; here the association Q is
(B, p, q, 9, n). Tokens come out in channels-last memory. None can be differentiated twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

library = torch.library.Library("stvit", "DEF")
for schema in (
    # x + c, where residual, or c: the depth-wise 3 x 3 convolution of x by a kernel (C, 1, 3, 3) and bias (C)
    "conv_pos_enc(Tensor x, Tensor weight, Tensor bias, bool residual) -> Tensor",
    "conv_pos_enc_backward(Tensor grad, Tensor x, Tensor weight, bool residual) -> (Tensor, Tensor, Tensor)",
    # the same of x = GELU(u + shift), shift (C)
    "gelu_conv_pos_enc(Tensor u, Tensor shift, Tensor weight, Tensor bias, bool residual) -> Tensor",
    "gelu_conv_pos_enc_backward(Tensor grad, Tensor u, Tensor shift, Tensor weight, bool residual)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    # equations 1 and 2: the new super tokens, Q, and its sums (B, p, q, 1) in float32
    "associate_and_aggregate(Tensor x, Tensor super_tokens, int h, int w) -> (Tensor, Tensor, Tensor)",
    # the sums of the tokens by a given Q: (B, p, q, C)
    "aggregate(Tensor association, Tensor x, int h, int w) -> Tensor",
    # tokens, each the mix of its nine super tokens by Q
    "upsample(Tensor association, Tensor super_tokens, int h, int w, int height, int width) -> Tensor",
    # multi-head self-attention of q, k, v (B, 3 C, H, W), each head's three together: y (B, C, H, W), and for each place of each
    # head the logarithm of the softmax' denominator (B, heads, H W)
    "self_attention(Tensor qkv, int num_heads) -> (Tensor, Tensor)",
    "self_attention_backward(Tensor grad, Tensor qkv, Tensor y, Tensor logs, int num_heads) -> Tensor",
):
    library.define(schema)

ops = torch.ops.stvit


def _like_tokens(x: Tensor, size: tuple[int, ...]) -> Tensor:
    b, channels, height, width = size
    return x.new_empty(b, height, width, channels).permute(0, 3, 1, 2)


@torch.library.register_fake("stvit::conv_pos_enc", lib=library)
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    return _like_tokens(x, x.shape)


@torch.library.register_fake("stvit::conv_pos_enc_backward", lib=library)
def _(grad: Tensor, x: Tensor, weight: Tensor, residual: bool) -> tuple[Tensor, ...]:
    return _like_tokens(x, x.shape), weight.new_empty(weight.shape), weight.new_empty(len(weight))


@torch.library.register_fake("stvit::gelu_conv_pos_enc", lib=library)
def _(u: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
    return _like_tokens(u, u.shape)


@torch.library.register_fake("stvit::gelu_conv_pos_enc_backward", lib=library)
def _(grad: Tensor, u: Tensor, shift: Tensor, weight: Tensor, residual: bool) -> tuple[Tensor, ...]:
    c = len(weight)
    return _like_tokens(u, u.shape), weight.new_empty(c), weight.new_empty(weight.shape), weight.new_empty(c)


@torch.library.register_fake("stvit::associate_and_aggregate", lib=library)
def _(x: Tensor, super_tokens: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    cells = super_tokens.shape[:3]
    return super_tokens.new_empty(super_tokens.shape), x.new_empty(*cells, 9, h * w), x.new_empty(*cells, 1, dtype=torch.float32)


@torch.library.register_fake("stvit::aggregate", lib=library)
def _(association: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    return x.new_empty(*association.shape[:3], x.shape[1])


@torch.library.register_fake("stvit::upsample", lib=library)
def _(association: Tensor, super_tokens: Tensor, h: int, w: int, height: int, width: int) -> Tensor:
    return _like_tokens(super_tokens, (len(super_tokens), super_tokens.shape[3], height, width))


@torch.library.register_fake("stvit::self_attention", lib=library)
def _(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    b, channels, height, width = qkv.shape
    return _like_tokens(qkv, (b, channels // 3, height, width)), qkv.new_empty(b, num_heads, height * width)


@torch.library.register_fake("stvit::self_attention_backward", lib=library)
def _(grad: Tensor, qkv: Tensor, y: Tensor, logs: Tensor, num_heads: int) -> Tensor:
    return _like_tokens(qkv, qkv.shape)


def _keep_conv_pos_enc(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, _, ctx.residual = inputs
    ctx.save_for_backward(x, weight)


def _conv_pos_enc_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *ops.conv_pos_enc_backward(grad, *ctx.saved_tensors, ctx.residual), None


def _keep_gelu_conv_pos_enc(ctx: Any, inputs: Any, output: Any) -> None:
    u, shift, weight, _, ctx.residual = inputs
    ctx.save_for_backward(u, shift, weight)


def _gelu_conv_pos_enc_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *ops.gelu_conv_pos_enc_backward(grad, *ctx.saved_tensors, ctx.residual), None


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


def _keep_self_attention(ctx: Any, inputs: Any, output: Any) -> None:
    qkv, ctx.num_heads = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _self_attention_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return ops.self_attention_backward(grad, *ctx.saved_tensors, ctx.num_heads), None


for name, backward, keep in (
    ("conv_pos_enc", _conv_pos_enc_backward, _keep_conv_pos_enc),
    ("gelu_conv_pos_enc", _gelu_conv_pos_enc_backward, _keep_gelu_conv_pos_enc),
    ("associate_and_aggregate", _associate_and_aggregate_backward, _keep_associate_and_aggregate),
    ("upsample", _upsample_backward, _keep_upsample),
    ("self_attention", _self_attention_backward, _keep_self_attention),
):
    torch.library.register_autograd(f"stvit::{name}", backward, setup_context=keep, lib=library)


def sample(x: Tensor, grid_size: tuple[int, int], num_iters: int = 1) -> tuple[Tensor, Tensor]:
    """Super Token Sampling of (B, C, H, W): super tokens (B, p, q, C) and association Q (B, p, q, 9, n).

    The gradient flows through the last aggregation alone. Under autocast the products run in its precision, the softmax and the
    normaliser in float32.
    """
    h, w = grid_size
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    with torch.no_grad():
        # The padding takes part in the mean, as zeros.
        super_tokens = F.avg_pool2d(x, grid_size, ceil_mode=True, divisor_override=h * w).permute(0, 2, 3, 1)
        for _ in range(num_iters - 1):
            super_tokens, _, _ = ops.associate_and_aggregate(x, super_tokens, h, w)
    super_tokens, association, _ = ops.associate_and_aggregate(x, super_tokens, h, w)
    return super_tokens, association
