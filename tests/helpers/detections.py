"""Made annotation files and detections: with crowds, small boxes, objects without masks, equal scores and empty images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stvit_cli.data.coco import encode_mask, ground_truth, image_numbers
from stvit_cli.data.coco_index import CocoIndex
from stvit_cli.tasks.detection.predictions import Boxes, DetectionPredictions


def made_coco(
    path: Path,
    num_images: int = 12,
    num_classes: int = 3,
    *,
    seed: int = 0,
    masks: bool = True,
    equal_scores: bool = True,
    size: int = 160,
) -> list[dict[str, Any]]:
    """Write an annotation file, and return detections for it in COCO's result format, some of them wrong."""
    generator = np.random.default_rng(seed)
    images = [{"id": 3 * number, "file_name": f"{number}.png", "height": size, "width": size} for number in range(num_images)]
    generator.shuffle(images)  # type: ignore[arg-type]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in images:
        for _ in range(int(generator.integers(0, 6))):
            sides = np.minimum(generator.integers(6, size, 2), size - 20)
            box = [*generator.integers(0, size - sides).tolist(), *sides.tolist()]
            label = int(generator.integers(1, num_classes + 1))
            has_mask = masks and generator.random() < 0.9
            crowd = int(generator.random() < 0.1)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": label,
                "bbox": box,
                "area": float(box[2] * box[3] * 0.8),
                "iscrowd": crowd,
            }
            if has_mask:
                annotation["segmentation"] = _ellipse(box, size)
            annotations.append(annotation)
            for _ in range(int(generator.integers(0, 4))):
                moved = np.array(box) + generator.integers(-1, 2, 4) * int(generator.choice([1, 2, 6, 20]))
                moved[2:] = np.maximum(moved[2:], 3)
                moved[:2] = np.clip(moved[:2], 0, size - 4)
                found = label if generator.random() < 0.8 else int(generator.integers(1, num_classes + 1))
                score = generator.choice([0.25, 0.5, generator.random()]) if equal_scores else generator.random()
                entry = {
                    "image_id": image["id"],
                    "category_id": found,
                    "score": float(np.float32(score)),
                    "bbox": [float(value) for value in moved],
                }
                results.append(entry | {"segmentation": _ellipse(moved.tolist(), size)} if masks else entry)
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, num_classes + 1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return results


def _ellipse(box: list[float], size: int) -> dict[str, Any]:
    left, top, width, height = box
    rows, columns = np.mgrid[:size, :size]
    inside = ((columns - left - width / 2) / (width / 2)) ** 2 + ((rows - top - height / 2) / (height / 2)) ** 2 <= 1
    inside[int(top), int(left)] = True  # never empty
    return encode_mask(inside)


def found_shapes(index: CocoIndex, *, masks: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    """Return detections of the objects of a file, a few of them with another box, class or place."""
    generator = np.random.default_rng(seed)
    results: list[dict[str, Any]] = []
    for position, image_id in enumerate(index.image_ids):
        for entry in index.annotations(position):
            box = np.array(entry["box"], dtype=float) + generator.choice([0.0, 0.0, 1.0, 6.0]) * np.array([1, 0, 0, 0])
            label = entry["label"] - 1 if generator.random() < 0.8 else 0
            result = {
                "image_id": image_id,
                "category_id": index.categories[label].written_id,
                "score": float(np.float32(0.3 + 0.7 * generator.random())),
                "bbox": box.tolist(),
            }
            size = index.sizes[position].tolist()
            mask = entry.get("segmentation", encode_mask(np.ones(size, dtype=np.bool_)))
            results.append(result | {"segmentation": mask} if masks else result)
            if generator.random() < 0.3:
                results.append(results[-1] | {"score": float(np.float32(0.4 * generator.random()))})
    return results


def made_predictions(index: CocoIndex, results: list[dict[str, Any]]) -> DetectionPredictions:
    """Return detections in COCO's result format as the predictions of an evaluation."""
    positions = {image_id: position for position, image_id in enumerate(index.image_ids)}
    written = {number: positions[image_id] for image_id, number in image_numbers(index).items()}
    labels = {category.written_id: label for label, category in enumerate(index.categories)}
    annotations = ground_truth(index).dataset["annotations"]
    objects = [entry | {"image": written[entry["image_id"]], "label": entry["category_id"] - 1} for entry in annotations]
    found = [entry | {"image": positions[entry["image_id"]], "label": labels[entry["category_id"]]} for entry in results]
    return DetectionPredictions(
        images=index.file_names,
        class_names=[category.name for category in index.categories],
        image_ids=index.image_ids,
        sizes=index.sizes[:, ::-1].astype(np.int32),
        objects=made_boxes(objects),
        detections=made_boxes(found),
    )


def made_boxes(entries: list[dict[str, Any]]) -> Boxes:
    """Return boxes from dicts with ``image``, ``label``, ``bbox`` and what else COCO has, by image."""
    entries = sorted(entries, key=lambda entry: entry["image"])
    box = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    return Boxes(
        image=np.array([entry["image"] for entry in entries], dtype=np.int32),
        label=np.array([entry["label"] for entry in entries], dtype=np.int32),
        box=box,
        score=np.array([entry.get("score", 1) for entry in entries], dtype=np.float32),
        is_crowd=np.array([entry.get("iscrowd", 0) for entry in entries], dtype=np.bool_),
        area=np.array([entry.get("area", box[2] * box[3]) for entry, box in zip(entries, box, strict=True)], dtype=np.float64),
        masks=[entry.get("segmentation") for entry in entries],
    )
