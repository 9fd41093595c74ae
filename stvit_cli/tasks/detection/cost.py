"""The cost of a detector: its parameters, and the multiply-adds for one image.

Counted as published: backbone, FPN and RPN on the complete image, the box heads on 1000 RoIs and the mask heads on 100, whatever
the image shows. RoIAlign and non-maximum suppression are not counted.
"""

from __future__ import annotations

from torch import Tensor, nn

from stvit_cli.tasks.detection.detector import Detector
from stvit_cli.tasks.detection.roi import BOX_SIDE, MASK_SIDE

NUM_BOX_ROIS, NUM_MASK_ROIS = 1000, 100


class CountedDetector(nn.Module):
    """The counted part of a detector in a form that can be traced: an image (1, 3, H, W) -> the outputs of all heads."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.rpn_head, self.roi_heads = detector.backbone, detector.rpn.head, detector.roi_heads

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.backbone(image)
        objectness, deltas = self.rpn_head(list(features.values()))
        channels = self.backbone.out_channels
        box_features = image.new_zeros(NUM_BOX_ROIS, channels, BOX_SIDE, BOX_SIDE)
        mask_features = image.new_zeros(NUM_MASK_ROIS, channels, MASK_SIDE, MASK_SIDE)
        return [*objectness, *deltas, *self.roi_heads.forward_roi_features(box_features, mask_features)]
