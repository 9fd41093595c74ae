"""Checked annotations, written as COCO files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stvit_cli.data.coco_index import CocoIndex
from stvit_cli.utils import strict_json
from stvit_cli.utils.files import replace_file, writing


def coco_content(index: CocoIndex) -> dict[str, Any]:
    """Return an index as the content of a COCO file; file names are relative to the index's folder.

    Objects without a mask have an empty ``segmentation``, as the tools that write COCO files have it. Ids of annotations count
    from 1.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, (name, image_id) in enumerate(zip(index.file_names, index.image_ids, strict=True)):
        height, width = index.sizes[position].tolist()
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for entry in index.annotations(position):
            left, top, across, down = entry["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": index.categories[entry["label"] - 1].id,
                    "bbox": [left, top, across, down],
                    "area": entry.get("area", across * down),
                    "segmentation": entry.get("segmentation", []),
                    "iscrowd": entry.get("crowd", 0),
                }
            )
    categories = [{"id": category.id, "name": category.name} for category in index.categories]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(index: CocoIndex, path: Path) -> None:
    """Write an index as a COCO file, whole or not at all. Raises UserError where it cannot be written."""
    with writing(path, advice=""):
        replace_file(path, strict_json.dumps(coco_content(index)).encode() + b"\n")
