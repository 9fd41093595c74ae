"""The 3 x 3 neighbourhood of super tokens: gather from it ("Unfold" in Algorithm 1) and sum into it ("Fold").

Shapes: B batch, C channels, p q super tokens down and across, 9 the neighbours of a cell, row by row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from stvit_cli.models.exporting import is_exporting

EPS = 1e-12
"""The epsilon of the normalizer in Algorithm 1."""


def neighbours(super_tokens: Tensor) -> Tensor:
    """Gather the nine super tokens around each cell ("Unfold" in Algorithm 1).

    Args:
        super_tokens: (B, p, q, C).

    Returns:
        (B, p, q, 9, C), with zeros for neighbours outside the image.

    Example:
        >>> import torch
        >>> neighbours(torch.ones(1, 2, 2, 1))[0, 0, 0, :, 0].tolist()  # the top left cell has four neighbours inside
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    """
    if is_exporting():
        return _neighbours_by_convolution(super_tokens)
    padded = F.pad(super_tokens, (0, 0, 1, 1, 1, 1))
    return rearrange(padded.unfold(1, 3, 1).unfold(2, 3, 1), "B p q C i j -> B p q (i j) C")


def sum_neighbours(parts: Tensor) -> Tensor:
    """Sum the contributions of the cells to their nine super tokens ("Fold" in Algorithm 1): the adjoint of `neighbours`.

    Args:
        parts: (B, p, q, 9, C), the contribution of each cell to each of its neighbours.

    Returns:
        (B, p, q, C) in the dtype of ``parts``; half precision is accumulated in float32.
    """
    if is_exporting():
        return _sum_by_convolution(parts)
    p, q = parts.shape[1:3]
    # Super token (y, x) receives part (2 - i, 2 - j) of cell (y + i - 1, x + j - 1). Adding slices of one padded tensor, instead
    # of adding into slices of the result, is what a compiler fuses: the other way takes it minutes.
    padded = F.pad(parts, (0, 0, 0, 0, 1, 1, 1, 1))
    total = torch.zeros_like(parts[..., 0, :], dtype=torch.promote_types(parts.dtype, torch.float32))
    for i in range(3):
        for j in range(3):
            total += padded[:, i : i + p, j : j + q, 8 - 3 * i - j]
    return total.to(parts.dtype)


def _neighbours_by_convolution(super_tokens: Tensor) -> Tensor:
    """`neighbours` as a depth-wise convolution with kernels of a single one.

    In an exported graph whose sizes are symbols, views and slices become hundreds of nodes, and the time to export them grows
    with the size of the expressions: 725 nodes for a block, and twice the time.
    """
    channels = int(super_tokens.shape[3])  # a number, where sizes are traced
    kernels = torch.eye(9, dtype=super_tokens.dtype).view(9, 1, 3, 3).repeat(channels, 1, 1, 1)
    gathered = F.conv2d(super_tokens.permute(0, 3, 1, 2), kernels, padding=1, groups=channels)
    return rearrange(gathered, "B (C nine) p q -> B p q nine C", nine=9)


def _sum_by_convolution(parts: Tensor) -> Tensor:
    """`sum_neighbours` as a convolution; see `_neighbours_by_convolution`."""
    channels = int(parts.shape[4])
    kernels = torch.eye(9, dtype=parts.dtype).flip(0).view(1, 9, 3, 3).repeat(channels, 1, 1, 1)
    total = F.conv2d(rearrange(parts, "B p q nine C -> B (C nine) p q"), kernels, padding=1, groups=channels)
    return total.permute(0, 2, 3, 1)
