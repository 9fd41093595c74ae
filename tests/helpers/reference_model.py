"""The reference implementation: the model as written in the supplement, with unfold and fold.

It is an oracle for the tests and the baseline of the benchmarks.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from stvit_cli.models.layers import ConvFFN, ConvGelu
from stvit_cli.models.super_token import SuperTokenAttention


def reference_self_attention(attention: SuperTokenAttention, x: Tensor) -> Tensor:
    """Multi-head self-attention between the positions of (B, C, H, W), by two matrix products."""
    qkv = rearrange(attention.qkv(x), "b (heads three d) y x -> three b heads (y x) d", heads=attention.num_heads, three=3)
    q, k, v = qkv.unbind()
    y = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return attention.proj(rearrange(y, "b heads (y x) d -> b (heads d) y x", y=x.shape[2]))


def reference_super_token_attention(attention: SuperTokenAttention, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W) for sizes that the grid divides, by `F.unfold` and `F.fold`."""
    (h, w), (b, c, height, width) = attention.grid_size, x.shape
    p, q = height // h, width // w
    super_tokens = F.avg_pool2d(x, (h, w))
    if attention.num_iters == 0:
        return F.interpolate(reference_self_attention(attention, super_tokens), (height, width), mode="nearest")
    tokens = rearrange(x, "b c (y h) (x w) -> b (y x) (h w) c", y=p, x=q)

    def associate(super_tokens: Tensor) -> tuple[Tensor, Tensor]:
        surrounding = F.unfold(super_tokens, 3, padding=1).transpose(1, 2).reshape(b, p * q, c, 9)
        association = (tokens @ surrounding * c**-0.5).softmax(-1)
        return association, F.fold(association.sum(2).transpose(1, 2), (p, q), 3, padding=1)

    def aggregate(association: Tensor, association_sum: Tensor) -> Tensor:
        total = (tokens.transpose(-1, -2) @ association).permute(0, 2, 3, 1).reshape(b, c * 9, p * q)
        return F.fold(total, (p, q), 3, padding=1) / (association_sum + 1e-12)

    with nullcontext() if attention.association_grad else torch.no_grad():
        association, association_sum = associate(super_tokens)
        for _ in range(attention.num_iters - 1):
            association, association_sum = associate(aggregate(association, association_sum))
    super_tokens = reference_self_attention(attention, aggregate(association, association_sum))
    surrounding = F.unfold(super_tokens, 3, padding=1).transpose(1, 2).reshape(b, p * q, c, 9)
    return rearrange(surrounding @ association.transpose(-1, -2), "b (y x) c (h w) -> b c (y h) (x w)", y=p, x=q, h=h)


class ReferenceAttention(nn.Module):
    """Replaces a `SuperTokenAttention` and runs its weights in the reference implementation."""

    def __init__(self, attention: SuperTokenAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        if self.attention.grid_size == (1, 1):
            return reference_self_attention(self.attention, x)
        return reference_super_token_attention(self.attention, x)


class ReferenceLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W), in that memory order."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2).contiguous()


def to_reference_layer(module: nn.Module) -> nn.Module:
    """Return the reference implementation of a layer, or the layer itself if it has no other one."""
    if isinstance(module, SuperTokenAttention):
        return ReferenceAttention(module)
    if isinstance(module, LayerNorm2d):
        norm = ReferenceLayerNorm(module.normalized_shape, module.eps)
        norm.load_state_dict(module.state_dict())
        return norm
    if isinstance(module, ConvGelu):
        return nn.Sequential(module.conv, nn.GELU(), module.norm)
    if isinstance(module, ConvFFN):
        return nn.Sequential(module.fc1, nn.GELU(), module.conv, module.fc2)
    return module


def to_reference(model: nn.Module) -> nn.Module:
    """Replace every layer of ``model`` by its reference implementation, in place; (B, C, H, W) memory throughout."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, to_reference_layer(child))
    return model
