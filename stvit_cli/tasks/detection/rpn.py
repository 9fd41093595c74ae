"""The region proposal network (RPN): torchvision's, with mmdetection's losses and matching.

A anchors of all levels, N objects of an image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from stvit_cli.models.exporting import is_exporting
from stvit_cli.tasks.detection.backbone import STRIDES
from stvit_cli.tasks.finite import require_finite

MIN_QUALITY = 0.3
"""The least IoU at which an object's best anchor is positive even below the ordinary threshold of 0.7."""

RATIOS = (0.5, 1.0, 2.0)
NUM_BEFORE_NMS = 2000
NUM_IN_TEST = 1000


class AnchorMatcher(Matcher):
    """torchvision's matcher, but an object's best anchor must overlap it by `MIN_QUALITY`; torchvision has no such limit."""

    def __init__(self) -> None:
        super().__init__(0.7, 0.3, allow_low_quality_matches=True)

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, quality: Tensor) -> None:
        """Add the best anchors to ``matches`` (A,); ``quality`` is the IoU of objects and anchors (N, A)."""
        good_enough = quality.amax(dim=1) >= MIN_QUALITY
        super().set_low_quality_matches_(matches, all_matches, quality[good_enough])


class FiniteRPNHead(RPNHead):
    """torchvision's head; in evaluation it raises `NonFiniteOutputsError`, as boxes of NaN would be dropped like small ones."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness logits and box deltas for the feature map (B, C, h, w) of each level."""
        logits, deltas = super().forward(x)
        if not (self.training or torch.jit.is_tracing() or x[0].is_meta or is_exporting()):
            require_finite(*x, *logits, *deltas)
        return logits, deltas


class RPN(RegionProposalNetwork):
    """Proposes boxes of an image that may hold an object; see `RegionProposalNetwork.forward`.

    Args:
        channels: channels of the feature maps.
        anchor_scale: side of a square anchor, in strides of its level.
        num_in_training: proposals of an image in training.
        box_loss: l1 (Mask R-CNN) or smooth-l1 with beta 1/9 (the cascade).
    """

    def __init__(self, channels: int, anchor_scale: float, num_in_training: int, box_loss: Literal["l1", "smooth-l1"]) -> None:
        sizes = tuple((anchor_scale * stride,) for stride in STRIDES)
        super().__init__(
            anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            head=FiniteRPNHead(channels, len(RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": NUM_BEFORE_NMS, "testing": NUM_IN_TEST},
            post_nms_top_n={"training": num_in_training, "testing": NUM_IN_TEST},
            nms_thresh=0.7,
        )
        self.proposal_matcher = AnchorMatcher()
        self.beta = 0.0 if box_loss == "l1" else 1 / 9

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness and boxes, both divided by the number of sampled anchors (256 of an image).

        Args:
            objectness: logits, (A of all images, 1).
            deltas: predicted box deltas, (A of all images, 4).
            labels: for each image (A,): 1 object, 0 background, -1 ignored.
            targets: the target deltas of each image, (A, 4).
        """
        positive, negative = (torch.cat(part).bool() for part in self.fg_bg_sampler(labels))
        sampled = positive | negative
        count = max(int(sampled.sum()), 1)
        boxes = F.smooth_l1_loss(deltas[positive], torch.cat(targets)[positive], beta=self.beta, reduction="sum") / count
        is_object = torch.cat(labels)[sampled]
        return F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], is_object, reduction="sum") / count, boxes
