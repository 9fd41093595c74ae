"""The backbone of a detector: STViT's four stages and torchvision's feature pyramid network (FPN) over them.

B batch, C channels. An image batch (B, 3, H, W) gives maps "0" to "3" and "pool" at 1/4, 1/8, 1/16, 1/32 and 1/64 of its size.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.options import ModelOptions, given
from stvit_cli.models.registry import refuse_options
from stvit_cli.models.stvit import STViT
from stvit_cli.models.timm_backbone import TimmBackbone
from stvit_cli.models.timm_models import is_timm_name
from stvit_cli.tasks.base import freeze_batch_norms

STRIDES = (4, 8, 16, 32, 64)
LEVELS = ("0", "1", "2", "3")
"""The feature maps that RoIAlign samples; the RPN also uses "pool"."""


class BackboneWithFPN(nn.Module):
    """Images (B, 3, H, W) -> feature maps by name, each (B, out_channels, h, w), in float32.

    The stages compute in the precision of the surrounding autocast, the FPN in float32.

    Args:
        body: the four stages, see `create_backbone`.
        out_channels: channels of every feature map.
        freeze_batch_norm: batch norms of the stages keep their running statistics in training; scale and shift are trained.
    """

    def __init__(self, body: STViT | TimmBackbone, out_channels: int, freeze_batch_norm: bool) -> None:
        super().__init__()
        self.body = body
        widths = [info["num_chs"] for info in body.feature_info]
        self.fpn = FeaturePyramidNetwork(widths, out_channels, extra_blocks=LastLevelMaxPool())
        # As mmdetection initializes it; torchvision uses Kaiming's uniform initialization.
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.out_channels = out_channels
        self.freeze_batch_norm = freeze_batch_norm

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body.forward_intermediates(x, intermediates_only=True)
        with torch.autocast(x.device.type, enabled=False):
            maps: dict[str, Tensor] = self.fpn({name: part.float() for name, part in zip(LEVELS, features, strict=True)})
        return maps

    def train(self, mode: bool = True) -> BackboneWithFPN:
        super().train(mode)
        if self.freeze_batch_norm:
            freeze_batch_norms(self.body)
        return self


def create_backbone(
    name: str, *, drop_path_rate: float = 0.0, checkpointing: bool = False, **options: Unpack[ModelOptions]
) -> STViT | TimmBackbone:
    """Create the four stages of a model, without projection and classifier.

    Args:
        name: the name of a model, see `list_models`, or ``timm/NAME``.
        drop_path_rate: the largest rate of stochastic depth.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        **options: ``grid_sizes``, ``num_iters`` and the other options of `create_model`.

    Returns:
        A model whose ``forward_intermediates`` gives feature maps at 1/4, 1/8, 1/16 and 1/32 of the image's size.

    Raises:
        UserError: no such model, one without four stages, or one without the part that an option is of.
    """
    if is_timm_name(name):
        refuse_options(name, given(options), {"kwargs"})
        return TimmBackbone(name, drop_path_rate=drop_path_rate, checkpointing=checkpointing, kwargs=options.get("kwargs"))
    model = create_model(name, 0, drop_path_rate=drop_path_rate, checkpointing=checkpointing, **options)
    if not isinstance(model, STViT):
        raise UserError(f"model.name: {name} has no four stages for an FPN; expected a model such as stvit-s.")
    model.prune_intermediate_layers(list(range(4)))
    return model
