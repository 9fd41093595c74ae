"""Cascade Mask R-CNN's heads: three box heads, each refining the boxes of the one before, and three mask heads.

Of torchvision's parts, with the settings and the order of mmdetection. R regions, K classes with the background as class 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from stvit_cli.recipe import DetectionSection
from stvit_cli.tasks.detection.mask_rcnn import BOX_WEIGHTS, Detections, as_detections
from stvit_cli.tasks.detection.roi import (
    BOX_SIDE,
    MASK_SIDE,
    RegionAlign,
    Targets,
    build_mask_head,
    class_masks,
    init_box_layers,
    mask_loss,
    objects_only,
)
from stvit_cli.tasks.finite import require_finite

OVERLAPS = (0.5, 0.6, 0.7)
"""A region of a stage is an object from this overlap on."""

CODER_WEIGHTS = (BOX_WEIGHTS, (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""One by the deviations .1 .1 .2 .2, .05 .05 .1 .1, .033 .033 .067 .067 (a tenth and a fifth, by 1, 2 and 3)."""

LOSS_WEIGHTS = (1.0, 0.5, 0.25)
GIOU_WEIGHT = 10.0


class Stage(RoIHeads):
    """One box head and one mask head: four normed convolutions and a linear layer; four convolutions."""

    def __init__(self, section: DetectionSection, num_classes: int, number: int) -> None:
        channels = section.channels
        head = FastRCNNConvFCHead((channels, BOX_SIDE, BOX_SIDE), [channels] * 4, [section.fc_dim], norm_layer=nn.BatchNorm2d)
        predictor = FastRCNNPredictor(section.fc_dim, num_classes + 1)
        init_box_layers(head, predictor)
        super().__init__(
            box_roi_pool=RegionAlign(BOX_SIDE),
            box_head=head,
            box_predictor=predictor,
            fg_iou_thresh=OVERLAPS[number],
            bg_iou_thresh=OVERLAPS[number],
            batch_size_per_image=section.num_samples,
            positive_fraction=0.25,
            bbox_reg_weights=CODER_WEIGHTS[number],
            score_thresh=section.score_threshold,
            nms_thresh=section.nms_threshold,
            detections_per_img=section.max_detections,
            mask_roi_pool=RegionAlign(MASK_SIDE),
            mask_head=build_mask_head(channels, num_classes + 1),
        )

    def predict(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return class logits (R, K) and, class by class, what to change of the boxes (R, 4 K)."""
        logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, shapes)))
        return logits, regression

    def masks(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        """Return mask logits (R, K, 28, 28)."""
        logits: Tensor = self.mask_head(self.mask_roi_pool(features, boxes, shapes))
        return logits


class CascadeHeads(nn.Module):
    """Three stages, one after the other."""

    def __init__(self, section: DetectionSection, num_classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(section, num_classes, number) for number in range(len(OVERLAPS)))

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[Detections, dict[str, Tensor]]:
        """Return the detections (empty in training) and the losses (empty otherwise).

        Raises:
            NonFiniteOutputsError: in evaluation, where logits or boxes are infinite or not a number.
        """
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]], targets: Targets
    ) -> dict[str, Tensor]:
        losses = {}
        for number, (stage, weight) in enumerate(zip(self._stages(), LOSS_WEIGHTS, strict=True), start=1):
            boxes, matched, labels, _ = stage.select_training_samples(boxes, targets)
            logits, regression = stage.predict(features, boxes, shapes)
            label = torch.cat(labels)
            losses[f"class_{number}"] = weight * F.cross_entropy(logits, label)
            losses[f"box_{number}"] = weight * box_loss(stage.box_coder, regression, boxes, label, matched, targets)
            of_objects = objects_only(boxes, matched, labels)
            masks = stage.masks(features, of_objects[0], shapes)
            losses[f"mask_{number}"] = weight * mask_loss(masks, *of_objects, targets)
            likeliest = 1 + logits[:, 1:].argmax(1)
            refined = refine(stage.box_coder, regression, boxes, torch.where(label > 0, label, likeliest), shapes)
            boxes = [without_true_boxes(part, given, own) for part, given, own in zip(refined, boxes, targets, strict=True)]
        return losses

    def _detect(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Detections:
        """Classes by the mean logits of the three stages, boxes by the last, masks by the mean of the three probabilities."""
        all_logits = []
        for stage in self._stages():
            logits, regression = stage.predict(features, boxes, shapes)
            require_finite(logits, regression, counts=[len(part) for part in boxes])
            all_logits.append(logits)
            before, boxes = boxes, refine(stage.box_coder, regression, boxes, 1 + logits[:, 1:].argmax(1), shapes)
        found = stage.postprocess_detections(torch.stack(all_logits).mean(0), regression, before, shapes)
        masks = [stage.masks(features, found[0], shapes) for stage in self._stages()]
        require_finite(*masks, counts=[len(part) for part in found[0]])
        probabilities = torch.stack([logits.sigmoid() for logits in masks]).mean(0)
        return as_detections(found, class_masks(probabilities, found[2]))

    def on_cut_regions(self, regions: Tensor, mask_regions: Tensor) -> list[Tensor]:
        """As `MaskRCNNHeads.on_cut_regions`, for every stage."""
        return [
            output
            for stage in self._stages()
            for output in (*stage.box_predictor(stage.box_head(regions)), stage.mask_head(mask_regions))
        ]

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.stages if isinstance(stage, Stage)]


def box_loss(
    coder: BoxCoder, regression: Tensor, boxes: list[Tensor], labels: Tensor, matched: list[Tensor], targets: Targets
) -> Tensor:
    """Return ten times the GIoU loss between decoded and true boxes of the objects, over all regions.

    Args:
        coder: decodes the regression into boxes.
        regression: (R, 4 K), class by class.
        boxes: the regions of each image.
        labels: (R,).
        matched: for each image, which object a region is.
        targets: boxes and labels of the objects of each image.
    """
    positive = torch.where(labels > 0)[0]
    mine = regression.reshape(len(labels), -1, 4)[positive, labels[positive]]
    wanted = torch.cat([_matched_boxes(own, index) for own, index in zip(targets, matched, strict=True)])
    decoded = coder.decode_single(mine, torch.cat(boxes)[positive])
    return GIOU_WEIGHT * generalized_box_iou_loss(decoded, wanted[positive], reduction="sum") / max(len(labels), 1)


def _matched_boxes(target: dict[str, Tensor], matched: Tensor) -> Tensor:
    """Return the true box of each region (R, 4); where the image has no object, zeros, as torchvision does."""
    boxes = target["boxes"]
    return boxes[matched] if len(boxes) else boxes.new_zeros(len(matched), 4)


@torch.no_grad()
def refine(
    coder: BoxCoder, regression: Tensor, boxes: list[Tensor], labels: Tensor, shapes: list[tuple[int, int]]
) -> list[Tensor]:
    """Return the boxes of each image, changed as their class's part of ``regression`` (R, 4 K) says, within the image."""
    mine = regression.reshape(len(labels), -1, 4)[torch.arange(len(labels), device=labels.device), labels]
    # In training the next stage gets these boxes before the step learns that the loss is not a number, and RoIAlign, where it is
    # given NaN, takes memory without end.
    decoded = coder.decode_single(mine, torch.cat(boxes)).nan_to_num(nan=0.0)
    by_image = decoded.split([len(part) for part in boxes])
    return [clip_boxes_to_image(part, shape) for part, shape in zip(by_image, shapes, strict=True)]


def without_true_boxes(refined: Tensor, before: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Drop the regions that were true boxes, added to the proposals: the next stage would learn from answers that it is given."""
    is_true = (before[:, None] == target["boxes"].to(before)).all(2).any(1)  # (R,)
    return refined[~is_true]
