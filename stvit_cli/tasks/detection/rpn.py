"""The region proposal network: torchvision's, with mmdetection's losses and matching.

L levels, A anchors of all levels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from stvit_cli.tasks.detection.backbone import STRIDES
from stvit_cli.tasks.finite import require_finite

MIN_QUALITY = 0.3
"""An object's best anchor is a match from this overlap on, even where it lacks the 0.7 of an ordinary match."""

RATIOS = (0.5, 1.0, 2.0)
NUM_BEFORE_NMS = 2000
NUM_IN_TEST = 1000


class AnchorMatcher(Matcher):
    """torchvision's gives every object its best anchor, however little the two overlap."""

    def __init__(self) -> None:
        super().__init__(0.7, 0.3, allow_low_quality_matches=True)

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, quality: Tensor) -> None:
        """Add to ``matches`` (A,) from ``quality``, the overlaps of objects and anchors (N, A)."""
        good_enough = quality.amax(dim=1) >= MIN_QUALITY
        super().set_low_quality_matches_(matches, all_matches, quality[good_enough])


class CheckedHead(RPNHead):
    """torchvision's, which in evaluation raises `NonFiniteOutputsError`: NaN would be left out as a small box is."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits and deltas of each level's maps (B, C, H, W)."""
        logits, deltas = super().forward(x)
        if not (self.training or torch.jit.is_tracing() or x[0].is_meta):
            require_finite(*x, *logits, *deltas)
        return logits, deltas


class Proposals(RegionProposalNetwork):
    """Proposes regions of an image that may hold an object; see `RegionProposalNetwork.forward`.

    Args:
        channels: width of the pyramid's maps.
        anchor_scale: side of a square anchor by its level's stride.
        num_in_training: regions of an image handed on in training.
        box_loss: Mask R-CNN learns with L1, the cascade with smooth L1 that bends at 1/9.
    """

    def __init__(self, channels: int, anchor_scale: float, num_in_training: int, box_loss: Literal["l1", "smooth-l1"]) -> None:
        sizes = tuple((anchor_scale * stride,) for stride in STRIDES)
        super().__init__(
            anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            head=CheckedHead(channels, len(RATIOS)),
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
        """Return the losses of objectness and boxes, both over the anchors drawn (256 of an image); torchvision's beta is 1/9.

        Args:
            objectness: logits, (A of all images, 1).
            deltas: of the anchors, (A of all images, 4).
            labels: of each image (A,): 1 object, 0 background, -1 neither.
            targets: what the deltas should be, of each image (A, 4).
        """
        positive, negative = (torch.cat(part).bool() for part in self.fg_bg_sampler(labels))
        drawn = positive | negative
        count = max(int(drawn.sum()), 1)
        boxes = F.smooth_l1_loss(deltas[positive], torch.cat(targets)[positive], beta=self.beta, reduction="sum") / count
        wanted = torch.cat(labels)[drawn]
        return F.binary_cross_entropy_with_logits(objectness.flatten()[drawn], wanted, reduction="sum") / count, boxes
