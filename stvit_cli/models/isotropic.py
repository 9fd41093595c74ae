"""The rows of Table II: Swin and STViT without convolution stem, projection, position-encoding convolutions and ConvFFN.

All rows share the patch embedding (4 x 4, stride 4), torchvision's Swin block (layer norm -> attention -> layer norm -> MLP of
ratio 4), the last layer norm, the mean over all positions and the classifier. What differs is the attention, the patch merging
(Swin: 2 x 2 and linear; STViT: 3 x 3 of stride 2), the widths and depths, and the relative position encoding (RPE).

Shapes: B batch, C channels, H W rows and columns, p q super tokens. Inside, tokens are (B, H, W, C), as in Swin's blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformerBlock

from stvit_cli.models.isotropic_rows import Variant
from stvit_cli.models.layers import trunc_normal_
from stvit_cli.models.stvit import GridSizes, Stage, Staged
from stvit_cli.models.super_token import SuperTokenAttention


class WindowAttentionWithoutRPE(ShiftedWindowAttention):
    """Swin's attention in windows without a position table: (B, H, W, C) -> (B, H, W, C)."""

    def define_relative_position_bias_table(self) -> None:
        pass

    def define_relative_position_index(self) -> None:
        pass

    def get_relative_position_bias(self) -> Tensor:
        return self.qkv.weight.new_zeros(())


def position_bias(table: Tensor, p: int, q: int) -> Tensor:
    """Expand a table (heads, offsets down, offsets across) to all pairs of p * q positions: (heads, p q, p q).

    Entry (a, b) is the table's at offset (y_a - y_b, x_a - x_b), offset 0 in the middle. A table of another size is resampled.
    """
    size = (2 * p - 1, 2 * q - 1)
    if table.shape[1:] != size:
        table = F.interpolate(table[None], size=size, mode="bicubic", align_corners=False)[0]
    pairs = table.unfold(1, p, 1).unfold(2, q, 1).flip(3, 4)  # heads p q p q: position a, then position b
    return rearrange(pairs, "heads p q i j -> heads (p q) (i j)")


class TableSuperTokenAttention(SuperTokenAttention):
    """Super token attention of (B, H, W, C) with a relative position bias among its super tokens.

    Args:
        table_size: number of super tokens down and across that the position table is made for; None for no bias.
        num_iters: see `SuperTokenAttention`.
        association_grad: see `SuperTokenAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: int,
        table_size: int | None,
        num_iters: int = 1,
        association_grad: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, grid_size, num_iters, association_grad)
        self.relative_position_bias_table: nn.Parameter | None = None
        if table_size is not None:
            self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, 2 * table_size - 1, 2 * table_size - 1))
            trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def attend(self, x: Tensor) -> Tensor:
        if self.relative_position_bias_table is None:
            return super().attend(x)
        q, k, v = self.split_heads(x)
        bias = position_bias(self.relative_position_bias_table, x.shape[2], x.shape[3])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(rearrange(y, "B heads (p q) d -> B (heads d) p q", p=x.shape[2]))


class ConvPatchMerging(nn.Module):
    """STViT's merging, convolution 3 x 3 of stride 2 -> layer norm: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out_dim)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, 2, 1)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def make_attention(
    variant: Variant, stage: int, grid_sizes: GridSizes, num_iters: int, association_grad: bool
) -> Callable[..., nn.Module]:
    """Return the constructor of a stage's attention, with the arguments of torchvision's: dim, window, shift, heads, dropouts."""
    if variant.attention == "swin" and stage != variant.global_stage:
        return ShiftedWindowAttention if variant.rpe else WindowAttentionWithoutRPE
    is_global = variant.attention == "swin"  # with a grid of 1, super token attention is global attention
    # The variant's own grid decides the table's size, so that weights fit whatever grid they are used with.
    table_size = math.ceil(variant.image_size / (4 << stage) / (1 if is_global else variant.grid_sizes[stage]))

    def attention(dim: int, window: list[int], shift: list[int], num_heads: int, **dropouts: float) -> nn.Module:
        grid_size = 1 if is_global else grid_sizes[stage]
        return TableSuperTokenAttention(
            dim, num_heads, grid_size, table_size if variant.rpe else None, num_iters, association_grad
        )

    return attention


class Isotropic(Staged):
    """A row of Table II: (B, in_chans, H, W) of any size from 32 x 32 -> logits (B, num_classes).

    A map that is no multiple of Swin's window is padded with zeros by torchvision. Linear layers, 1 x 1 convolutions among them,
    start as a truncated normal of 0.02 in all rows, other convolutions as PyTorch's default.

    Args:
        variant: the row of the table.
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of channels of an image.
        drop_path_rate: stochastic depth rate of the last block; it increases linearly from 0 at the first.
        grid_sizes: grid size of each stage instead of the variant's.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        num_iters: number of iterations of super token sampling; 0: average pooling alone, see `STViT`.
        association_grad: the gradient flows through the association too.
    """

    def __init__(
        self,
        variant: Variant,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        grid_sizes: GridSizes | None = None,
        checkpointing: bool = False,
        num_iters: int = 1,
        association_grad: bool = False,
    ) -> None:
        super().__init__()
        dims, depths = variant.embed_dims, variant.depths
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.patch_embed = nn.Conv2d(in_chans, dims[0], 4, 4)
        self.patch_norm = nn.LayerNorm(dims[0])
        merging = PatchMerging if variant.attention == "swin" else ConvPatchMerging
        window, last = variant.window_size, max(sum(depths) - 1, 1)
        stages = []
        for i, dim in enumerate(dims):
            attention = make_attention(variant, i, grid_sizes or variant.grid_sizes, num_iters, association_grad)
            block = partial(SwinTransformerBlock, dim, variant.num_heads[i], [window] * 2, attn_layer=attention)
            blocks = [
                block(shift_size=[j % 2 * (window // 2)] * 2, stochastic_depth_prob=drop_path_rate * (sum(depths[:i]) + j) / last)
                for j in range(depths[i])
            ]
            stages.append(Stage(merging(dims[i - 1], dim) if i else nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head: nn.Module = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(init_linear)
        self.set_grad_checkpointing(checkpointing)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalized tokens of the last stage (B, num_features, H / 32, W / 32)."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, (width + 3) // 4 * 4 - width, 0, (height + 3) // 4 * 4 - height))
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        return self.norm(self.stages(self.patch_norm(x))).permute(0, 3, 1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes) of the last stage's tokens; with ``pre_logits`` the pooled (B, num_features)."""
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one. ``global_pool`` is timm's argument; only ``avg`` is supported."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool is {global_pool!r}, expected 'avg'")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes).to(self.norm.weight) if num_classes else nn.Identity()
        self.head.apply(init_linear)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the position tables, which have no weight decay, as in Swin."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's parameter groups for layer-wise learning rates: the patch embedding, each block, the rest."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm\.", (99999,))]
        return {"stem": r"^patch_", "blocks": r"^stages\.(\d+)" if coarse else blocks}


def init_linear(module: nn.Module) -> None:
    """Initialize a linear layer or a 1 x 1 convolution: truncated normal weights (std 0.02), zero bias."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
