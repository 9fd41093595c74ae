"""Regions of an image: cutting them out of the pyramid, and learning their masks. What both detectors share.

R regions, C channels, K classes with the background as class 0, M side of a mask, H W of an image. Boxes are left, top, right,
bottom in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from stvit_cli.tasks.detection.backbone import LEVELS, STRIDES

Targets = list[dict[str, Tensor]]

BOX_SIDE, MASK_SIDE = 7, 14
"""Of a region cut out for the box head and for the mask head; the mask that comes out has twice the side."""


class RegionAlign(nn.Module):
    """RoIAlign aligned by half a pixel, with as many samples as a region's size asks for.

    torchvision's MultiScaleRoIAlign knows only the unaligned form; the level of a region is chosen as there (224 pixels: 1/16).
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = (output_size, output_size)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return (R, C, output_size, output_size) for the boxes of all images, in their order."""
        maps = [x[name] for name in LEVELS]
        numbers = torch.cat([part.new_full((len(part), 1), i) for i, part in enumerate(boxes)])
        regions = torch.cat([numbers, torch.cat(boxes)], dim=1)  # (R, 5): number of the image, box
        sides = (regions[:, 3:] - regions[:, 1:3]).clamp(min=0).prod(1).sqrt()
        levels = (4 + torch.log2(sides / 224 + 1e-6)).floor().clamp(2, 5).long() - 2  # (R,)
        result = maps[0].new_zeros(len(regions), maps[0].shape[1], *self.output_size)
        for level, stride in enumerate(STRIDES[: len(maps)]):
            mine = torch.where(levels == level)[0]
            cut = roi_align(maps[level], regions[mine], self.output_size, 1 / stride, sampling_ratio=0, aligned=True)
            result = result.index_copy(0, mine, cut)
        return result


def build_mask_head(channels: int, num_classes: int) -> nn.Sequential:
    """Return four convolutions, and a doubling to logits (R, K, 28, 28); torchvision's, with zero biases as mmdetection's."""
    predictor = MaskRCNNPredictor(channels, channels, num_classes)
    for name, parameter in predictor.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return nn.Sequential(MaskRCNNHeads(channels, (channels,) * 4, dilation=1), predictor)


def init_box_layers(head: nn.Module, predictor: nn.Module) -> None:
    """mmdetection's start: linear layers by Glorot, classes N(0, 0.01), boxes N(0, 0.001); torchvision leaves PyTorch's."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, side: int) -> Tensor:
    """Return what the masks (R, M, M) of boxes (R, 4) should be, 0 or 1, out of the images' own (N, H, W).

    Aligned by half a pixel and cut at one half; torchvision's are unaligned and keep the grey values.
    """
    regions = torch.cat([matched.to(boxes)[:, None], boxes], dim=1)
    cut = roi_align(masks[:, None].to(boxes), regions, (side, side), 1.0, sampling_ratio=0, aligned=True)
    return (cut[:, 0] >= 0.5).to(boxes)


def mask_loss(logits: Tensor, boxes: Sequence[Tensor], matched: Sequence[Tensor], targets: Targets) -> Tensor:
    """Return the mean binary cross-entropy of the true class's mask; 0 where there is no region.

    Args:
        logits: (R, K, M, M).
        boxes: the regions of each image, objects only.
        matched: which object of its image each of them is.
        targets: ``labels`` and ``masks`` of each image.
    """
    if not len(logits):
        return logits.sum() * 0  # an empty sum, which still reaches every parameter
    labels = torch.cat([part["labels"][index] for part, index in zip(targets, matched, strict=True)])
    wanted = [
        mask_targets(part["masks"], own, index, logits.shape[-1])
        for part, own, index in zip(targets, boxes, matched, strict=True)
        if len(own)
    ]
    mine = logits[torch.arange(len(labels), device=labels.device), labels]  # (R, M, M)
    return F.binary_cross_entropy_with_logits(mine, torch.cat(wanted))


def objects_only(proposals: list[Tensor], matched: list[Tensor], labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the boxes and matches of the regions that are objects, image by image."""
    positive = [torch.where(label > 0)[0] for label in labels]
    boxes = [part[index] for part, index in zip(proposals, positive, strict=True)]
    return boxes, [part[index] for part, index in zip(matched, positive, strict=True)]


def class_masks(probabilities: Tensor, labels: list[Tensor]) -> list[Tensor]:
    """Return for each image the masks (R, 1, M, M) of the regions' own classes, out of those of all classes (R, K, M, M)."""
    index = torch.cat(labels)
    chosen = probabilities[torch.arange(len(index), device=index.device), index][:, None]
    return list(chosen.split([len(label) for label in labels]))
