"""Regions of interest (RoIs): RoIAlign, box and mask heads, mask targets and mask loss. Used by both detectors.

N objects of an image, R RoIs of a batch, C channels, K classes with the background as class 0, M side of a mask, H W rows and
columns of an image. Boxes are left, top, right, bottom in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from stvit_cli.models.exporting import is_exporting
from stvit_cli.tasks.detection.backbone import LEVELS, STRIDES

Targets = list[dict[str, Tensor]]

BOX_SIDE, MASK_SIDE = 7, 14
"""Side of the RoI features that the box head and the mask head take; a predicted mask has twice the side."""


def _roi_align(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Return the features of RoIs (R, C, *size) by ``aligned=True`` and an adaptive number of samples.

    The operator itself: torchvision's function takes a form in Python, many times slower, where a GPU's sums are to have a fixed
    order (`engine.determinism`).
    """
    return torch.ops.torchvision.roi_align(features, rois, scale, *size, 0, True)


class MultiScaleRoIAlign(nn.Module):
    """RoIAlign with ``aligned=True`` and an adaptive number of samples, over the levels of an FPN.

    torchvision's module of this name has no ``aligned``. The level of an RoI is chosen in the same way (224 pixels: 1/16).

    Args:
        output_size: side of the features of an RoI.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = (output_size, output_size)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return the features of the RoIs of all images, in order: (R, C, output_size, output_size).

        Args:
            x: feature maps (B, C, h, w) by the names of `LEVELS`.
            boxes: the RoIs of each image, (R of the image, 4).
            image_shapes: height and width of each image; not used, as torchvision's heads pass it.
        """
        maps = [x[name] for name in LEVELS]
        image_index = torch.cat([torch.full_like(part[:, :1], i) for i, part in enumerate(boxes)])
        rois = torch.cat([image_index, torch.cat(boxes)], dim=1)  # (R, 5): index of the image, box
        sides = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0).prod(1).sqrt()
        levels = (4 + torch.log2(sides / 224 + 1e-6)).floor().clamp(2, 5).long() - 2  # (R,)
        if is_exporting():
            return self._in_order(maps, rois, levels)
        result = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, stride in enumerate(STRIDES[: len(maps)]):
            index = torch.where(levels == level)[0]
            features = _roi_align(maps[level], rois[index], self.output_size, 1 / stride)
            result.index_copy_(0, index, features)
        return result

    def _in_order(self, maps: list[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
        """Return the features of RoIs (R, 5) by concatenation: a graph cannot be told a number of RoIs to make room for."""
        indices = [torch.where(levels == level)[0] for level in range(len(maps))]
        parts = [
            _roi_align(level, rois[index], self.output_size, 1 / stride)
            for level, index, stride in zip(maps, indices, STRIDES[: len(maps)], strict=True)
        ]
        return torch.cat(parts)[torch.cat(indices).argsort()]


class BoxMaskHeads(RoIHeads):
    """A box head and, where it predicts masks, a mask head: torchvision's `RoIHeads` with mmdetection's RoIAlign and layers.

    The mask head is made last: without it the other layers are initialized as with it.

    Args:
        box_head: RoI features (R, channels, 7, 7) -> (R, fc_dim).
        channels: channels of the feature maps and of the mask head.
        fc_dim: width of the box head's output.
        num_classes: number of object classes, without the background.
        iou_threshold: an RoI with at least this IoU with an object is a positive sample.
        box_weights: weights of the box coder: 1 / standard deviation of dx, dy, dw, dh.
        num_samples: RoIs of an image that are sampled in training, at most a quarter of them positive.
        score_threshold, nms_threshold, max_detections: see `create_detector`.
        masks: False: boxes alone, without a mask head.
    """

    def __init__(
        self,
        box_head: nn.Module,
        *,
        channels: int,
        fc_dim: int,
        num_classes: int,
        iou_threshold: float,
        box_weights: tuple[float, float, float, float],
        num_samples: int,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        masks: bool,
    ) -> None:
        predictor = FastRCNNPredictor(fc_dim, num_classes + 1)
        init_box_layers(box_head, predictor)
        super().__init__(
            box_roi_pool=MultiScaleRoIAlign(BOX_SIDE),
            box_head=box_head,
            box_predictor=predictor,
            fg_iou_thresh=iou_threshold,
            bg_iou_thresh=iou_threshold,
            batch_size_per_image=num_samples,
            positive_fraction=0.25,
            bbox_reg_weights=box_weights,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
            mask_roi_pool=MultiScaleRoIAlign(MASK_SIDE) if masks else None,
            mask_head=build_mask_head(channels, num_classes + 1) if masks else None,
        )

    @property
    def predicts_masks(self) -> bool:
        """Whether there is a mask head; torchvision's ``has_mask`` also asks for a predictor of its own."""
        return self.mask_head is not None

    def predict(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return class logits (R, K) and box deltas of every class (R, 4 K)."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, shapes)))
        return logits, deltas

    def masks(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        """Return mask logits (R, K, 28, 28)."""
        logits: Tensor = self.mask_head(self.mask_roi_pool(features, boxes, shapes))
        return logits

    def forward_roi_features(self, box_features: Tensor, mask_features: Tensor) -> list[Tensor]:
        """Run the heads on RoI features, (R, C, 7, 7) and (R, C, 14, 14): what is counted as their cost."""
        boxes = list(self.box_predictor(self.box_head(box_features)))
        return [*boxes, self.mask_head(mask_features)] if self.predicts_masks else boxes


def build_mask_head(channels: int, num_classes: int) -> nn.Sequential:
    """Return four convolutions and an upsampling to logits (R, K, 28, 28): torchvision's, with zero biases as in mmdetection."""
    predictor = MaskRCNNPredictor(channels, channels, num_classes)
    for name, parameter in predictor.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return nn.Sequential(MaskRCNNHeads(channels, (channels,) * 4, dilation=1), predictor)


def init_box_layers(head: nn.Module, predictor: nn.Module) -> None:
    """Initialize as mmdetection does: linear layers Xavier uniform, classes N(0, 0.01), boxes N(0, 0.001)."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, side: int) -> Tensor:
    """Return the mask targets of RoIs, 0 or 1: (R, side, side).

    RoIAlign with ``aligned=True``, then a threshold of one half; torchvision's targets are not aligned and not binary.

    Args:
        masks: the masks of the image's objects, (N, H, W).
        boxes: the RoIs, (R, 4).
        matched: the index of each RoI's object, (R,).
        side: M.
    """
    rois = torch.cat([matched.to(boxes)[:, None], boxes], dim=1)
    crops = _roi_align(masks[:, None].to(boxes), rois, (side, side), 1.0)
    return (crops[:, 0] >= 0.5).to(boxes)


def mask_loss(logits: Tensor, boxes: Sequence[Tensor], matched: Sequence[Tensor], targets: Targets) -> Tensor:
    """Return the mean binary cross-entropy of the mask of the true class; 0 where there is no RoI.

    Args:
        logits: (R, K, M, M).
        boxes: the positive RoIs of each image.
        matched: for each of them the index of its object.
        targets: ``labels`` and ``masks`` of each image.
    """
    if not len(logits):
        return logits.sum() * 0  # an empty sum, which still reaches every parameter
    labels = torch.cat([part["labels"][index] for part, index in zip(targets, matched, strict=True)])
    mask_target = [
        mask_targets(part["masks"], own, index, logits.shape[-1])
        for part, own, index in zip(targets, boxes, matched, strict=True)
        if len(own)
    ]
    of_class = logits[torch.arange(len(labels), device=labels.device), labels]  # (R, M, M)
    return F.binary_cross_entropy_with_logits(of_class, torch.cat(mask_target))


def positives(proposals: list[Tensor], matched: list[Tensor], labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the boxes and the object indices of the positive RoIs of each image."""
    positive = [torch.where(label > 0)[0] for label in labels]
    boxes = [part[index] for part, index in zip(proposals, positive, strict=True)]
    return boxes, [part[index] for part, index in zip(matched, positive, strict=True)]


def having_masks(boxes: Sequence[Tensor], matched: Sequence[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
    """Return those of the positive RoIs of each image whose object has a mask: the others learn class and box alone.

    Args:
        boxes: the positive RoIs of each image.
        matched: for each of them the index of its object.
        targets: ``has_mask`` of each image, (N,) bool; where it is missing, all objects have masks.
    """
    has_mask = [
        part["has_mask"][index] if "has_mask" in part else torch.ones_like(index, dtype=torch.bool)
        for part, index in zip(targets, matched, strict=True)
    ]
    kept_boxes = [part[kept] for part, kept in zip(boxes, has_mask, strict=True)]
    return kept_boxes, [part[kept] for part, kept in zip(matched, has_mask, strict=True)]


def class_masks(probabilities: Tensor, labels: list[Tensor]) -> list[Tensor]:
    """Return for each image the masks of the predicted classes, (R of the image, 1, M, M), out of all classes' (R, K, M, M)."""
    index = torch.cat(labels)
    chosen = probabilities[torch.arange(len(index), device=index.device), index][:, None]
    return list(chosen.split([len(label) for label in labels]))
