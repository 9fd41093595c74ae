"""Mask R-CNN's heads (arXiv 1703.06870): class, box and mask of each RoI. torchvision's, with mmdetection's losses.

Without the mask head they are Faster R-CNN's (arXiv 1506.01497) on an FPN.

R RoIs, K classes with the background as class 0. A loss is the mean over the RoIs sampled in the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from stvit_cli.tasks.detection.roi import BOX_SIDE, BoxMaskHeads, Targets, class_masks, having_masks, mask_loss, positives
from stvit_cli.tasks.finite import require_finite

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Weights of the box coder: 1 / mmdetection's standard deviations 0.1, 0.1, 0.2, 0.2."""

Detections = list[dict[str, Tensor]]


class MaskRCNNHeads(BoxMaskHeads):
    """Classes, boxes and masks of the proposals: one box head of two linear layers, and unless ``masks`` is false a mask head.

    Args:
        channels: channels of the feature maps.
        num_classes: number of object classes, without the background.
        fc_dim, num_samples, score_threshold, nms_threshold, max_detections, masks: see `create_detector`.
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
        super().__init__(
            TwoMLPHead(channels * BOX_SIDE**2, fc_dim),
            channels=channels,
            fc_dim=fc_dim,
            num_classes=num_classes,
            iou_threshold=0.5,
            box_weights=BOX_WEIGHTS,
            num_samples=num_samples,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
            masks=masks,
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
            proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
            logits, regression = self.predict(features, proposals, image_shapes)
            losses = {
                "class": F.cross_entropy(logits, torch.cat(labels)),
                "box": box_loss(regression, torch.cat(labels), torch.cat(deltas)),
            }
            if self.predicts_masks:
                boxes, matched = having_masks(*positives(proposals, matched, labels), targets)
                losses["mask"] = mask_loss(self.masks(features, boxes, image_shapes), boxes, matched, targets)
            return [], losses
        logits, regression = self.predict(features, proposals, image_shapes)
        require_finite(logits, regression, counts=[len(part) for part in proposals])
        found = self.postprocess_detections(logits, regression, proposals, image_shapes)
        if not self.predicts_masks:
            return as_detections(found), {}
        masks = self.masks(features, found[0], image_shapes)
        require_finite(masks, counts=[len(part) for part in found[0]])
        probabilities = masks.sigmoid()
        return as_detections(found, class_masks(probabilities, found[2])), {}


def box_loss(regression: Tensor, labels: Tensor, deltas: Tensor) -> Tensor:
    """Return the L1 loss of the true class's box deltas, divided by the number of RoIs; torchvision's is smooth L1 (beta 1/9).

    Args:
        regression: predicted deltas of every class, (R, 4 K).
        labels: classes of the RoIs, 0 for the background, (R,).
        deltas: target deltas, (R, 4); those of the background are not used.
    """
    positive = torch.where(labels > 0)[0]
    of_class = regression.reshape(len(labels), -1, 4)[positive, labels[positive]]
    return F.l1_loss(of_class, deltas[positive], reduction="sum") / max(len(labels), 1)


def as_detections(found: tuple[list[Tensor], list[Tensor], list[Tensor]], masks: list[Tensor] | None = None) -> Detections:
    """Return boxes, scores and labels (``found``) and masks (R of the image, 1, 28, 28) as a dict for each image."""
    names = ("boxes", "scores", "labels") if masks is None else ("boxes", "scores", "labels", "masks")
    columns = zip(*found, *(() if masks is None else (masks,)), strict=True)
    return [dict(zip(names, column, strict=True)) for column in columns]
