"""The interface between the layers and the custom kernels.

A layer derives from `Accelerated` and knows only this interface; `stvit_cli.models.kernels` implements it, and its `use_kernels`
attaches it. So the layers import no kernel. Shapes as in `super_token`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Kernels(Protocol):
    """The steps of STViT that have a custom kernel. The operators are described in `stvit_cli.models.kernels.operators`."""

    def supports(self, x: Tensor, channels: int | None = None) -> bool:
        """Return whether the kernels run on (B, C, H, W) ``x``, ``channels`` (default: C) of them at a time."""

    def supports_self_attention(self, x: Tensor, head_dim: int) -> bool:
        """Return whether `self_attention` runs on ``x`` with heads of this width, and is faster than PyTorch's."""

    def sample(self, x: Tensor, grid_size: tuple[int, int], num_iters: int) -> tuple[Tensor, Tensor]:
        """Super token sampling: super tokens (B, p, q, C) and the association Q (B, p, q, 9, n) of (B, C, H, W)."""

    def upsample(self, association: Tensor, super_tokens: Tensor, grid_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Token upsampling: (B, C, H, W) of super tokens (B, p, q, C) by Q (B, p, q, 9, n)."""

    def upsample_add(self, association: Tensor, super_tokens: Tensor, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """x (B, C, H, W) + `upsample`, in the dtype of ``x``."""

    def self_attention(self, qkv: Tensor, num_heads: int) -> Tensor:
        """Multi-head self-attention: (B, C, H, W) of (B, 3 C, H, W), which holds q, k and v of each head in turn."""

    def conv_pos_enc(self, x: Tensor, conv: nn.Conv2d, residual: bool) -> Tensor:
        """Depth-wise 3 x 3 convolution of (B, C, H, W), plus ``x`` if ``residual``."""

    def conv_pos_enc_layer_norm(self, x: Tensor, conv: nn.Conv2d, residual: bool, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """`conv_pos_enc`, and the layer norm over the channels of its result; ``norm`` is a `layers.LayerNorm2d`."""

    def gelu_conv_pos_enc(self, u: Tensor, shift: Tensor, conv: nn.Conv2d, residual: bool) -> Tensor:
        """`conv_pos_enc` of GELU(u + shift) with one ``shift`` (C) for each channel."""

    def supports_training(self, x: Tensor, conv: nn.Conv2d) -> bool:
        """Return whether `conv2d` runs on ``x`` and a gradient of the weight of ``conv`` will be computed."""

    def conv2d(self, x: Tensor, conv: nn.Conv2d, with_bias: bool = True) -> Tensor:
        """The convolution ``conv`` of (B, C, H, W) with a faster backward pass, with its bias or without."""


class Accelerated(nn.Module):
    """A module that runs by custom kernels where they are attached and support the input, else in its eager form."""

    kernels: Kernels | None = None


class Conv2d(nn.Conv2d):
    """A convolution with a square kernel whose backward pass runs by a custom kernel where that is attached and supports it."""

    kernels: Kernels | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, with_bias=True)

    def convolve(self, x: Tensor, with_bias: bool) -> Tensor:
        """Apply the convolution, with its bias or without: another kernel adds it then."""
        if self.kernels is not None and self.kernels.supports_training(x, self):
            return self.kernels.conv2d(x, self, with_bias)
        return self._conv_forward(x, self.weight, self.bias if with_bias else None)
