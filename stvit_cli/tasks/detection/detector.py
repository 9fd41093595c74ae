"""The detector: Mask R-CNN or Cascade Mask R-CNN on an STViT backbone, with or without masks, for images of any size.

N objects or detections of an image, H W its rows and columns, M side of a mask. Boxes are left, top, right, bottom in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from stvit_cli.data.coco import encode_mask
from stvit_cli.errors import UserError
from stvit_cli.models.options import ModelOptions
from stvit_cli.recipe import IMAGENET_MEAN, IMAGENET_STD
from stvit_cli.tasks.detection.backbone import BackboneWithFPN, create_backbone
from stvit_cli.tasks.detection.cascade_rcnn import CascadeHeads
from stvit_cli.tasks.detection.mask_rcnn import Detections, MaskRCNNHeads
from stvit_cli.tasks.detection.roi import Targets
from stvit_cli.tasks.detection.rpn import RPN
from stvit_cli.utils.text import did_you_mean

SIZE_DIVISOR = 32
"""Batches are padded with zeros, right and bottom, to a multiple of this, in pixels."""

Head = Literal["mask-rcnn", "cascade-mask-rcnn", "faster-rcnn", "cascade-rcnn"]

BOX_ONLY: dict[Head, Head] = {"mask-rcnn": "faster-rcnn", "cascade-mask-rcnn": "cascade-rcnn"}
"""The same heads less the mask branch, by the name of those with it."""


class Detector(nn.Module):
    """Mask R-CNN, Cascade Mask R-CNN, or one of them less its masks; see `create_detector` for the other arguments.

    Args:
        backbone: stages and FPN; its ``out_channels`` is the width of the heads' convolutions.
        num_classes: number of object classes; labels are 1 to ``num_classes``.
    """

    def __init__(
        self,
        backbone: BackboneWithFPN,
        num_classes: int,
        *,
        head: Head,
        short_sides: Sequence[int],
        long_side: int,
        fc_dim: int,
        anchor_scale: float,
        num_proposals: int,
        num_samples: int,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.transform = DetectorTransform(short_sides, long_side, mean, std)
        self.backbone = backbone
        is_cascade = head in ("cascade-mask-rcnn", "cascade-rcnn")
        self.has_masks = head in BOX_ONLY
        box_loss: Literal["l1", "smooth-l1"] = "smooth-l1" if is_cascade else "l1"
        self.rpn = RPN(backbone.out_channels, anchor_scale, num_proposals, box_loss)
        self.roi_heads = (CascadeHeads if is_cascade else MaskRCNNHeads)(
            backbone.out_channels,
            num_classes,
            fc_dim=fc_dim,
            num_samples=num_samples,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
            masks=self.has_masks,
        )

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> dict[str, Tensor] | Detections:
        """Return named losses in training mode, otherwise the detections of each image.

        Args:
            images: images (3, H, W) in 0..1, each of its own size.
            targets: in training, for each image ``boxes`` (N, 4), ``labels`` (N,), and for heads with masks ``masks`` (N, H, W).
                Where some objects have none, ``has_mask`` (N,) bool says which have: the others train class and box alone.

        Returns:
            In evaluation, for each image ``boxes`` (N, 4), ``scores`` (N,) in descending order, ``labels`` (N,) and, from heads
            with masks, ``masks`` (N, 1, 28, 28), probabilities within the boxes; `paste_masks` turns them into masks of the
            image.

        Raises:
            NonFiniteOutputsError: in evaluation, where outputs are infinite or NaN.
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


def _chosen(head: Head, masks: bool | None) -> Head:
    """Return the head, less its masks where ``masks`` is false. Raises UserError as `create_detector` does."""
    if head not in get_args(Head):
        raise UserError(
            f"create_detector: no head '{head}'.{did_you_mean(head, get_args(Head))} Known: {', '.join(get_args(Head))}."
        )
    if masks and head not in BOX_ONLY:
        full = next(full for full, box_only in BOX_ONLY.items() if box_only == head)
        raise UserError(f"create_detector: the head {head} has no masks; with masks it is {full}.")
    return BOX_ONLY.get(head, head) if masks is False else head


class DetectorTransform(GeneralizedRCNNTransform):
    """torchvision's transform, but the short side of a very thin image is at least one pixel after resizing.

    Args:
        short_sides, long_side, mean, std: see `create_detector`.
    """

    def __init__(self, short_sides: Sequence[int], long_side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(tuple(short_sides), long_side, list(mean), list(std), size_divisible=SIZE_DIVISOR)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        if int(min(height, width) * self.max_size / max(height, width)) >= 1:
            resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
            return resized
        size = (1, self.max_size) if height < width else (self.max_size, 1)
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target = target | {"boxes": resize_boxes(target["boxes"], (height, width), size)}
            if "masks" in target:
                target["masks"] = F.interpolate(target["masks"][:, None].float(), size)[:, 0].byte()
        return image, target


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the masks of an image, bool (N, H, W), from probabilities within its boxes.

    Masks are pasted one at a time: as floats, all masks of a large image would fill the memory.

    Args:
        masks: probabilities within the boxes, (N, 1, M, M).
        boxes: (N, 4), in pixels of the image.
        size: H and W.
    """
    result = torch.zeros(len(boxes), *size, dtype=torch.bool, device=masks.device)
    for i in range(len(boxes)):
        result[i] = paste_masks_in_image(masks[i : i + 1], boxes[i : i + 1], size)[0, 0] >= 0.5
    return result


def encoded_masks(found: Mapping[str, Tensor], size: tuple[int, int]) -> list[dict[str, Any] | None]:
    """Return the masks of an image's detections in COCO's run-length encoding; None for each where there are boxes alone.

    Args:
        found: see `Detector.forward`, on the CPU.
        size: H and W.
    """
    if "masks" not in found:
        return [None] * len(found["boxes"])
    return [encode_mask(mask) for mask in paste_masks(found["masks"], found["boxes"], size).numpy()]


def create_detector(
    name: str,
    num_classes: int,
    *,
    head: Head = "mask-rcnn",
    masks: bool | None = None,
    short_sides: Sequence[int] = (800,),
    long_side: int = 1333,
    freeze_batch_norm: bool = True,
    channels: int = 256,
    fc_dim: int = 1024,
    anchor_scale: float = 8.0,
    num_proposals: int = 1000,
    num_samples: int = 512,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    max_detections: int = 100,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    drop_path_rate: float = 0.0,
    checkpointing: bool = False,
    **options: Unpack[ModelOptions],
) -> Detector:
    """Create a detector on a model of `list_models`, freshly initialised. The defaults are Mask R-CNN's on COCO.

    Args:
        name: the backbone, such as ``stvit-s``, or ``timm/NAME``.
        num_classes: number of object classes, without the background.
        head: ``mask-rcnn``, ``cascade-mask-rcnn`` with three stages of heads, or the same without masks: ``faster-rcnn``,
            ``cascade-rcnn``.
        masks: False: the head less its masks, ``faster-rcnn`` for ``mask-rcnn``; None: as ``head`` says.
        short_sides: images are resized to a short side of one of these in training, of the last in evaluation, in pixels.
        long_side: the largest long side after resizing, in pixels.
        freeze_batch_norm: batch norms of the backbone keep their running statistics in training.
        channels: channels of the FPN and of the heads' convolutions.
        fc_dim: width of the heads' linear layers.
        anchor_scale: side of a square anchor, in strides of its level.
        num_proposals: proposals of an image in training.
        num_samples: proposals of an image that the heads learn from, at most a quarter of them positive.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: of two detections of a class with a larger IoU, the one with the lower score is dropped.
        max_detections: the largest number of detections of an image.
        mean: of the channels, for images in 0..1.
        std: of the channels, for images in 0..1.
        drop_path_rate: largest rate of stochastic depth.
        checkpointing: recompute activations in the backward pass, to save memory.
        **options: ``grid_sizes``, ``num_iters`` and the other options of the backbone, see `create_model`.

    Raises:
        UserError: no such model or head, a model without four stages, or ``masks`` of a head that has none.

    Example:
        >>> detector = create_detector("stvit-nano", num_classes=4, channels=32, fc_dim=32, short_sides=(64,)).eval()
        >>> with torch.no_grad():
        ...     (detections,) = detector([torch.rand(3, 64, 80)])
        >>> sorted(detections)
        ['boxes', 'labels', 'masks', 'scores']
    """
    head = _chosen(head, masks)
    body = create_backbone(name, drop_path_rate=drop_path_rate, checkpointing=checkpointing, **options)
    return Detector(
        BackboneWithFPN(body, channels, freeze_batch_norm),
        num_classes,
        head=head,
        short_sides=short_sides,
        long_side=long_side,
        fc_dim=fc_dim,
        anchor_scale=anchor_scale,
        num_proposals=num_proposals,
        num_samples=num_samples,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_detections=max_detections,
        mean=mean,
        std=std,
    )
