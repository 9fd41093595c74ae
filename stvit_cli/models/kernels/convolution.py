"""Convolutions in training on a CPU: PyTorch's, but for the gradients of weight and bias, which have a kernel.

`conv2d_weight_backward` takes the gradient of y (B, N, H', W'), x (B, C, H, W), the size of the square kernel, stride, padding,
and whether there is a bias. It returns the gradients of the weight (N, C, kernel, kernel), in channels-last memory, and of the
bias (N), or none (0), both in float32, of bfloat16 tokens too: under autocast these gradients are not rounded. C and N are
multiples of 16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stvit_cli.models.kernels.operators import library, ops

library.define(
    "conv2d_weight_backward(Tensor grad, Tensor x, int kernel, int stride, int padding, bool bias) -> (Tensor, Tensor)"
)


@torch.library.register_fake("stvit::conv2d_weight_backward", lib=library)
def _(grad: Tensor, x: Tensor, kernel: int, stride: int, padding: int, bias: bool) -> tuple[Tensor, Tensor]:
    n = grad.shape[1]
    of_weight = x.new_empty(n, kernel, kernel, x.shape[1], dtype=torch.float32).permute(0, 3, 1, 2)
    return of_weight, x.new_empty(n if bias else 0, dtype=torch.float32)


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what PyTorch's convolution gets: without AVX-512 oneDNN takes no bfloat16, and PyTorch's own loops are slow."""
    takes_bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if dtype == torch.bfloat16 and not takes_bf16 else dtype


class _Conv2d(torch.autograd.Function):
    """A convolution with a square kernel whose weight and bias have their gradients from the kernel, where it supports them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dtype: torch.dtype
    ) -> Tensor:
        x, kernel = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, kernel)
        ctx.stride, ctx.padding, ctx.of_weight, ctx.of_bias = stride, padding, weight.dtype, None if bias is None else bias.dtype
        product = _product_dtype(dtype)
        with torch.autocast("cpu", enabled=False):  # it would convert float32 back
            y = F.conv2d(x.to(product), kernel.to(product), None if bias is None else bias.to(product), stride, padding)
        return y.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        grad, product = grads[0].to(x.dtype), _product_dtype(x.dtype)
        has_kernel = kernel.shape[0] % 16 == 0 and kernel.shape[1] % 16 == 0
        wanted = [ctx.needs_input_grad[0], not has_kernel, not has_kernel and ctx.of_bias is not None]
        of_x = of_weight = of_bias = None
        if any(wanted):
            of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
                *(tensor.to(product) for tensor in (grad, x, kernel)),
                [len(kernel)],
                [ctx.stride] * 2,
                [ctx.padding] * 2,
                [1, 1],
                False,
                [0, 0],
                1,
                wanted,
            )
        if has_kernel:
            with_bias = ctx.of_bias is not None
            of_weight, of_bias = ops.conv2d_weight_backward(grad, x, kernel.shape[-1], ctx.stride, ctx.padding, with_bias)
        return (
            None if of_x is None else of_x.to(x.dtype),
            None if of_weight is None else of_weight.to(ctx.of_weight),
            None if of_bias is None or ctx.of_bias is None else of_bias.to(ctx.of_bias),
            None,
            None,
            None,
        )


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Apply a convolution in the precision of autocast, or of ``x``.

    Args:
        x: (B, C, H, W).
        weight: (N, C, k, k).
        bias: (N), or None.
        stride: of both dimensions.
        padding: of all sides.

    Returns:
        (B, N, H', W').
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x = x.to(dtype)  # here, so that the gradient of x has its dtype
    result: Tensor = _Conv2d.apply(x, weight, bias, stride, padding, x.dtype)
    return result
