"""The predictions of a detector's evaluation. N images, K classes, M boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.coco import annotated_area, encoded
from stvit_cli.data.coco_index import CocoIndex
from stvit_cli.errors import UserError
from stvit_cli.tasks.detection.statistics import DetectionStatistics
from stvit_cli.tasks.predictions import Statistics
from stvit_cli.tasks.tables import Column, Table, read_table, write_table

KINDS = ("image", "object", "detection")
"""What a row of the table is: an image, an object of its annotations, or something detected."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of all images, by ascending index of the image.

    Attributes:
        image: index of the image, (M,).
        label: class, 0 to K - 1, (M,).
        box: left, top, width and height in pixels, as COCO has them, (M, 4).
        score: 0 to 1; 1 for objects, (M,).
        is_crowd: of objects: a region of many, which no detection has to match, (M,).
        area: in pixels, (M,): of objects as COCO's metrics take it, from the file, the mask or the box; of detections of the box.
        masks: COCO's run-length code ``{"size": [H, W], "counts": text}``, None for a box alone, (M,).
    """

    image: NDArray[np.int32]
    label: NDArray[np.int32]
    box: NDArray[np.float64]
    score: NDArray[np.float32]
    is_crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    masks: Sequence[dict[str, Any] | None]

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class DetectionPredictions:
    """What a detector found, with what is there; see `tasks.predictions.Predictions`.

    Attributes:
        images: names as in the annotation file, (N,).
        class_names: of the model, (K,).
        image_ids: as the annotation file writes them, (N,).
        sizes: width and height, (N, 2).
        objects: the annotations that count, crowds included.
        detections: what was found, of an image by descending score.
    """

    images: Sequence[str]
    class_names: Sequence[str]
    image_ids: Sequence[Any]
    sizes: NDArray[np.int32]
    objects: Boxes
    detections: Boxes

    def write(self, path: Path) -> None:
        """Write a table: for each image its row, those of its objects and those of its detections.

        The cells of an image's row about a box are empty. Raises UserError as `write_table` does.
        """
        count = len(self.images)
        image = np.concatenate([np.arange(count, dtype=np.int32), self.objects.image, self.detections.image])
        kind = np.repeat(np.arange(3), [count, len(self.objects), len(self.detections)])
        order = np.lexsort((kind, image))  # stable: the order of the boxes stays
        image, kind = image[order], kind[order]
        is_image = kind == 0

        def joined(name: str, dtype: Any) -> NDArray[Any]:
            parts = [getattr(boxes, name).astype(dtype) for boxes in (self.objects, self.detections)]
            return np.concatenate([np.zeros((count, *parts[0].shape[1:]), dtype), *parts])[order]

        def cells(values: NDArray[Any]) -> Column:
            masked: NDArray[Any] = np.ma.masked_array(values, mask=is_image)
            return masked

        label, box = joined("label", np.int32), joined("box", np.float64)
        masks = [*([None] * count), *self.objects.masks, *self.detections.masks]
        indices, labels, empty = image.tolist(), label.tolist(), is_image.tolist()
        columns: dict[str, Column] = {
            "image": [self.images[index] for index in indices],
            "kind": [KINDS[index] for index in kind.tolist()],
            "class": [None if no else self.class_names[index] for index, no in zip(labels, empty, strict=True)],
            "score": cells(joined("score", np.float32)),
        }
        columns |= {name: cells(box[:, side]) for side, name in enumerate(("x", "y", "box_width", "box_height"))}
        columns |= {
            "area": cells(joined("area", np.float64)),
            "is_crowd": cells(joined("is_crowd", np.bool_)),
            "image_width": self.sizes[image, 0],
            "image_height": self.sizes[image, 1],
            "image_id": [json.dumps(self.image_ids[index]) for index in indices],
            "image_index": image,
            "class_index": cells(label),
            "mask": [_as_text(masks[number], self.sizes[index]) for number, index in zip(order.tolist(), indices, strict=True)],
        }
        write_table(path, columns)

    def statistics(self) -> Statistics:
        """Return the metrics as a function of the images."""
        return DetectionStatistics(self)


def as_predictions(index: CocoIndex, results: Sequence[Mapping[str, Any]], *, masks: bool) -> DetectionPredictions:
    """Return detections with the annotations that they are compared with.

    Args:
        index: the annotation file.
        results: the detections in COCO's result format, those of an image in their order.
        masks: keep masks.
    """
    positions = {image_id: position for position, image_id in enumerate(index.image_ids)}
    labels = {category.written_id: label for label, category in enumerate(index.categories)}
    found = sorted(((positions[entry["image_id"]], entry) for entry in results), key=lambda pair: pair[0])
    objects = [(position, entry) for position in range(len(index)) for entry in index.annotations(position)]
    sizes = index.sizes.tolist()
    return DetectionPredictions(
        images=index.file_names,
        class_names=tuple(category.name for category in index.categories),
        image_ids=index.image_ids,
        sizes=index.sizes[:, ::-1].astype(np.int32),
        objects=_as_boxes(
            [(position, entry["label"] - 1) for position, entry in objects],
            [entry["box"] for _, entry in objects],
            area=[annotated_area(entry, *sizes[position]) for position, entry in objects],
            masks=[_code(entry.get("segmentation"), *sizes[position]) if masks else None for position, entry in objects],
            is_crowd=[bool(entry.get("crowd", 0)) for _, entry in objects],
        ),
        detections=_as_boxes(
            [(position, labels[entry["category_id"]]) for position, entry in found],
            [entry["bbox"] for _, entry in found],
            area=[entry["bbox"][2] * entry["bbox"][3] for _, entry in found],
            masks=[entry.get("segmentation") if masks else None for _, entry in found],
            score=[entry["score"] for _, entry in found],
        ),
    )


def _as_boxes(
    images_and_labels: Sequence[tuple[int, int]],
    box: Sequence[Sequence[float]],
    *,
    area: Sequence[float],
    masks: Sequence[dict[str, Any] | None],
    score: Sequence[float] | None = None,
    is_crowd: Sequence[bool] | None = None,
) -> Boxes:
    numbers, count = np.array(images_and_labels, dtype=np.int32).reshape(-1, 2), len(box)
    return Boxes(
        image=numbers[:, 0],
        label=numbers[:, 1],
        box=np.array(box, dtype=np.float64).reshape(-1, 4),
        score=np.ones(count, np.float32) if score is None else np.array(score, dtype=np.float32),
        is_crowd=np.zeros(count, np.bool_) if is_crowd is None else np.array(is_crowd, dtype=np.bool_),
        area=np.array(area, dtype=np.float64),
        masks=masks,
    )


def _code(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Return the run-length code of an annotation's mask, as JSON can hold it."""
    if segmentation is None:
        return None
    counts = encoded(segmentation, height, width)["counts"]
    return {"size": [height, width], "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def read_detection_predictions(path: Path, class_names: Sequence[str]) -> DetectionPredictions:
    """Read what `DetectionPredictions.write` wrote.

    Args:
        path: of the table.
        class_names: of the model.

    Raises:
        UserError: the file is missing, damaged, or of other classes.
    """
    table = read_table(path)
    kinds = np.array(table.texts("kind"), dtype=object)
    is_image = kinds == "image"
    sizes = np.stack([table.numbers(f"image_{side}", np.int32) for side in ("width", "height")], axis=1)
    label = table.numbers("class_index", np.int32)
    if label.max(initial=0) >= max(len(class_names), 1):
        raise UserError(f"{path}: class {label.max()} is none of the model's {len(class_names)}.")
    names, ids = table.texts("image"), table.texts("image_id")
    first = np.flatnonzero(is_image).tolist()
    return DetectionPredictions(
        images=[names[row] for row in first],
        class_names=tuple(class_names),
        image_ids=[json.loads(ids[row]) for row in first],
        sizes=sizes[is_image],
        objects=_boxes(table, kinds == "object", label, sizes),
        detections=_boxes(table, kinds == "detection", label, sizes),
    )


def _boxes(table: Table, chosen: NDArray[np.bool_], label: NDArray[np.int32], sizes: NDArray[np.int32]) -> Boxes:
    masks = table.texts("mask")
    box = [table.numbers(name, np.float64) for name in ("x", "y", "box_width", "box_height")]
    return Boxes(
        image=table.numbers("image_index", np.int32)[chosen],
        label=label[chosen],
        box=np.stack(box, axis=1)[chosen],
        score=table.numbers("score", np.float32)[chosen],
        is_crowd=table.numbers("is_crowd", np.bool_)[chosen],
        area=table.numbers("area", np.float64)[chosen],
        masks=[_as_mask(masks[row], sizes[row]) for row in np.flatnonzero(chosen).tolist()],
    )


def _as_text(mask: dict[str, Any] | None, size: NDArray[np.int32]) -> str | None:
    """Return the counts of a mask, which is as large as its image."""
    if mask is None:
        return None
    assert list(mask["size"]) == size[::-1].tolist(), "a mask is as large as its image"
    counts: str = mask["counts"]
    return counts


def _as_mask(counts: str, size: NDArray[np.int32]) -> dict[str, Any] | None:
    return {"size": size[::-1].tolist(), "counts": counts} if counts else None
