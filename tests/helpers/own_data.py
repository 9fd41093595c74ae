"""Data sets such as users have, made of scikit-image's photographs and of synthetic shapes. Not a test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

PHOTOGRAPHS = ("coffee.png", "astronaut.png", "rocket.jpg")
COLORS = ((210, 60, 50), (60, 90, 210), (70, 170, 80))


def write_photos(
    root: Path, count: int = 20, *, names: Sequence[str] = PHOTOGRAPHS, side: tuple[int, int] = (160, 260), seed: int = 0
) -> Path:
    """Write a folder for each photograph, with ``count`` random crops of it.

    Args:
        root: the folder of the data set.
        count: number of images in each class.
        names: files of scikit-image's data.
        side: smallest and largest side of a crop, in pixels.
        seed: of the crops.
    """
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    generator = np.random.default_rng(seed)
    for name in names:
        with Image.open(folder / name) as photograph:
            whole = photograph.convert("RGB")
        target = root / name.partition(".")[0]
        target.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            width, height = (int(generator.integers(side[0], side[1] + 1)) for _ in range(2))
            left, top = int(generator.integers(whole.width - width)), int(generator.integers(whole.height - height))
            whole.crop((left, top, left + width, top + height)).save(target / f"{number:03}.jpg", quality=90)
    return root


def write_boxes(
    root: Path, count: int = 20, *, size: tuple[int, int] = (480, 360), names: Sequence[str] = ("ball", "box"), seed: int = 0
) -> Path:
    """Write images of one to four objects on a textured ground, and ``annotations.json``: COCO with boxes and without masks.

    Args:
        root: the folder of the data set.
        count: number of images.
        size: width and height of the images; they vary by a quarter.
        names: of the classes, at most three: discs, rectangles, triangles.
        seed: of everything.
    """
    generator = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    images, objects = [], []
    for index in range(count):
        width, height = (round(side * generator.uniform(0.75, 1)) for side in size)
        noise = generator.integers(90, 170, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        taken: list[tuple[int, int, int, int]] = []
        for _ in range(int(generator.integers(1, 5))):
            kind = int(generator.integers(len(names)))
            box = _free_box(generator, (width, height), taken)
            if box is not None:
                taken.append(box)
                _draw(image, kind, box)
                bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                objects.append(_object(len(objects) + 1, index + 1, kind + 1, bbox))
        image.save(root / "images" / f"{index:03}.jpg", quality=90)
        images.append({"id": index + 1, "file_name": f"{index:03}.jpg", "width": width, "height": height})
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def _object(number: int, image: int, category: int, bbox: list[int]) -> Mapping[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}


def _free_box(
    generator: np.random.Generator, size: tuple[int, int], taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Return a box of a tenth to a third of the image's short side that overlaps no other, None if ten are not free."""
    short = min(size)
    for _ in range(10):
        width, height = (int(generator.uniform(0.12, 0.35) * short) for _ in range(2))
        left, top = int(generator.integers(size[0] - width)), int(generator.integers(size[1] - height))
        box = (left, top, left + width, top + height)
        if all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in taken):
            return box
    return None


def _draw(image: Image.Image, kind: int, box: tuple[int, int, int, int]) -> None:
    draw, (left, top, right, bottom) = ImageDraw.Draw(image), box
    if kind == 0:
        draw.ellipse((left, top, right - 1, bottom - 1), fill=COLORS[0])
    elif kind == 1:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=COLORS[1])
    else:
        draw.polygon([(left, bottom - 1), (right - 1, bottom - 1), ((left + right) // 2, top)], fill=COLORS[2])
