"""The heads of Cascade Mask R-CNN (arXiv 1906.09756): three stages, each refining the boxes of the one before.

Without the mask heads they are Cascade R-CNN's (arXiv 1712.00726).

torchvision's layers with mmdetection's settings and order. R RoIs, K classes with the background as class 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from stvit_cli.tasks.detection.mask_rcnn import BOX_WEIGHTS, Detections, as_detections
from stvit_cli.tasks.detection.roi import BOX_SIDE, BoxMaskHeads, Targets, class_masks, having_masks, mask_loss, positives
from stvit_cli.tasks.finite import require_finite

IOU_THRESHOLDS = (0.5, 0.6, 0.7)
"""The least IoU with an object of a positive sample, for each stage."""

CODER_WEIGHTS = (BOX_WEIGHTS, (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""Weights of the box coder of each stage: 1 / the standard deviations (0.1, 0.1, 0.2, 0.2), divided by 1, 2 and 3."""

LOSS_WEIGHTS = (1.0, 0.5, 0.25)
GIOU_WEIGHT = 10.0


class CascadeHeads(nn.Module):
    """Three stages, one after the other, of a box head (four convolutions with batch norm, a linear layer) and a mask head.

    Args:
        channels: channels of the feature maps.
        num_classes: number of object classes, without the background.
        fc_dim, num_samples, score_threshold, nms_threshold, max_detections: see `create_detector`.
        masks: False: boxes alone, without mask heads.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        fc_dim: int,
        num_samples: int,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        masks: bool = True,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            BoxMaskHeads(
                FastRCNNConvFCHead((channels, BOX_SIDE, BOX_SIDE), [channels] * 4, [fc_dim], norm_layer=nn.BatchNorm2d),
                channels=channels,
                fc_dim=fc_dim,
                num_classes=num_classes,
                iou_threshold=iou_threshold,
                box_weights=box_weights,
                num_samples=num_samples,
                score_threshold=score_threshold,
                nms_threshold=nms_threshold,
                max_detections=max_detections,
                masks=masks,
            )
            for iou_threshold, box_weights in zip(IOU_THRESHOLDS, CODER_WEIGHTS, strict=True)
        )

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
            if stage.predicts_masks:
                positive_boxes, objects = having_masks(*positives(boxes, matched, labels), targets)
                masks = stage.masks(features, positive_boxes, shapes)
                losses[f"mask_{number}"] = weight * mask_loss(masks, positive_boxes, objects, targets)
            likeliest = 1 + logits[:, 1:].argmax(1)
            refined = refine(stage.box_coder, regression, boxes, torch.where(label > 0, label, likeliest), shapes)
            boxes = [drop_ground_truth(part, before, own) for part, before, own in zip(refined, boxes, targets, strict=True)]
        return losses

    def _detect(self, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]) -> Detections:
        """Take the classes from the mean logits of the stages, boxes from the last stage, masks from the mean probabilities."""
        all_logits = []
        for stage in self._stages():
            logits, regression = stage.predict(features, boxes, shapes)
            require_finite(logits, regression, counts=[len(part) for part in boxes])
            all_logits.append(logits)
            before, boxes = boxes, refine(stage.box_coder, regression, boxes, 1 + logits[:, 1:].argmax(1), shapes)
        found = stage.postprocess_detections(torch.stack(all_logits).mean(0), regression, before, shapes)
        if not stage.predicts_masks:
            return as_detections(found)
        masks = [stage.masks(features, found[0], shapes) for stage in self._stages()]
        require_finite(*masks, counts=[len(part) for part in found[0]])
        probabilities = torch.stack([logits.sigmoid() for logits in masks]).mean(0)
        return as_detections(found, class_masks(probabilities, found[2]))

    def forward_roi_features(self, box_features: Tensor, mask_features: Tensor) -> list[Tensor]:
        """See `BoxMaskHeads.forward_roi_features`; the outputs of every stage."""
        return [output for stage in self._stages() for output in stage.forward_roi_features(box_features, mask_features)]

    def _stages(self) -> list[BoxMaskHeads]:
        return [stage for stage in self.stages if isinstance(stage, BoxMaskHeads)]


def box_loss(
    coder: BoxCoder, regression: Tensor, boxes: list[Tensor], labels: Tensor, matched: list[Tensor], targets: Targets
) -> Tensor:
    """Return the GIoU loss of the decoded boxes of positive RoIs, times `GIOU_WEIGHT`, divided by the number of RoIs.

    Args:
        coder: decodes the deltas of the stage.
        regression: predicted deltas of every class, (R, 4 K).
        boxes: the RoIs of each image, (R of the image, 4).
        labels: classes of the RoIs, 0 for the background, (R,).
        matched: for each image, the index of each RoI's object.
        targets: the objects of each image.
    """
    positive = torch.where(labels > 0)[0]
    of_class = regression.reshape(len(labels), -1, 4)[positive, labels[positive]]
    true_boxes = torch.cat([_matched_boxes(own, index) for own, index in zip(targets, matched, strict=True)])
    decoded = coder.decode_single(of_class, torch.cat(boxes)[positive])
    return GIOU_WEIGHT * generalized_box_iou_loss(decoded, true_boxes[positive], reduction="sum") / max(len(labels), 1)


def _matched_boxes(target: dict[str, Tensor], matched: Tensor) -> Tensor:
    """Return the true box of each RoI (R, 4); zeros where the image has no object, as in torchvision."""
    boxes = target["boxes"]
    return boxes[matched] if len(boxes) else boxes.new_zeros(len(matched), 4)


@torch.no_grad()
def refine(
    coder: BoxCoder, regression: Tensor, boxes: list[Tensor], labels: Tensor, shapes: list[tuple[int, int]]
) -> list[Tensor]:
    """Return the boxes of each image, refined by the deltas of their class in ``regression`` (R, 4 K), clipped to the image."""
    of_class = regression.reshape(len(labels), -1, 4)[torch.arange(len(labels), device=labels.device), labels]
    # In training the next stage gets these boxes before the step finds that the loss is NaN, and RoIAlign allocates memory
    # without limit for a box of NaN.
    decoded = coder.decode_single(of_class, torch.cat(boxes)).nan_to_num(nan=0.0)
    by_image = decoded.split([len(part) for part in boxes])
    return [clip_boxes_to_image(part, shape) for part, shape in zip(by_image, shapes, strict=True)]


def drop_ground_truth(refined: Tensor, before: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Drop the RoIs that were ground-truth boxes added to the proposals, as mmdetection does: in inference there are none."""
    is_true = (before[:, None] == target["boxes"].to(before)).all(2).any(1)  # (R,)
    return refined[~is_true]
