"""The convolutional parts of STViT that `timm.layers` does not have (supplement, section B and Table I).

Shapes: B batch, C channels, H W rows and columns. All map (B, C, H, W) to (B, C, H, W), and are fastest in channels-last memory,
where the (B, H, W, C) view is contiguous.
"""

from __future__ import annotations

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.models.accelerated import Accelerated


def gelu(x: Tensor) -> Tensor:
    """Apply exact GELU to (B, C, H, W), on the channels-last view: on a CPU the strided form is 2 to 4 times slower."""
    return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that also trains on a single value per channel (one small image).

    PyTorch raises there, as one value has no variance. Here the running statistics are used, and left unchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class DropPath(timm.layers.DropPath):
    """timm's stochastic depth with the rate in a tensor: a Python number would cause a compilation for each block."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__(drop_prob)
        # Not a buffer: a model built under torch.device("meta") gets its buffers from a file, which does not contain the rate.
        self.keep_prob = torch.tensor(1 - drop_prob, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) < self.keep_prob
        return x * (kept / self.keep_prob).to(x.dtype)


class ConvGelu(nn.Module):
    """Convolution 3 x 3 -> GELU -> batch norm: a layer of the stem."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, stride, 1)
        self.norm = BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        # From here on, memory is channels-last.
        return self.norm(gelu(self.conv(x.contiguous(memory_format=torch.channels_last))))


class Stem(nn.Sequential):
    """Four 3 x 3 convolutions, the first two at half the width: (B, in_chans, H, W) -> (B, dim, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(
            ConvGelu(in_chans, dim // 2, stride=2),
            ConvGelu(dim // 2, dim // 2, stride=1),
            ConvGelu(dim // 2, dim, stride=2),
            ConvGelu(dim, dim, stride=1),
        )


class PatchMerging(nn.Module):
    """Convolution 3 x 3 of stride 2 -> batch norm, between two stages."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, 2, 1)
        self.norm = BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ConvPosEnc(Accelerated):
    """Conditional position encoding: x + depth-wise 3 x 3 of x."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        self.residual = True  # False in a fused copy, whose convolution includes it

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels is not None and self.kernels.supports(x):
            return self.kernels.conv_pos_enc(x, self.conv, self.residual)
        return x + self.conv(x) if self.residual else self.conv(x)


class ConvFFN(Accelerated):
    """Convolutional feed-forward network: 1 x 1 to ``ratio`` * C -> GELU -> h + depth-wise 3 x 3 of h -> 1 x 1 to C."""

    def __init__(self, dim: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.conv = ConvPosEnc(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernels is not None and self.kernels.supports(x, self.conv.conv.in_channels):
            fc1 = self.fc1
            assert fc1.bias is not None  # added by the kernel
            u = F.conv2d(x, fc1.weight) if isinstance(fc1, nn.Conv2d) else fc1.multiply(x, None)  # `mkldnn.PackedConv`
            return self.fc2(self.kernels.gelu_conv_pos_enc(u, fc1.bias, self.conv.conv, self.conv.residual))
        return self.fc2(self.conv(gelu(self.fc1(x))))
