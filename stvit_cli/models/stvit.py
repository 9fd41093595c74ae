"""The Super Token Vision Transformer (supplement, section B and Table I).

Shapes: B batch, C channels, H W rows and columns of a layer's input. An image (B, in_chans, H, W) of any size from 32 x 32 passes
the stem (1/4), four stages (1/4, 1/8, 1/16, 1/32), the projection, the mean over all positions and the classifier. Memory is
channels-last throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stvit_cli.models.accelerated import Conv2d
from stvit_cli.models.layers import (
    BatchNorm2d,
    ConvFFN,
    ConvPosEnc,
    DropPath,
    LayerNorm2d,
    LayerScale2d,
    PatchMerging,
    Stem,
    trunc_normal_,
)
from stvit_cli.models.super_token import SuperTokenAttention

GridSizes = tuple[int, int, int, int]


@dataclass(frozen=True)
class Variant:
    """A column of Table I, one value for each of the four stages.

    Attributes:
        embed_dims: number of channels.
        depths: number of blocks.
        num_heads: number of attention heads.
        layer_scale: initial value of layer scale in stages 3 and 4; None for no layer scale.
        grid_sizes: tokens of a cell down and across; 1 is ordinary self-attention.
        proj_dim: number of channels of the projection before the classifier.
    """

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    layer_scale: float | None
    grid_sizes: GridSizes = (8, 4, 1, 1)
    proj_dim: int = 1024


VARIANTS = {
    "stvit-s": Variant((64, 128, 320, 512), (3, 5, 9, 3), (1, 2, 5, 8), layer_scale=None),
    "stvit-b": Variant((96, 192, 384, 512), (4, 6, 14, 6), (2, 3, 6, 8), layer_scale=1e-6),
    "stvit-l": Variant((96, 192, 448, 640), (4, 7, 19, 8), (2, 3, 7, 10), layer_scale=1e-6),
    # Not in the paper: small enough to train in a minute on a CPU. Its grid suits images of 64 pixels.
    "stvit-nano": Variant((32, 64, 96, 128), (1, 2, 3, 1), (1, 2, 3, 4), layer_scale=None, grid_sizes=(4, 2, 1, 1), proj_dim=256),
}


class Block(nn.Module):
    """Position encoding, super token attention and ConvFFN, each with a residual connection: (B, C, H, W) -> (B, C, H, W).

    ``layer_scale`` None: no layer scale. ``num_iters`` and the arguments after it are described at `STViT`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: int,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float | None,
        num_iters: int = 1,
        pos_enc: bool = True,
        ffn_conv: bool = True,
        association_grad: bool = False,
    ) -> None:
        super().__init__()
        self.cpe = ConvPosEnc(dim) if pos_enc else nn.Identity()
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.attn = SuperTokenAttention(dim, num_heads, grid_size, num_iters, association_grad)
        self.norm2 = BatchNorm2d(dim)
        self.mlp = ConvFFN(dim, mlp_ratio, ffn_conv)
        self.ls1 = LayerScale2d(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.ls2 = LayerScale2d(dim, layer_scale) if layer_scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x, normalized = self._encode_position(x)
        x = self._add(x, self.ls1(self.attn(normalized)))
        return self._add(x, self.ls2(self.mlp(self.norm2(x))))

    def _encode_position(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens with their position encoding, and the layer norm of these."""
        cpe = self.cpe
        if isinstance(cpe, ConvPosEnc) and cpe.kernels is not None and cpe.kernels.supports(x):
            return cpe.kernels.conv_pos_enc_layer_norm(x, cpe.conv, cpe.residual, self.norm1)
        x = cpe(x)
        return x, self.norm1(x)

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.drop_path.add(x, branch) if isinstance(self.drop_path, DropPath) else x + self.drop_path(branch)


def _stages_taken(count: int, indices: int | list[int] | None) -> tuple[list[int], int]:
    """Return the indices of the stages that are taken, and the last; as timm: None takes all, a number that many of the last."""
    if indices is None or isinstance(indices, int):
        number = count if indices is None else indices
        if not 0 < number <= count:
            raise ValueError(f"indices: found {number}, expected 1 to {count} of the last stages")
        return list(range(count - number, count)), count - 1
    if not all(-count <= index < count for index in indices):
        raise ValueError(f"indices: found {list(indices)} for {count} stages")
    taken = [index % count for index in indices]
    return taken, max(taken)


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """Apply a block. As a function, so that all blocks of equal shape share one compilation (see `Staged.compile_blocks`)."""
    return block(x)


class Stage(nn.Module):
    """Patch merging (except in the first stage), then the blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False
        self.run_block: Callable[[nn.Module, Tensor], Tensor] = run_block

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.run_block, block, x, use_reentrant=False)
            else:
                x = self.run_block(block, x)
        return x


class Staged(nn.Module):
    """A model whose ``stages`` are of `Stage`: activation checkpointing and compilation of its blocks."""

    stages: nn.Sequential

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages.children():
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def compile_blocks(self) -> None:
        """Compile the blocks with `torch.compile`: one function for all of them, so that equal shapes are compiled once."""
        # PyTorch compiles a code object for at most eight shapes, then runs it eagerly: each model gets its own code object.
        own_code = FunctionType(run_block.__code__.replace(), run_block.__globals__)
        compiled = torch.compile(own_code, dynamic=False)
        for stage in self.stages.children():
            assert isinstance(stage, Stage)
            stage.run_block = compiled


class STViT(Staged):
    """Super Token Vision Transformer: (B, in_chans, H, W) -> logits (B, num_classes). `create_model` builds it by name.

    Args:
        variant: widths, depths, heads and grid sizes of the stages.
        num_classes: number of classes; 0 for no classifier.
        in_chans: number of channels of an image.
        drop_path_rate: stochastic depth rate of the last block; it increases linearly from 0 at the first.
        mlp_ratio: ratio of the hidden width of ConvFFN to its input width.
        grid_sizes: grid size of each stage instead of the variant's; the weights do not depend on it.
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
        drop_rate: dropout rate before the classifier.
        global_pool: ``avg``; or an empty string for the projected tokens without pooling, which needs ``num_classes=0``.
        num_iters: number of iterations of super token sampling. 0: average pooling alone: a token belongs to its own cell, whose
            super token it gets back.
        pos_enc: False: blocks without position encoding.
        ffn_conv: False: ConvFFN without its depth-wise convolution.
        association_grad: the gradient flows through the association too, which the paper's does not.
        layer_scale: initial value of layer scale in stages 3 and 4 instead of the variant's; 0 for no layer scale.

    Example:
        >>> model = STViT(VARIANTS["stvit-nano"], num_classes=10).eval()
        >>> model(torch.zeros(1, 3, 64, 48)).shape
        torch.Size([1, 10])
        >>> [tuple(f.shape) for f in model.forward_intermediates(torch.zeros(1, 3, 64, 64), intermediates_only=True)]
        [(1, 32, 16, 16), (1, 64, 8, 8), (1, 96, 4, 4), (1, 128, 2, 2)]
    """

    output_dtype: torch.dtype | None = None
    """The dtype of features and logits: float32 in a copy for inference in bfloat16; None: that of the tokens."""

    def __init__(
        self,
        variant: Variant,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        mlp_ratio: float = 4.0,
        grid_sizes: GridSizes | None = None,
        checkpointing: bool = False,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        num_iters: int = 1,
        pos_enc: bool = True,
        ffn_conv: bool = True,
        association_grad: bool = False,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        dims, depths = variant.embed_dims, variant.depths
        self.in_chans = in_chans
        self.num_features = dims[-1]
        self.head_hidden_size = variant.proj_dim
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": 4 << i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]

        self.stem = Stem(in_chans, dims[0])
        last = max(sum(depths) - 1, 1)
        scale = variant.layer_scale if layer_scale is None else layer_scale or None
        stages = []
        for i, dim in enumerate(dims):
            blocks = [
                Block(
                    dim,
                    variant.num_heads[i],
                    (grid_sizes or variant.grid_sizes)[i],
                    mlp_ratio,
                    drop_path=drop_path_rate * (sum(depths[:i]) + j) / last,
                    layer_scale=scale if i >= 2 else None,
                    num_iters=num_iters,
                    pos_enc=pos_enc,
                    ffn_conv=ffn_conv,
                    association_grad=association_grad,
                )
                for j in range(depths[i])
            ]
            stages.append(Stage(PatchMerging(dims[i - 1], dim) if i else nn.Identity(), blocks))
        self.stages = nn.Sequential(*stages)
        self.proj = Conv2d(dims[-1], variant.proj_dim, 1)
        self.norm = BatchNorm2d(variant.proj_dim)
        self.drop_rate = drop_rate
        self.head = self._make_head(num_classes, global_pool)
        self.set_grad_checkpointing(checkpointing)

    def _make_head(self, num_classes: int, global_pool: str) -> nn.Module:
        if global_pool not in ("avg", "") or (num_classes and not global_pool):
            raise ValueError(f"global_pool is {global_pool!r} for {num_classes} classes; expected 'avg', or '' for no classes")
        self.num_classes, self.global_pool = num_classes, global_pool
        if not num_classes:
            return nn.Identity()
        head = nn.Linear(self.head_hidden_size, num_classes)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the tokens of the last stage (B, num_features, H / 32, W / 32)."""
        return self._as_output(self.stages(self.stem(x)))

    def _as_output(self, x: Tensor) -> Tensor:
        return x if self.output_dtype is None else x.to(self.output_dtype)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes) of the last stage's tokens; with ``pre_logits`` the pooled (B, head_hidden_size)."""
        x = F.silu(self.norm(self.proj(x)))
        if self.global_pool:
            x = F.dropout(x.mean((2, 3), dtype=self.output_dtype), self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the features of the stages, as timm's models do.

        Args:
            x: images (B, in_chans, H, W).
            indices: the stages, or how many of the last ones; default all.
            norm: ignored, as the batch norm of the projection has another width than the stages.
            stop_early: do not run the stages after the last of ``indices``.
            output_fmt: only ``NCHW``.
            intermediates_only: return only the features.

        Returns:
            (tokens of the last stage that ran, features), or the list of features, each (B, C, H, W).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, expected 'NCHW'")
        take, last = _stages_taken(len(self.stages), indices)
        x = self.stem(x)
        features = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                break
            x = stage(x)
            if i in take:
                features.append(self._as_output(x))
        return features if intermediates_only else (self._as_output(x), features)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last of ``indices`` (and the head), for timm's feature extraction."""
        take, last = _stages_taken(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_head:
            for name in ("proj", "norm", "head"):
                setattr(self, name, nn.Identity())
            self.num_classes = 0
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        return take

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; ``global_pool`` is kept unless it is ``avg`` or an empty string (no pooling)."""
        reference = self.proj.weight
        head = self._make_head(num_classes, self.global_pool if global_pool is None else global_pool)
        self.head = head.to(reference.device, reference.dtype)

    def no_weight_decay(self) -> set[str]:
        """Return no names: only one-dimensional parameters are excluded from weight decay, by their shape."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's parameter groups for layer-wise learning rates: the stem, each block, the rest."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^proj|^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}
