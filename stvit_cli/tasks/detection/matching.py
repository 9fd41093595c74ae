"""Detections matched to objects as pycocotools does: once for all IoU thresholds, kept as arrays that can be resampled.

pycocotools keeps a Python object for each image, class and range of areas, and counts each image once. What is computed after an
evaluation (intervals, curves, errors) needs the matches alone. The tests hold them against pycocotools.

M detections, G objects, N images, K classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from stvit_cli.data.coco import box_region, id_ranks

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""COCO's."""

RECALL_THRESHOLDS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
"""COCO's: where the precision is read off its curve."""

MAX_DETECTIONS = 100
"""Of an image and class, by score; COCO counts no more."""

AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's sizes of objects: least and largest area in pixels."""

Kind = Literal["bbox", "segm"]


class Boxes(Protocol):
    """Objects or detections of several images; see `tasks.detection.predictions.Boxes`."""

    @property
    def image(self) -> NDArray[np.integer]: ...
    @property
    def label(self) -> NDArray[np.integer]: ...
    @property
    def box(self) -> NDArray[np.floating]: ...
    @property
    def score(self) -> NDArray[np.floating]: ...
    @property
    def is_crowd(self) -> NDArray[np.bool_]: ...
    @property
    def area(self) -> NDArray[np.floating]: ...
    @property
    def masks(self) -> Sequence[dict[str, Any] | None]: ...


class Predicted(Protocol):
    """What `Overlaps` needs of predictions; see `tasks.detection.predictions.DetectionPredictions`."""

    @property
    def images(self) -> Sequence[str]: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def image_ids(self) -> Sequence[Any]: ...
    @property
    def sizes(self) -> NDArray[np.integer]: ...
    @property
    def objects(self) -> Boxes: ...
    @property
    def detections(self) -> Boxes: ...


@dataclass(frozen=True)
class ImageOverlap:
    """Detections and objects of one image, by their positions in the predictions, and their IoU.

    Attributes:
        index: of the image.
        detections: (D,) by class, then by descending score; at most `MAX_DETECTIONS` of a class.
        objects: (G,) in the order of the file.
        iou: (D, G); with a crowd, the part of the detection's area that is within it, as pycocotools computes it.
    """

    index: int
    detections: NDArray[np.int64]
    objects: NDArray[np.int64]
    iou: NDArray[np.float64]


class Overlaps:
    """The IoU of the detections and objects of every image.

    Args:
        predictions: see `Predicted`.
        kind: of boxes (bbox) or of masks (segm). Objects without a mask then are regions to ignore, as in the metrics.

    Attributes:
        is_crowd: of the objects, (G,); a region to ignore.
        object_area: in pixels as COCO counts it, (G,).
        detection_area: the same of the detections, (M,).
    """

    def __init__(self, predictions: Predicted, kind: Kind = "bbox") -> None:
        self.predictions, self.kind = predictions, kind
        objects, detections = predictions.objects, predictions.detections
        self.is_crowd = np.asarray(objects.is_crowd, dtype=np.bool_).copy()
        self.object_area = np.asarray(objects.area, dtype=np.float64)
        if kind == "segm":
            self.is_crowd |= np.array([mask is None for mask in objects.masks], dtype=np.bool_)
            masks = [mask for mask in detections.masks if mask is not None]
            assert len(masks) == len(detections.image), "a model predicts masks for all its detections or for none"
            self.detection_area = _areas(masks)
        else:
            self.detection_area = np.asarray(detections.box[:, 2] * detections.box[:, 3], dtype=np.float64)

    @cached_property
    def image_rank(self) -> NDArray[np.int64]:
        """The position of each image in pycocotools' order, (N,)."""
        ranks = id_ranks(self.predictions.image_ids)
        return np.array([ranks[image_id] for image_id in self.predictions.image_ids], dtype=np.int64)

    @cached_property
    def images(self) -> list[ImageOverlap]:
        """The images that have detections or objects, in the order of the predictions."""
        objects, detections = self.predictions.objects, self.predictions.detections
        by_class = np.lexsort((-detections.score, detections.label, detections.image))
        by_class = by_class[_rank_in_group(detections.image[by_class], detections.label[by_class]) < MAX_DETECTIONS]
        in_order = np.argsort(objects.image, kind="stable")
        bounds = np.arange(len(self.predictions.images) + 1)
        of_detections = np.searchsorted(detections.image[by_class], bounds).tolist()
        of_objects = np.searchsorted(objects.image[in_order], bounds).tolist()
        images = []
        for index in range(len(bounds) - 1):
            found = by_class[of_detections[index] : of_detections[index + 1]]
            true = in_order[of_objects[index] : of_objects[index + 1]]
            if found.size or true.size:
                images.append(ImageOverlap(index, found, true, self._iou(found, true)))
        return images

    def _iou(self, found: NDArray[np.int64], true: NDArray[np.int64]) -> NDArray[np.float64]:
        if not (found.size and true.size):
            return np.zeros((found.size, true.size))
        objects, detections = self.predictions.objects, self.predictions.detections
        crowd = self.is_crowd[true].astype(np.uint8).tolist()
        if self.kind == "bbox":
            boxes = (np.ascontiguousarray(part, dtype=np.float64) for part in (detections.box[found], objects.box[true]))
            return np.asarray(rle.iou(*boxes, crowd), dtype=np.float64)
        masks = [detections.masks[index] for index in found.tolist()]
        return np.asarray(rle.iou(masks, [self._region(index) for index in true.tolist()], crowd), dtype=np.float64)

    def _region(self, index: int) -> Any:
        """Return the mask of an object, or of the box of one that has none."""
        objects = self.predictions.objects
        mask = objects.masks[index]
        if mask is not None:
            return mask
        width, height = self.predictions.sizes[objects.image[index]].tolist()
        return box_region(objects.box[index].tolist(), height, width)


@dataclass(frozen=True)
class Matching:
    """Detections with the object that each of them found at each IoU threshold.

    Attributes:
        num_classes: K.
        detection: positions in the predictions, (M,): by class, then by descending score, as precision and recall are summed up.
        label: their classes, (M,).
        image: their images, (M,).
        score: their scores, (M,).
        match: positions of the objects that they found; -1: none, (T, M).
        ignored: whether they count neither as right nor as wrong, (T, M).
        object_label: classes of all objects, (G,).
        object_image: their images, (G,).
        counts: whether they are to be found: no crowd, and of the given size, (G,).
    """

    num_classes: int
    detection: NDArray[np.int64]
    label: NDArray[np.int64]
    image: NDArray[np.int64]
    score: NDArray[np.float64]
    match: NDArray[np.int32]
    ignored: NDArray[np.bool_]
    object_label: NDArray[np.int64]
    object_image: NDArray[np.int64]
    counts: NDArray[np.bool_]

    @cached_property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether the detections are true positives, (T, M)."""
        return (self.match >= 0) & ~self.ignored

    @cached_property
    def num_objects(self) -> NDArray[np.int64]:
        """The objects of each class that are to be found, (K,)."""
        return np.bincount(self.object_label[self.counts], minlength=self.num_classes)


def match(overlaps: Overlaps, area: tuple[float, float] = AREAS["all"]) -> Matching:
    """Match detections to objects at all thresholds, greedily by score, as pycocotools does.

    Args:
        overlaps: of the predictions.
        area: least and largest area of the objects that count, in pixels. Others are ignored, with what found them, and so are
            detections of another size that found nothing.
    """
    predictions = overlaps.predictions
    objects, detections = predictions.objects, predictions.detections
    ignored = overlaps.is_crowd | (overlaps.object_area < area[0]) | (overlaps.object_area > area[1])
    found = np.full((len(IOU_THRESHOLDS), len(detections.image)), -1, dtype=np.int32)
    for image in overlaps.images:
        same_class = detections.label[image.detections][:, None] == objects.label[image.objects][None]
        _match_image(image, same_class, overlaps.is_crowd, ignored, found)
    kept = np.concatenate([np.empty(0, dtype=np.int64), *(image.detections for image in overlaps.images)])
    order = kept[np.lexsort((overlaps.image_rank[detections.image[kept]], -detections.score[kept], detections.label[kept]))]
    found = found[:, order]
    outside = (overlaps.detection_area < area[0]) | (overlaps.detection_area > area[1])
    matched_ignored = np.append(ignored, False)[found]  # the last: of detections without an object
    return Matching(
        num_classes=len(predictions.class_names),
        detection=order,
        label=detections.label[order].astype(np.int64),
        image=detections.image[order].astype(np.int64),
        score=detections.score[order].astype(np.float64),
        match=found,
        ignored=matched_ignored | ((found < 0) & outside[order]),
        object_label=objects.label.astype(np.int64),
        object_image=objects.image.astype(np.int64),
        counts=~ignored,
    )


def _match_image(
    image: ImageOverlap,
    same_class: NDArray[np.bool_],
    is_crowd: NDArray[np.bool_],
    is_ignored: NDArray[np.bool_],
    found: NDArray[np.int32],
) -> None:
    """Write the matches of an image into ``found``, (T, M).

    A detection takes the object with the largest IoU (the last of equal ones) that is not taken; one that is ignored only where
    no other is left. A crowd can be found any number of times.
    """
    candidates = same_class & (image.iou >= IOU_THRESHOLDS[0])
    if not candidates.any():
        return
    ignored, crowd = is_ignored[image.objects].tolist(), is_crowd[image.objects].tolist()
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10).tolist()
    taken: list[set[int]] = [set() for _ in thresholds]
    for row in np.flatnonzero(candidates.any(axis=1)).tolist():
        columns = sorted(np.flatnonzero(candidates[row]).tolist(), key=ignored.__getitem__)  # stable: those ignored are last
        ious = image.iou[row].tolist()
        largest = max(ious[column] for column in columns)
        for position, threshold in enumerate(thresholds):
            if largest < threshold:
                break
            best, best_iou = -1, threshold
            for column in columns:
                if column in taken[position] and not crowd[column]:
                    continue
                if best >= 0 and ignored[column] and not ignored[best]:
                    break
                if ious[column] >= best_iou:
                    best, best_iou = column, ious[column]
            if best >= 0:
                taken[position].add(best)
                found[position, image.detections[row]] = image.objects[best]


def _areas(masks: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Return the areas of masks in pixels, (M,); pycocotools 2.0.11 fails on more than 255 at once."""
    parts = [np.asarray(rle.area(masks[start : start + 255]), np.float64) for start in range(0, len(masks), 255)]
    return np.concatenate([np.empty(0), *parts])


def _rank_in_group(*keys: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the position of each entry within its run of equal keys, (M,)."""
    size = len(keys[0])
    if not size:
        return np.empty(0, dtype=np.int64)
    is_first = np.ones(size, dtype=np.bool_)
    is_first[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    starts = np.flatnonzero(is_first)
    return np.arange(size) - starts[np.cumsum(is_first) - 1]
