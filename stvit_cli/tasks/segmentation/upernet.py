"""UperNet (arXiv 1807.10221) or another decoder on the four stages of a model, with the settings published for it with Swin.

B batch, C channels, K classes, H W rows and columns of the image, of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Conv2dReLU
from torch import Tensor, nn

from stvit_cli.models.layers import BatchNorm2d
from stvit_cli.models.options import ModelOptions
from stvit_cli.models.stvit import STViT
from stvit_cli.models.timm_backbone import TimmBackbone
from stvit_cli.tasks.detection.backbone import create_backbone
from stvit_cli.tasks.segmentation.decoders import DecoderName, OtherDecoder, UPerNet, padded

AUX_STAGE = 2
"""The stage, counted from 0, whose features the auxiliary head takes."""


class Segmenter(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K, H, W), and in training those of the auxiliary head too, in float32.

    The stages compute in the precision of the surrounding autocast, the heads in float32.

    Args:
        backbone: the four stages, see `create_backbone`.
        num_classes: K.
        decoder: the name of the decoder.
        channels: channels of the decoder.
        aux_channels: channels of the auxiliary head.
        dropout: rate at which channels are dropped before both classifiers.
    """

    def __init__(
        self,
        backbone: STViT | TimmBackbone,
        num_classes: int,
        *,
        decoder: DecoderName = "upernet",
        channels: int,
        aux_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        dims = [info["num_chs"] for info in backbone.feature_info]
        self.num_classes = num_classes
        self.backbone = backbone
        self.decoder: nn.Module
        if decoder == "upernet":
            self.decoder, width = UPerNet(dims, channels), channels
        else:
            self.decoder = other = OtherDecoder(decoder, dims, channels)
            width = other.out_channels
        self.dropout = nn.Dropout2d(dropout)
        kernel = 3 if decoder == "unet" else 1  # as in segmentation-models-pytorch
        self.classifier = nn.Conv2d(width, num_classes, kernel, padding=kernel // 2)
        self.aux = Conv2dReLU(dims[AUX_STAGE], aux_channels, 3, padding=1)
        self.aux_classifier = nn.Conv2d(aux_channels, num_classes, 1)
        for head in (self.decoder, self.aux):
            initialize_decoder(head)
            _train_on_single_values(head)
        # Not the published N(0, 0.01): with a learning rate larger than the published one, the first steps then make all channels
        # of a classifier alike, as they learn which class is frequent, and the channels before it follow.
        for classifier in (self.classifier, self.aux_classifier):
            initialize_head(classifier)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = x.shape[-2:]
        if isinstance(self.decoder, OtherDecoder):
            x = padded(x)
        size = x.shape[-2:]
        features = self.backbone.forward_intermediates(x, intermediates_only=True)
        with _without_autocast(x.device.type):
            features = [feature.float() for feature in features]
            logits = _enlarged(self.classifier(self.dropout(self.decoder(features))), size)
            logits = logits[..., :height, :width]
            if not self.training:
                return logits
            aux_logits = _enlarged(self.aux_classifier(self.dropout(self.aux(features[AUX_STAGE]))), size)
            return logits, aux_logits[..., :height, :width]

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
    """Replace the batch norms by `models.layers.BatchNorm2d`, which trains on a single value per channel (one image, pooled)."""
    for module in list(head.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, BatchNorm2d(child.num_features))


def create_segmenter(
    name: str,
    num_classes: int,
    *,
    decoder: DecoderName = "upernet",
    channels: int = 512,
    aux_channels: int = 256,
    dropout: float = 0.1,
    drop_path_rate: float = 0.0,
    checkpointing: bool = False,
    **options: Unpack[ModelOptions],
) -> Segmenter:
    """Create UPerNet, or another segmenter, freshly initialised. The defaults are those published for UPerNet on ADE20K.

    Args:
        name: the backbone, such as ``stvit-s``, or ``timm/NAME``.
        num_classes: number of classes.
        decoder: ``upernet``, or segmentation-models-pytorch's ``fpn``, ``unet``, ``segformer`` or ``deeplabv3plus``.
        channels: channels of the decoder; 256 are segmentation-models-pytorch's own for all but UPerNet.
        aux_channels: channels of the auxiliary head, which is used in training only.
        dropout: rate at which channels are dropped before both classifiers.
        drop_path_rate: largest rate of stochastic depth.
        checkpointing: recompute activations in the backward pass, to save memory.
        **options: ``grid_sizes``, ``num_iters`` and the other options of the backbone, see `create_model`.

    Raises:
        UserError: no such model, or one without four stages.

    Example:
        >>> segmenter = create_segmenter("stvit-nano", num_classes=3, channels=32).eval()
        >>> segmenter(torch.rand(1, 3, 64, 48)).shape
        torch.Size([1, 3, 64, 48])
    """
    backbone = create_backbone(name, drop_path_rate=drop_path_rate, checkpointing=checkpointing, **options)
    return Segmenter(backbone, num_classes, decoder=decoder, channels=channels, aux_channels=aux_channels, dropout=dropout)
