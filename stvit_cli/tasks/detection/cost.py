"""What a detector costs: its parameters, and the multiply-adds of one image.

As published figures are counted: backbone, pyramid and proposals on the whole image, the box heads on 1000 regions and the
mask heads on 100, whatever the image shows. Cutting out regions and choosing boxes are no products of matrices: not counted.
"""

from __future__ import annotations

from torch import Tensor, nn

from stvit_cli.tasks.detection.detector import Detector
from stvit_cli.tasks.detection.roi import BOX_SIDE, MASK_SIDE

NUM_BOX_REGIONS, NUM_MASK_REGIONS = 1000, 100


class CountedDetector(nn.Module):
    """The part of a detector that costs, in a form that can be traced: (1, 3, H, W) -> everything the heads say."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.rpn_head, self.roi_heads = detector.backbone, detector.rpn.head, detector.roi_heads

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.backbone(image)
        objectness, deltas = self.rpn_head(list(features.values()))
        channels = self.backbone.out_channels
        regions = image.new_zeros(NUM_BOX_REGIONS, channels, BOX_SIDE, BOX_SIDE)
        mask_regions = image.new_zeros(NUM_MASK_REGIONS, channels, MASK_SIDE, MASK_SIDE)
        return [*objectness, *deltas, *self.roi_heads.on_cut_regions(regions, mask_regions)]
