"""UperNet (arXiv 1807.10221) over the four stages of a model, with the settings published for it with Swin.

B batch, C channels, K classes, H W rows and columns of the image, of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from stvit_cli.models.layers import BatchNorm2d
from stvit_cli.models.stvit import GridSizes, STViT
from stvit_cli.recipe import SegmentationSection
from stvit_cli.tasks.detection.backbone import create_body

AUX_STAGE = 2
"""The stage, counted from 0, from which the auxiliary head learns."""


class Decoder(UPerNetDecoder):
    """Features of the stages (B, C, h, w) at 1/4, 1/8, 1/16 and 1/32 -> (B, channels, H / 4, W / 4).

    Two changes to segmentation-models-pytorch's: no layer norms on what comes in, as in the published UperNet, and a list that
    begins with the stages, where theirs begins with the image itself.
    """

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        super().__init__([0, 0, *dims], decoder_channels=channels)
        self.feature_norms = nn.ModuleList(nn.Identity() for _ in dims)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return super().forward([None, None, *features])


class UPerNet(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K, H, W), and in training those of the auxiliary head too, in float32.

    The stages compute in the precision of the surrounding autocast, the heads in float32.

    Args:
        body: the stages of a model, see `create_body`.
        section: widths and dropout.
        num_classes: K.
    """

    def __init__(self, body: STViT, section: SegmentationSection, num_classes: int) -> None:
        super().__init__()
        dims = [info["num_chs"] for info in body.feature_info]
        self.num_classes = num_classes
        self.backbone = body
        self.decoder = Decoder(dims, section.channels)
        self.dropout = nn.Dropout2d(section.dropout)
        self.classifier = nn.Conv2d(section.channels, num_classes, 1)
        self.aux = Conv2dReLU(dims[AUX_STAGE], section.aux_channels, 3, padding=1)
        self.aux_classifier = nn.Conv2d(section.aux_channels, num_classes, 1)
        for head in (self.decoder, self.aux):
            initialize_decoder(head)
            _train_on_single_values(head)
        # Not the published N(0, 0.01): where the rate is not as small as theirs, the first steps then make all channels of a
        # classifier alike, as they learn which class is frequent, and the channels before it follow.
        for classifier in (self.classifier, self.aux_classifier):
            initialize_head(classifier)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        size = x.shape[-2:]
        features = self.backbone.forward_intermediates(x, intermediates_only=True)
        with _without_autocast(x.device.type):
            features = [feature.float() for feature in features]
            logits = _enlarged(self.classifier(self.dropout(self.decoder(features))), size)
            if not self.training:
                return logits
            return logits, _enlarged(self.aux_classifier(self.dropout(self.aux(features[AUX_STAGE]))), size)

    def compile_blocks(self) -> None:
        """Compile the backbone's blocks; see `STViT.compile_blocks`."""
        self.backbone.compile_blocks()


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device_type):  # as on the meta device
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def _train_on_single_values(head: nn.Module) -> None:
    """Replace the batch norms by ours: pooled to one value, a single image has no variance, and PyTorch's refuse it."""
    for module in list(head.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, BatchNorm2d(child.num_features))


def create_segmenter(
    name: str,
    num_classes: int,
    section: SegmentationSection | None = None,
    *,
    drop_path_rate: float = 0.0,
    grid_sizes: GridSizes | None = None,
    checkpointing: bool = False,
) -> UPerNet:
    """Build UperNet on a model of `list_models`, freshly initialised.

    Args:
        name: of the model, one of `list_models`.
        num_classes: number of classes.
        section: widths and dropout; those of ADE20K if none.
        drop_path_rate: largest rate of stochastic depth.
        grid_sizes: super-token cell of each stage, in tokens; None: the model's own.
        checkpointing: recompute activations in the backward pass, to save memory.

    Raises:
        UserError: no such model, or one without four stages.
    """
    body = create_body(name, drop_path_rate, grid_sizes, checkpointing)
    return UPerNet(body, section or SegmentationSection(), num_classes)
