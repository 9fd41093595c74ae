"""The backbone under a detector: STViT's four stages, and torchvision's feature pyramid over them.

B batch, C channels. An image batch (B, 3, H, W) gives maps "0" to "3" and "pool" at 1/4, 1/8, 1/16, 1/32 and 1/64 of its size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from stvit_cli.errors import UserError
from stvit_cli.models import create_model
from stvit_cli.models.stvit import GridSizes, STViT

STRIDES = (4, 8, 16, 32, 64)
LEVELS = ("0", "1", "2", "3")
"""The maps that regions are cut out of; proposals come from "pool" too."""


class Pyramid(nn.Module):
    """(B, 3, H, W) -> maps by name, (B, out_channels, h, w) each, in float32.

    The stages compute in the precision of the surrounding autocast; the pyramid in float32, as all that follows it.

    Args:
        freeze_batch_norm: batch norms of the stages keep their statistics in training; their scale and shift are trained.
    """

    def __init__(self, body: STViT, out_channels: int, freeze_batch_norm: bool) -> None:
        super().__init__()
        self.body = body
        widths = [info["num_chs"] for info in body.feature_info]
        self.fpn = FeaturePyramidNetwork(widths, out_channels, extra_blocks=LastLevelMaxPool())
        # mmdetection's start; torchvision has He's uniform one.
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

    def train(self, mode: bool = True) -> Pyramid:
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def create_body(name: str, drop_path_rate: float, grid_sizes: GridSizes | None, checkpointing: bool) -> STViT:
    """Return the four stages of a model, without projection and classifier.

    Raises:
        UserError: no such model, or one without four stages.
    """
    model = create_model(name, 0, drop_path_rate=drop_path_rate, grid_sizes=grid_sizes, checkpointing=checkpointing)
    if not isinstance(model, STViT):
        raise UserError(f"model.name: {name} has no four stages for a pyramid; expected a model such as stvit-s.")
    model.prune_intermediate_layers(list(range(4)))
    return model
