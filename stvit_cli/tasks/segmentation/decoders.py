"""Decoders of segmentation-models-pytorch by name, over the four stages of a model.

B batch, C channels, H W rows and columns of the image, h w of its first features, at 1/4 of the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

DecoderName = Literal["upernet", "fpn", "unet", "segformer", "deeplabv3plus"]

SIZE_DIVISOR = 32
"""What the sides of an image are padded to a multiple of for all decoders but UPerNet, which takes any size."""

_ATROUS_RATES = (6, 12, 18)  # half of those published for a last stage at 1/16, as it is at 1/32 here


class UPerNet(UPerNetDecoder):
    """Features of the stages (B, C, h, w) at 1/4, 1/8, 1/16 and 1/32 -> (B, channels, H / 4, W / 4).

    segmentation-models-pytorch's decoder with two changes: no layer norms on its inputs, as in the published UPerNet, and a list
    of features that starts with the first stage, not with the image.
    """

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        super().__init__([0, 0, *dims], decoder_channels=channels)
        self.feature_norms = nn.ModuleList(nn.Identity() for _ in dims)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return super().forward([None, None, *features])


class OtherDecoder(nn.Module):
    """One of the other decoders: features as of `UPerNet` -> (B, out_channels, h, w), or (B, out_channels, H, W) of U-Net.

    The decoders are segmentation-models-pytorch's own, and of its own widths with 256 channels. DeepLabV3+ has its atrous
    convolutions on the last stage as it is, at 1/32.

    Args:
        name: the decoder.
        dims: channels of the stages.
        channels: the largest number of channels of the decoder.
    """

    def __init__(self, name: DecoderName, dims: Sequence[int], channels: int) -> None:
        super().__init__()
        widths = [3, 0, *dims]  # of the image, of features at 1/2, which there are none of, and of the stages
        self.out_channels = channels
        if name == "unet":
            blocks = [max(1, channels >> i) for i in range(5)]
            self.net: nn.Module = UnetDecoder(widths, blocks, n_blocks=5)
            self.out_channels = blocks[-1]
        elif name == "fpn":
            self.out_channels = max(32, channels // 64 * 32)  # its group norms have 32 groups
            self.net = FPNDecoder(widths, 5, channels, self.out_channels, dropout=0.0)
        elif name == "segformer":
            self.net = SegformerDecoder(widths, 5, channels)
        else:
            self.net = DeepLabV3PlusDecoder(widths, 5, channels, _ATROUS_RATES, 16, True, 0.5)
            self.net.up = nn.UpsamplingBilinear2d(scale_factor=8)  # the same without weights, from 1/32 rather than 1/16

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        first = features[0]
        batch, height, width = len(first), first.shape[2], first.shape[3]
        # Only the sizes of the image and of its half are read.
        image, half = (first.new_empty(batch, 0, height * factor, width * factor) for factor in (4, 2))
        decoded: Tensor = self.net([image, half, *features])
        return decoded


def padded(x: Tensor) -> Tensor:
    """Pad images (B, 3, H, W) right and below to sides of a multiple of `SIZE_DIVISOR`, their last column and row repeated."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % SIZE_DIVISOR, 0, -height % SIZE_DIVISOR), mode="replicate")
