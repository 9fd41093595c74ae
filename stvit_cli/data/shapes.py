"""Synthetic shapes: images of circles, squares, triangles and stars with exact boxes, masks and label maps, made from a seed.

A small substitute for COCO and ADE20K, written in either layout and read by the same loaders. Images vary in size and aspect
ratio; shapes vary in size, color and angle and occlude one another; every pixel has noise.
H W rows and columns of an image.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stvit_cli.data.sampling import derive_seed
from stvit_cli.errors import UserError
from stvit_cli.utils.files import cache_dir

SHAPE_NAMES = ("circle", "square", "triangle", "star")
CATEGORY_IDS = (1, 2, 4, 8)
"""Category ids in COCO's layout, one per name; with gaps, as in COCO."""

LABEL_NAMES = ("background", *SHAPE_NAMES)
"""Names of the numbers 1, 2, ... in label maps; 0 (unlabelled) does not occur."""

MAX_SHAPES = 6
MIN_VISIBLE = 0.5
"""Minimum visible fraction of every shape."""

NOISE = 12.0
"""Standard deviation of the noise on every pixel, in 0..255."""

SPLITS = ("train", "val")
TABLE = "images.csv"
"""The table of a data set for classifiers, below its folder."""

_ADE_SPLIT = {"train": "training", "val": "validation"}
_FORMAT = 1  # increases with every change to the images, so that an older tree is not reused

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SyntheticImage:
    """An image (H, W, 3), and for each shape the mask (H, W) of its visible part and its index in `SHAPE_NAMES`."""

    image: NDArray[np.uint8]
    masks: tuple[Mask, ...]
    labels: tuple[int, ...]

    def label_map(self) -> NDArray[np.uint8]:
        """Return the label map (H, W): the position of each pixel's class in `LABEL_NAMES`, from 1."""
        labels = np.ones(self.image.shape[:2], dtype=np.uint8)
        for mask, label in zip(self.masks, self.labels, strict=True):
            labels[mask] = label + 2
        return labels


def draw_image(seed: int, split: str, index: int, image_size: int) -> SyntheticImage:
    """Draw one image.

    Args:
        seed: of the data set.
        split: train or val.
        index: of the image in the split.
        image_size: longer side, in pixels; the shorter side has at least three quarters of it.

    >>> image = draw_image(seed=0, split="train", index=0, image_size=64)
    >>> max(image.image.shape), len(image.masks) == len(image.labels)
    (64, True)
    """
    drawn = derive_seed(seed, "shapes", split, index)
    generator = np.random.RandomState([drawn & 0xFFFFFFFF, drawn >> 32])  # its streams are frozen
    short = int(image_size * generator.uniform(0.75, 1.0))
    height, width = [(image_size, short), (short, image_size)][generator.randint(2)]
    ground = generator.uniform(40, 215, 3)
    canvas = _shaded(ground, height, width, generator)
    whole: list[Mask] = []
    visible: list[Mask] = []
    labels: list[int] = []
    for _ in range(1 + generator.randint(MAX_SHAPES)):
        label = int(generator.randint(len(SHAPE_NAMES)))
        mask = _shape_mask(SHAPE_NAMES[label], height, width, generator)
        colour = _distinct_colour(ground, generator)
        remaining = [seen & ~mask for seen in visible]
        if any(left.sum() < MIN_VISIBLE * full.sum() for left, full in zip(remaining, whole, strict=True)):
            continue
        canvas[mask] = _shaded(colour, height, width, generator)[mask]
        whole.append(mask)
        visible = [*remaining, mask]
        labels.append(label)
    noisy = canvas + generator.normal(0.0, NOISE, canvas.shape)
    return SyntheticImage(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), tuple(visible), tuple(labels))


def _shaded(colour: NDArray[np.float64], height: int, width: int, generator: np.random.RandomState) -> NDArray[np.float64]:
    """Return a surface (H, W, 3) of one color with a slight gradient."""
    angle, strength = generator.uniform(0, 2 * math.pi), generator.uniform(0, 30)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light: NDArray[np.float64] = (math.sin(angle) * rows + math.cos(angle) * columns)[..., None]
    return colour + strength * light


def _distinct_colour(ground: NDArray[np.float64], generator: np.random.RandomState) -> NDArray[np.float64]:
    """Draw a color that differs clearly from the background."""
    while True:
        colour = generator.uniform(20, 235, 3)
        if np.abs(colour - ground).max() > 70:
            return colour


def _shape_mask(name: str, height: int, width: int, generator: np.random.RandomState) -> Mask:
    """Draw the mask (H, W) of a shape that lies completely within the image."""
    short = min(height, width)
    radius = short * math.exp(generator.uniform(math.log(0.08), math.log(0.28)))
    x, y = (generator.uniform(radius + 1, side - radius - 2) for side in (width, height))
    angle = generator.uniform(0, 2 * math.pi)
    drawing = Image.new("1", (width, height))
    pen = ImageDraw.Draw(drawing)
    if name == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    else:
        corners = {"square": 4, "triangle": 3, "star": 10}[name]
        # Every other corner of a star is closer to its center.
        reach = [radius * (0.42 if name == "star" and i % 2 else 1.0) for i in range(corners)]
        turn = [angle + 2 * math.pi * i / corners for i in range(corners)]
        pen.polygon([(x + r * math.cos(t), y + r * math.sin(t)) for r, t in zip(reach, turn, strict=True)], fill=1)
    return np.array(drawing)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Return the smallest box around a mask as (left, top, width, height) in whole pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def write_coco_tree(root: Path, counts: Sequence[int], image_size: int, seed: int) -> None:
    """Write ``annotations/instances_{train,val}2017.json``, ``train2017/`` and ``val2017/``.

    Args:
        root: the folder of the tree.
        counts: number of training and of validation images.
        image_size: longer side, in pixels.
        seed: of the data set.
    """
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, SHAPE_NAMES, strict=True)]
    for split, count in zip(SPLITS, counts, strict=True):
        (root / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            drawn = draw_image(seed, split, index, image_size)
            height, width = drawn.image.shape[:2]
            images.append({"id": index + 1, "file_name": f"{index:06d}.png", "height": height, "width": width})
            Image.fromarray(drawn.image).save(root / f"{split}2017" / images[-1]["file_name"], compress_level=1)
            for mask, label in zip(drawn.masks, drawn.labels, strict=True):
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1} | _annotation(mask, CATEGORY_IDS[label]))
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(mask: Mask, category_id: int) -> dict[str, Any]:
    from pycocotools import mask as rle  # an extra, of detection alone

    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": category_id,
        "bbox": list(box_of(mask)),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")},
    }


def write_ade20k_tree(root: Path, counts: Sequence[int], image_size: int, seed: int) -> None:
    """Write ``images/{training,validation}`` and label maps of the same names in ``annotations/{training,validation}``.

    Arguments and images are those of `write_coco_tree`.
    """
    for split, count in zip(SPLITS, counts, strict=True):
        images, maps = root / "images" / _ADE_SPLIT[split], root / "annotations" / _ADE_SPLIT[split]
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for index in range(count):
            drawn = draw_image(seed, split, index, image_size)
            Image.fromarray(drawn.image).save(images / f"{index:06d}.png", compress_level=1)
            Image.fromarray(drawn.label_map()).save(maps / f"{index:06d}.png")


def write_table_tree(root: Path, counts: Sequence[int], image_size: int, seed: int) -> None:
    """Write a table, `TABLE`, for a classifier of several labels (``data.multi_label=true``), with the images beside it.

    A label is a kind of shape that is in the image. Arguments and images are those of `write_coco_tree`.
    """
    root.mkdir(parents=True)
    with (root / TABLE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("path", "label", "split"))
        for split, count in zip(SPLITS, counts, strict=True):
            (root / split).mkdir()
            for index in range(count):
                drawn = draw_image(seed, split, index, image_size)
                name = f"{split}/{index:06d}.png"
                Image.fromarray(drawn.image).save(root / name, compress_level=1)
                rows.writerow((name, ";".join(SHAPE_NAMES[label] for label in sorted(set(drawn.labels))), split))


_WRITERS = {"coco": write_coco_tree, "ade20k": write_ade20k_tree, "table": write_table_tree}


def _files(layout: str, counts: Sequence[int]) -> Iterator[str]:
    """Yield the paths of a tree's files below it."""
    if layout == "table":
        yield TABLE
    for split, count in zip(SPLITS, counts, strict=True):
        names = [f"{index:06d}.png" for index in range(count)]
        if layout == "coco":
            yield f"annotations/instances_{split}2017.json"
            yield from (f"{split}2017/{name}" for name in names)
        elif layout == "table":
            yield from (f"{split}/{name}" for name in names)
        else:
            yield from (f"{folder}/{_ADE_SPLIT[split]}/{name}" for folder in ("images", "annotations") for name in names)


def _missing_files(tree: Path, layout: str, counts: Sequence[int]) -> list[str]:
    """Return the files of a tree that are missing or empty."""
    expected = list(_files(layout, counts))
    there: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in expected}:
        with contextlib.suppress(OSError), os.scandir(tree / folder) as entries:
            there.update(f"{folder}/{entry.name}" for entry in entries if entry.stat().st_size)
    return [name for name in expected if name not in there]


def shapes_tree(layout: str, counts: Sequence[int], image_size: int, seed: int, parent: str | None = None) -> Path:
    """Return the folder of a data set of synthetic shapes, generating the files that are missing.

    A new one is written to a temporary folder and renamed, so that it is complete or absent; processes may call this at the
    same time.

    Args:
        layout: coco, ade20k, or table, for a classifier of several labels.
        counts: number of training and of validation images.
        image_size: longer side, in pixels.
        seed: of the data set.
        parent: folder that it is written to; None: the user's cache.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(parent).expanduser() if parent is not None else cache_dir() / "shapes"
    tree = folder / f"{layout}-{counts[0]}-{counts[1]}-{image_size}px-seed{seed}-v{_FORMAT}"
    missing = _missing_files(tree, layout, counts)
    if not missing:
        return tree
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{tree.name}-", dir=folder))
    except OSError as error:
        raise UserError(
            f"{folder}: the synthetic shapes cannot be written here: {error.strerror}. Set another folder: data.dir=DIR."
        ) from None
    try:
        _WRITERS[layout](staging / "tree", counts, image_size, seed)
        if tree.is_dir():  # complete before, but files were lost since
            for name in missing:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (staging / "tree" / name).replace(tree / name)
        else:
            (staging / "tree").rename(tree)
    except OSError as error:
        if _missing_files(tree, layout, counts):  # otherwise another process was faster
            raise UserError(f"{tree}: the synthetic shapes cannot be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return tree
