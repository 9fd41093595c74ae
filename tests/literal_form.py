"""Algorithm 1 as the supplement prints it: an oracle for the tests and the baseline of the benchmark."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stvit_cli.models.super_token import SuperTokenAttention


def literal_super_token_attention(attention: SuperTokenAttention, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W) for one iteration and sizes that the grid divides, by `F.unfold` and `F.fold`."""
    (h, w), (b, c, height, width) = attention.grid_size, x.shape
    p, q = height // h, width // w
    tokens = rearrange(x, "b c (y h) (x w) -> b (y x) (h w) c", y=p, x=q)
    with torch.no_grad():
        surrounding = F.unfold(F.adaptive_avg_pool2d(x, (p, q)), 3, padding=1).transpose(1, 2).reshape(b, p * q, c, 9)
        association = (tokens @ surrounding * c**-0.5).softmax(-1)
        association_sum = F.fold(association.sum(2).transpose(1, 2), (p, q), 3, padding=1)
    super_tokens = (tokens.transpose(-1, -2) @ association).permute(0, 2, 3, 1).reshape(b, c * 9, p * q)
    super_tokens = attention.attend(F.fold(super_tokens, (p, q), 3, padding=1) / (association_sum + 1e-12))
    surrounding = F.unfold(super_tokens, 3, padding=1).transpose(1, 2).reshape(b, p * q, c, 9)
    return rearrange(surrounding @ association.transpose(-1, -2), "b (y x) c (h w) -> b c (y h) (x w)", y=p, x=q, h=h)


class LiteralAttention(nn.Module):
    """Stands for a `SuperTokenAttention` and runs its weights in the literal form."""

    def __init__(self, attention: SuperTokenAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        if self.attention.grid_size == (1, 1):
            return self.attention(x)
        return literal_super_token_attention(self.attention, x)


def make_literal(model: nn.Module) -> nn.Module:
    """Put every super token attention of ``model`` into the literal form, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SuperTokenAttention):
                setattr(parent, name, LiteralAttention(child))
    return model
