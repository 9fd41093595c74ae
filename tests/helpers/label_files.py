"""Small data sets of boxes in the layouts of other tools, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stvit_cli.data.coco_index import read_boxes
from stvit_cli.data.formats import BoxData, BoxSet, read_format
from stvit_cli.errors import UserError

SIZE = (64, 48)
"""Width and height of the images."""

BOXES = {
    "a": [("cat", (8, 6, 40, 30)), ("dog", (20, 12, 60, 44))],
    "b": [("dog", (4, 4, 34, 40))],
    "c": [("cat", (2, 8, 50, 46))],
}
"""Name and (left, top, right, bottom) of the objects in each image."""

CLASSES = ["cat", "dog"]
IDS = {"cat": 0, "dog": 1}

VOC_OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Write an image of noise, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo_line(name: str, box: tuple[float, float, float, float]) -> str:
    """Return a line of a label file."""
    (left, top, right, bottom), (width, height) = box, SIZE
    numbers = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return f"{IDS[name]} " + " ".join(f"{number:.6f}" for number in numbers)


def yolo_labels(stem: str) -> str:
    """Return the label file of an image."""
    return "".join(yolo_line(name, box) + "\n" for name, box in BOXES[stem])


def voc_xml(stem: str, *, first: int = 1, difficult: int = 0) -> str:
    """Return the XML file of an image, with pixels counted from ``first``."""
    objects = "".join(
        VOC_OBJECT.format(name, difficult, left + first, top + first, right, bottom)
        for name, (left, top, right, bottom) in BOXES[stem]
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder><filename>{stem}.png</filename>{size}{objects}</annotation>"


def labelme_json(stem: str, image_path: str | None = None) -> str:
    """Return the JSON file of an image, with rectangles."""
    shapes: list[dict[str, Any]] = [
        {"label": name, "points": [list(box[:2]), list(box[2:])], "group_id": None, "shape_type": "rectangle", "flags": {}}
        for name, box in BOXES[stem]
    ]
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image_path or f"{stem}.png", "imageData": None}
    return json.dumps(content | {"imageHeight": SIZE[1], "imageWidth": SIZE[0]})


def createml_json(*stems: str) -> str:
    """Return CreateML's file of images."""

    def entry(name: str, box: tuple[float, float, float, float]) -> dict[str, Any]:
        left, top, right, bottom = box
        center = {"x": (left + right) / 2, "y": (top + bottom) / 2, "width": right - left, "height": bottom - top}
        return {"label": name, "coordinates": center}

    return json.dumps([{"image": f"{stem}.png", "annotations": [entry(*box) for box in BOXES[stem]]} for stem in stems])


def cvat_xml(*stems: str, subset: str = "") -> str:
    """Return the file of a task of CVAT."""
    labels = "".join(f"<label><name>{name}</name><color>#fff</color></label>" for name in reversed(CLASSES))
    images = ""
    for number, stem in enumerate(stems):
        boxes = "".join(
            f'<box label="{name}" occluded="0" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" z_order="0"/>'
            for name, (left, top, right, bottom) in BOXES[stem]
        )
        where = f' subset="{subset}"' if subset else ""
        images += f'<image id="{number}" name="{stem}.png"{where} width="{SIZE[0]}" height="{SIZE[1]}">{boxes}</image>'
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}{images}</annotations>'


def write_ultralytics(root: Path, data_yaml: str = "path: ../datasets/x\ntrain: images/train\nval: images/val\n") -> Path:
    """Write images/train, images/val, labels and data.yaml, as Ultralytics has them."""
    for split, stems in (("train", "ac"), ("val", "b")):
        for stem in stems:
            write_image(root / f"images/{split}/{stem}.png")
            write_text(root / f"labels/{split}/{stem}.txt", yolo_labels(stem))
    write_text(root / "data.yaml", f"{data_yaml}names:\n  0: cat\n  1: dog\n")
    return root


def write_voc(root: Path) -> Path:
    """Write Annotations, JPEGImages and ImageSets/Main, as VOC has them."""
    for stem in BOXES:
        write_image(root / f"JPEGImages/{stem}.png")
        write_text(root / f"Annotations/{stem}.xml", voc_xml(stem))
    write_text(root / "ImageSets/Main/train.txt", "a\nc\n")
    write_text(root / "ImageSets/Main/val.txt", "b\n")
    return root


def write_split(root: Path, write: Any) -> Path:
    """Write train/ with two images and valid/ with one, and let ``write(folder, *stems)`` annotate them."""
    for split, stems in (("train", "ac"), ("valid", "b")):
        for stem in stems:
            write_image(root / split / f"{stem}.png")
        write(root / split, *stems)
    return root


def write_labelme(root: Path) -> Path:
    """Write LabelMe's files beside their images, in train/ and valid/."""
    return write_split(root, lambda folder, *stems: [write_text(folder / f"{s}.json", labelme_json(s)) for s in stems])


def write_createml(root: Path) -> Path:
    """Write CreateML's file beside its images, in train/ and valid/, as Roboflow does."""
    return write_split(root, lambda folder, *stems: write_text(folder / "_annotations.createml.json", createml_json(*stems)))


def write_cvat(root: Path) -> Path:
    """Write CVAT's annotations.xml and images/, with subsets."""
    for split, stems in (("Train", "ac"), ("Validation", "b")):
        for stem in stems:
            write_image(root / f"images/{split}/{stem}.png")
        write_text(root / f"{split.lower()}.xml", cvat_xml(*stems, subset=split))
    return root


WRITERS = {
    "yolo": write_ultralytics,
    "voc": write_voc,
    "labelme": write_labelme,
    "createml": write_createml,
    "cvat": write_cvat,
}
"""Write a data set with a split in each format: a and c to train on, b to validate."""


def boxes_of(boxes: BoxSet) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Return name and corners of the objects by the stem of their image."""
    names = {entry["id"]: entry["name"] for entry in boxes.categories}
    found: dict[str, list[Any]] = {Path(image["file_name"]).stem: [] for image in boxes.images}
    stems = {image["id"]: Path(image["file_name"]).stem for image in boxes.images}
    for entry in boxes.annotations:
        left, top, width, height = entry["bbox"]
        found[stems[entry["image_id"]]].append((names[entry["category_id"]], (left, top, left + width, top + height)))
    return found


def require(data: BoxData, stems: dict[str, str]) -> None:
    """Compare all boxes with those that were written, to half a pixel."""
    assert {split: "".join(sorted(boxes_of(boxes))) for split, boxes in data.splits.items()} == stems
    for boxes in data.splits.values():
        for stem, objects in boxes_of(boxes).items():
            assert [name for name, _ in objects] == [name for name, _ in BOXES[stem]]
            for (_, found), (_, written) in zip(objects, BOXES[stem], strict=True):
                assert found == pytest.approx(written, abs=0.01)
        assert {(image["width"], image["height"]) for image in boxes.images} == {SIZE}


def refused(kind: str, root: Path, split: str = "train") -> str:
    """Return the message of the error that reading and checking a split ends in."""
    with pytest.raises(UserError) as caught:
        read_boxes(read_format(kind, root).splits[split])
    return str(caught.value)
