"""A detector as one graph for ONNX files: an image of any size to boxes, scores, labels and masks.

The layers are the detector's own; what lies between them (anchors, top k, decoding, clipping, NMS) is written again for one image
and without Python numbers that depend on its size, which a traced graph would keep as constants.

A anchors of a level, R RoIs, N detections, K classes with the background as class 0, H W rows and columns of the image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, _topk_min
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes

from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import DetectionSection
from stvit_cli.tasks.detection.backbone import LEVELS
from stvit_cli.tasks.detection.cascade_rcnn import CascadeHeads
from stvit_cli.tasks.detection.detector import SIZE_DIVISOR, Detector, DetectorTransform
from stvit_cli.tasks.detection.mask_rcnn import Detections
from stvit_cli.tasks.detection.roi import BoxMaskHeads
from stvit_cli.tasks.exported import ExportedModel, ExportForm, Run
from stvit_cli.tasks.finite import require_finite
from stvit_cli.tasks.spec import Trained

MIN_PROPOSAL_SIDE = 1e-3
MIN_BOX_SIDE = 1e-2
"""Boxes with a smaller side are dropped, in pixels: torchvision's values."""


class ExportedDetector(nn.Module):
    """An image (1, 3, H, W), resized and normalized, to boxes (N, 4), scores (N,), labels (N,) from 0, masks (N, M, M).

    Boxes are in pixels of the image as it is given; masks are probabilities within the boxes, and only of heads with masks. The
    image is padded to a multiple of `SIZE_DIVISOR` here.

    Args:
        detector: in eval mode, fused.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = detector.backbone, detector.rpn, detector.roi_heads
        self.has_masks = detector.has_masks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[2], images.shape[3]
        padded = _pad(images)
        features = self.backbone(padded)
        proposals = self._proposals(padded, list(features.values()), height, width)
        levels = {name: features[name] for name in LEVELS}
        heads = self.roi_heads
        detect = self._detect_in_stages if isinstance(heads, CascadeHeads) else self._detect
        return detect(levels, proposals, height, width)

    def _proposals(self, padded: Tensor, maps: list[Tensor], height: Any, width: Any) -> Tensor:
        """Return at most as many boxes (R, 4) as the RPN keeps, by descending objectness."""
        rpn = self.rpn
        all_boxes, all_scores = [], []
        for logits, deltas, base in zip(*rpn.head(maps), rpn.anchor_generator.cell_anchors, strict=True):
            scores = logits.permute(0, 2, 3, 1).reshape(-1)  # A
            codes = deltas.reshape(-1, 4, *deltas.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4)
            scores, index = scores.topk(_topk_min(scores, rpn.pre_nms_top_n(), 0))
            anchors = _anchors(padded, logits, base)[index]
            boxes = _clip(rpn.box_coder.decode_single(codes[index], anchors), height, width)
            large = _at_least(boxes, MIN_PROPOSAL_SIDE)
            boxes, scores = boxes[large], scores[large].sigmoid()
            kept = torch.ops.torchvision.nms(boxes, scores, rpn.nms_thresh)
            all_boxes.append(boxes[kept])
            all_scores.append(scores[kept])
        order = torch.cat(all_scores).sort(descending=True)[1]
        return torch.cat(all_boxes)[order[: rpn.post_nms_top_n()]]

    def _detect(self, features: dict[str, Tensor], proposals: Tensor, height: Any, width: Any) -> tuple[Tensor, ...]:
        heads = self.roi_heads
        assert isinstance(heads, BoxMaskHeads)
        logits, regression = heads.predict(features, [proposals], [])
        boxes, scores, labels = _best(heads, logits, regression, proposals, height, width)
        if not self.has_masks:
            return boxes, scores, labels - 1
        return boxes, scores, labels - 1, _of_class(heads.masks(features, [boxes], []).sigmoid(), labels)

    def _detect_in_stages(self, features: dict[str, Tensor], proposals: Tensor, height: Any, width: Any) -> tuple[Tensor, ...]:
        """See `CascadeHeads`: classes by the mean logits, boxes of the last stage, masks by the mean probabilities."""
        assert isinstance(self.roi_heads, CascadeHeads)
        stages = [stage for stage in self.roi_heads.stages if isinstance(stage, BoxMaskHeads)]
        all_logits, before = [], proposals
        for stage in stages:
            before = proposals
            logits, regression = stage.predict(features, [proposals], [])
            all_logits.append(logits)
            proposals = _clip(_decoded(stage.box_coder, regression, proposals, 1 + logits[:, 1:].argmax(1)), height, width)
        boxes, scores, labels = _best(stages[-1], torch.stack(all_logits).mean(0), regression, before, height, width)
        if not self.has_masks:
            return boxes, scores, labels - 1
        masks = torch.stack([stage.masks(features, [boxes], []).sigmoid() for stage in stages]).mean(0)
        return boxes, scores, labels - 1, _of_class(masks, labels)


def _pad(images: Tensor) -> Tensor:
    """Pad images right and below with zeros to a multiple of `SIZE_DIVISOR`."""
    beyond = [(side + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR - side for side in (images.shape[3], images.shape[2])]
    return F.pad(images, (0, beyond[0], 0, beyond[1]))


def _anchors(padded: Tensor, level: Tensor, base: Tensor) -> Tensor:
    """Return the anchors (A, 4) of a feature map (1, anchors of a position, h, w), by row, column and shape."""
    sides = [torch.arange(level.shape[axis], device=level.device) * (padded.shape[axis] // level.shape[axis]) for axis in (2, 3)]
    y, x = torch.meshgrid(sides[0], sides[1], indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts.to(base.dtype) + base).reshape(-1, 4)


def _clip(boxes: Tensor, height: Any, width: Any) -> Tensor:
    """Clip boxes (N, 4) to an image."""
    x, y = boxes[:, 0::2].clamp(min=0).clamp(max=width), boxes[:, 1::2].clamp(min=0).clamp(max=height)
    return torch.stack((x, y), dim=2).flatten(1)


def _at_least(boxes: Tensor, side: float) -> Tensor:
    """Return the indices of boxes (N, 4) with no side under ``side`` pixels."""
    large: Tensor = ((boxes[:, 2:] - boxes[:, :2]) >= side).all(1)
    return torch.where(large)[0]


def _decoded(coder: BoxCoder, regression: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return boxes (R, 4) refined by the deltas of their class in ``regression`` (R, 4 K)."""
    codes = regression.reshape(-1, regression.shape[1] // 4, 4)
    return coder.decode_single(codes.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0], boxes)


def _best(
    heads: BoxMaskHeads, logits: Tensor, regression: Tensor, proposals: Tensor, height: Any, width: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (N, 4), scores (N,) and labels (N,) from 1: torchvision's ``postprocess_detections`` for one image."""
    scores = logits.softmax(-1)[:, 1:]
    num_classes = scores.shape[1]
    boxes = heads.box_coder.decode_single(regression, proposals).reshape(-1, num_classes + 1, 4)[:, 1:]
    labels = torch.arange(1, num_classes + 1, device=scores.device)[None].expand_as(scores).reshape(-1)
    boxes, scores = _clip(boxes.reshape(-1, 4), height, width), scores.reshape(-1)
    likely = torch.where(scores > heads.score_thresh)[0]
    boxes, scores, labels = boxes[likely], scores[likely], labels[likely]
    large = _at_least(boxes, MIN_BOX_SIDE)
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    # Boxes of different classes are moved apart, so that they do not suppress each other.
    apart = labels.to(boxes.dtype)[:, None] * (height + width)
    kept = torch.ops.torchvision.nms(boxes + apart, scores, heads.nms_thresh)[: heads.detections_per_img]
    return boxes[kept], scores[kept], labels[kept]


def _of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """Return the masks (N, M, M) of the labels out of those of all classes (N, K, M, M)."""
    return masks.gather(1, labels[:, None, None, None].expand(-1, 1, *masks.shape[2:]))[:, 0]


def export_form(trained: Trained) -> ExportForm:
    """Return a detector as one graph."""
    detector = trained.model
    assert isinstance(detector, Detector)
    settings = DetectionSection.model_validate_json(trained.info.settings)
    module = ExportedDetector(fuse(detector)).eval()  # type: ignore[arg-type]
    outputs = ("boxes", "scores", "labels", *(("masks",) if detector.has_masks else ()))
    preparation = {
        "resize": {
            "short_side": settings.short_sides[-1],
            "max_long_side": settings.long_side,
            "filter": "bilinear",
            "antialias": False,
        },
        "padding": f"in the graph, right and below to a multiple of {SIZE_DIVISOR}",
        "boxes": "left, top, right, bottom in pixels of the input",
        "labels": "index into class_names",
        **(
            {"masks": "probabilities within the boxes; resize each to its box and take 0.5 or more"} if detector.has_masks else {}
        ),
    }
    return ExportForm(module, lambda images: _reference(detector, images), outputs, batch=False, preparation=preparation)


def _reference(detector: Detector, images: Tensor) -> tuple[Tensor, ...]:
    """Return what a detector finds in an image (1, 3, H, W), resized and normalized, as `ExportedDetector` returns it."""
    padded, size = _pad(images), (images.shape[2], images.shape[3])
    features = detector.backbone(padded)
    proposals, _ = detector.rpn(ImageList(padded, [size]), features)
    (found,), _ = detector.roi_heads(features, proposals, [size])
    masks = (found["masks"][:, 0],) if detector.has_masks else ()
    return found["boxes"], found["scores"], found["labels"] - 1, *masks


class RunDetector(ExportedModel):
    """An exported detector with the interface of `Detector` in evaluation: it resizes and normalizes the images.

    Args:
        info: the metadata of the file.
        run: computes the file.
    """

    def __init__(self, info: WeightsInfo, run: Run) -> None:
        super().__init__(run)
        settings = DetectionSection.model_validate_json(info.settings)
        self.transform = DetectorTransform(settings.short_sides, settings.long_side, info.mean, info.std)

    def forward(self, images: list[Tensor]) -> Detections:  # type: ignore[override]  # as `Detector`
        """Return the detections of each image; see `Detector.forward`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        resized, _ = self.transform.resize(self.transform.normalize(image))
        found = self.outputs(resized[None])
        if len(found["scores"]):
            require_finite(*(value.flatten()[None] for name, value in found.items() if name != "labels"))
        found["boxes"] = resize_boxes(found["boxes"], resized.shape[-2:], image.shape[-2:])
        found["labels"] = found["labels"] + 1
        return found | ({"masks": found["masks"][:, None]} if "masks" in found else {})
