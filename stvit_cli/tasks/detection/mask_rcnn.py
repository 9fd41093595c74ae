"""Mask R-CNN's heads: what each region shows, its box, its mask. torchvision's, with mmdetection's losses.

R regions, K classes with the background as class 0. A loss is the mean over the regions drawn in the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads

from stvit_cli.recipe import DetectionSection
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

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Of the box coder: one by mmdetection's deviations .1 .1 .2 .2."""

Detections = list[dict[str, Tensor]]


class MaskRCNNHeads(RoIHeads):
    """Classes, boxes and masks of proposed regions.

    Args:
        num_classes: kinds of objects, without the background.
    """

    def __init__(self, section: DetectionSection, num_classes: int) -> None:
        head = TwoMLPHead(section.channels * BOX_SIDE**2, section.fc_dim)
        predictor = FastRCNNPredictor(section.fc_dim, num_classes + 1)
        init_box_layers(head, predictor)
        super().__init__(
            box_roi_pool=RegionAlign(BOX_SIDE),
            box_head=head,
            box_predictor=predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=section.num_samples,
            positive_fraction=0.25,
            bbox_reg_weights=BOX_WEIGHTS,
            score_thresh=section.score_threshold,
            nms_thresh=section.nms_threshold,
            detections_per_img=section.max_detections,
            mask_roi_pool=RegionAlign(MASK_SIDE),
            mask_head=build_mask_head(section.channels, num_classes + 1),
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
            logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
            boxes, matched = objects_only(proposals, matched, labels)
            masks = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
            return [], {
                "class": F.cross_entropy(logits, torch.cat(labels)),
                "box": box_loss(regression, torch.cat(labels), torch.cat(deltas)),
                "mask": mask_loss(masks, boxes, matched, targets),
            }
        logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        require_finite(logits, regression, counts=[len(part) for part in proposals])
        found = self.postprocess_detections(logits, regression, proposals, image_shapes)
        masks = self.mask_head(self.mask_roi_pool(features, found[0], image_shapes))
        require_finite(masks, counts=[len(part) for part in found[0]])
        probabilities = masks.sigmoid()
        return as_detections(found, class_masks(probabilities, found[2])), {}

    def on_cut_regions(self, regions: Tensor, mask_regions: Tensor) -> list[Tensor]:
        """Run the heads on regions that are cut out already, (R, C, 7, 7) and (R, C, 14, 14): what they cost is counted so."""
        return [*self.box_predictor(self.box_head(regions)), self.mask_head(mask_regions)]


def box_loss(regression: Tensor, labels: Tensor, deltas: Tensor) -> Tensor:
    """Return the L1 loss of the true class's box, over all regions; torchvision's is smooth, with a bend at 1/9.

    Args:
        regression: (R, 4 K), class by class.
        labels: (R,).
        deltas: (R, 4), of the regions that are no background.
    """
    positive = torch.where(labels > 0)[0]
    mine = regression.reshape(len(labels), -1, 4)[positive, labels[positive]]
    return F.l1_loss(mine, deltas[positive], reduction="sum") / max(len(labels), 1)


def as_detections(found: tuple[list[Tensor], list[Tensor], list[Tensor]], masks: list[Tensor]) -> Detections:
    """Return boxes, scores and labels, and masks (R, 1, 28, 28) within the boxes, as a dict for each image."""
    columns = zip(*found, masks, strict=True)
    return [{"boxes": box, "scores": score, "labels": label, "masks": mask} for box, score, label, mask in columns]
