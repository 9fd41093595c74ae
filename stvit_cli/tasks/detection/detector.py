"""The detector: images of any size in, boxes, classes, scores and masks in the images' own pixels out.

N objects or detections of an image, H W its rows and columns. Boxes are left, top, right, bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from stvit_cli.models.stvit import GridSizes
from stvit_cli.recipe import IMAGENET_MEAN, IMAGENET_STD, DetectionSection
from stvit_cli.tasks.detection.backbone import Pyramid, create_body
from stvit_cli.tasks.detection.cascade_rcnn import CascadeHeads
from stvit_cli.tasks.detection.mask_rcnn import Detections, MaskRCNNHeads
from stvit_cli.tasks.detection.roi import Targets
from stvit_cli.tasks.detection.rpn import Proposals

SIZE_DIVISOR = 32
"""Batches are padded with zeros, right and below, to a multiple of this."""


class Detector(nn.Module):
    """Mask R-CNN or Cascade Mask R-CNN.

    Args:
        pyramid: a model's four stages and the maps over them.
        section: head, sizes, thresholds.
        num_classes: kinds of objects; labels are 1 to this.
        mean, std: of the channels of images in 0..1.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        section: DetectionSection,
        num_classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.transform = _Resize(section.short_sides, section.long_side, list(mean), list(std), size_divisible=SIZE_DIVISOR)
        self.backbone = pyramid
        is_cascade = section.head == "cascade-mask-rcnn"
        self.rpn = Proposals(
            section.channels, section.anchor_scale, section.num_proposals, box_loss="smooth-l1" if is_cascade else "l1"
        )
        self.roi_heads = CascadeHeads(section, num_classes) if is_cascade else MaskRCNNHeads(section, num_classes)

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Detections:
        """Return named losses in training mode, otherwise what was found.

        Args:
            images: images (3, H, W) in 0..1, each of its own size.
            targets: in training, for each image ``boxes`` (N, 4), ``labels`` (N,), ``masks`` (N, H, W).

        Returns:
            For each image ``boxes`` (N, 4), ``scores`` (N,) falling, ``labels`` (N,), ``masks`` (N, 1, 28, 28): probabilities
            within the boxes. `paste_masks` makes masks of the image of them.
        """
        batch, resized = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        with torch.autocast(batch.tensors.device.type, enabled=False):
            proposals, losses = self.rpn(batch, features, resized)
            detections, of_heads = self.roi_heads(features, proposals, batch.image_sizes, resized)
        if self.training:
            return {"rpn_class": losses["loss_objectness"], "rpn_box": losses["loss_rpn_box_reg"]} | of_heads
        for image, size, found in zip(images, batch.image_sizes, detections, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], size, image.shape[-2:])
        return detections

    def compile_blocks(self) -> None:
        """Compile the backbone's blocks; see `STViT.compile_blocks`."""
        self.backbone.body.compile_blocks()


class _Resize(GeneralizedRCNNTransform):
    """torchvision's resizing, but an image so thin that a side would round to nothing keeps a pixel there."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        if int(min(height, width) * self.max_size / max(height, width)) >= 1:
            resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
            return resized
        size = (1, self.max_size) if height < width else (self.max_size, 1)
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            masks = F.interpolate(target["masks"][:, None].float(), size)[:, 0].byte()
            target = target | {"boxes": resize_boxes(target["boxes"], (height, width), size), "masks": masks}
        return image, target


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the masks of an image (N, H, W), bool, of the probabilities (N, 1, M, M) within boxes (N, 4); H, W is ``size``.

    One at a time: all of them together, as numbers, fill the memory where the image is large.
    """
    result = torch.zeros(len(boxes), *size, dtype=torch.bool, device=masks.device)
    for i in range(len(boxes)):
        result[i] = paste_masks_in_image(masks[i : i + 1], boxes[i : i + 1], size)[0, 0] >= 0.5
    return result


def create_detector(
    name: str,
    num_classes: int,
    section: DetectionSection | None = None,
    *,
    drop_path_rate: float = 0.0,
    grid_sizes: GridSizes | None = None,
    checkpointing: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Detector:
    """Build a detector on a model of `list_models`, freshly initialised.

    Args:
        name: of the model, one of `list_models`.
        num_classes: kinds of objects.
        section: head, sizes, thresholds; Mask R-CNN on COCO if none.
        drop_path_rate: largest rate of stochastic depth.
        grid_sizes: super-token cell of each stage, in tokens; None: the model's own.
        checkpointing: recompute activations in the backward pass, to save memory.
        mean: of the channels, for images in 0..1.
        std: of the channels, for images in 0..1.

    Raises:
        UserError: no such model, or one without four stages.
    """
    section = section or DetectionSection()
    body = create_body(name, drop_path_rate, grid_sizes, checkpointing)
    return Detector(Pyramid(body, section.channels, section.freeze_batch_norm), section, num_classes, mean, std)
