"""The parts of STViT around its attention (supplement, section B and Table I).

Shapes: B batch, C channels, H W rows and columns. All map (B, C, H, W) to (B, C, H, W), and are fastest in channels-last memory,
where the (B, H, W, C) view is contiguous. The names are timm's where it has
such a layer; timm itself is not imported here, as that takes seconds, and predictions do without it.
"""

from __future__ import annotations

import math
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.models.accelerated import Accelerated, Conv2d


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


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LayerScale2d(nn.Module):
    """A learned factor for each channel of (B, C, H, W), the same at first."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(1, -1, 1, 1)


def trunc_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill a tensor with a normal distribution of mean 0, truncated to [-2, 2], by the inverse of its distribution function.

    As `timm.layers.trunc_normal_` draws it, so that a seed keeps its weights; PyTorch's draws other numbers since 2.13.
    """
    if tensor.is_meta:
        return tensor  # not only needless: PyTorch would import its compiler for it, two seconds
    bound = math.erf(2 / std / math.sqrt(2))
    with torch.no_grad():
        return tensor.uniform_(-bound, bound).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2, 2)


class DropPath(nn.Module):
    """Stochastic depth with the rate in a tensor: a Python number would cause a compilation for each block."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        # Not a buffer: a model built under torch.device("meta") gets its buffers from a file, which does not contain the rate.
        self.keep_prob = torch.tensor(1 - drop_prob, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        return x * self._factors(x) if self.training else x

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return x + the branch, dropped for some images: one pass over memory instead of two."""
        return torch.addcmul(x, branch, self._factors(branch)) if self.training else x + branch

    def _factors(self, x: Tensor) -> Tensor:
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) < self.keep_prob
        return (kept / self.keep_prob).to(x.dtype)


def drop_path_layers() -> tuple[type[nn.Module], ...]:
    """Return the classes of stochastic depth that a model can have: those here, and timm's where it is imported."""
    timm = sys.modules.get("timm.layers")
    return (DropPath,) if timm is None else (DropPath, timm.DropPath)


def layer_scales() -> tuple[type[nn.Module], ...]:
    """Return the classes of layer scale that a model can have: those here, and timm's where it is imported."""
    timm = sys.modules.get("timm.layers")
    return (LayerScale2d,) if timm is None else (LayerScale2d, timm.LayerScale, timm.LayerScale2d)


class ConvGelu(nn.Module):
    """Convolution 3 x 3 -> GELU -> batch norm: a layer of the stem."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_chans, out_chans, 3, stride, 1)
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
        self.conv = Conv2d(in_dim, dim, 3, 2, 1)
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
    """Convolutional feed-forward network: 1 x 1 to ``ratio`` * C -> GELU -> h + depth-wise 3 x 3 of h -> 1 x 1 to C.

    Args:
        dim: number of channels C.
        ratio: ratio of the hidden width to C.
        has_conv: False: without the depth-wise convolution, an ordinary feed-forward network.
    """

    def __init__(self, dim: int, ratio: float = 4.0, has_conv: bool = True) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.ratio = ratio
        self.fc1 = Conv2d(dim, hidden, 1)
        self.conv = ConvPosEnc(hidden) if has_conv else nn.Identity()
        self.fc2 = Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if self.kernels is not None and isinstance(conv, ConvPosEnc) and self.kernels.supports(x, conv.conv.in_channels):
            fc1 = self.fc1
            assert fc1.bias is not None  # added by the kernel
            u = fc1.convolve(x, with_bias=False) if isinstance(fc1, Conv2d) else fc1.multiply(x)  # `mkldnn.PackedConv`
            return self.fc2(self.kernels.gelu_conv_pos_enc(u, fc1.bias, conv.conv, conv.residual))
        return self.fc2(conv(gelu(self.fc1(x))))
