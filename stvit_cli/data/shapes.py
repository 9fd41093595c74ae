"""Drawn scenes of circles, squares, triangles and stars, whose boxes, masks and label maps are exact; made from a seed.

A small stand-in for COCO and ADE20K: the same scenes are written as a tree in either layout, so that the real loaders read them.
Scenes differ in size and shape, figures in size, colour and angle; they hide parts of one another, and there is noise over all.
H W rows and columns of an image.
"""

from __future__ import annotations

import contextlib
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
from pycocotools import mask as rle

from stvit_cli.data.sampling import derive_seed
from stvit_cli.errors import UserError
from stvit_cli.utils.files import cache_dir

SHAPE_NAMES = ("circle", "square", "triangle", "star")
CATEGORY_IDS = (1, 2, 4, 8)
"""Of the COCO tree, one for each name; with gaps, as COCO's own."""

LABEL_NAMES = ("background", *SHAPE_NAMES)
"""Of the label maps: 1 is the background, 2 the circle and so on; 0, which stands for what is not labelled, does not occur."""

MAX_FIGURES = 6
MIN_VISIBLE = 0.5
"""No figure is hidden by more than the other half."""

NOISE = 12.0
"""Standard deviation of the noise on every pixel, in 0..255."""

SPLITS = ("train", "val")
_ADE_SPLIT = {"train": "training", "val": "validation"}
_FORMAT = 1  # counts up with every change to what is drawn, so that an older tree is not taken for the new one

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) and what is in it: for each figure its visible part (H, W) and its number in ``SHAPE_NAMES``."""

    image: NDArray[np.uint8]
    masks: tuple[Mask, ...]
    labels: tuple[int, ...]

    def label_map(self) -> NDArray[np.uint8]:
        """Return the numbers 1.. of ``LABEL_NAMES`` for every pixel, (H, W)."""
        labels = np.ones(self.image.shape[:2], dtype=np.uint8)
        for mask, label in zip(self.masks, self.labels, strict=True):
            labels[mask] = label + 2
        return labels


def draw_scene(seed: int, split: str, index: int, image_size: int) -> Scene:
    """Draw scene ``index`` of a split; ``image_size`` is the longer side in pixels; the shorter has at least three quarters."""
    drawn = derive_seed(seed, "shapes", split, index)
    generator = np.random.RandomState([drawn & 0xFFFFFFFF, drawn >> 32])  # its streams are frozen for good
    short = int(image_size * generator.uniform(0.75, 1.0))
    height, width = [(image_size, short), (short, image_size)][generator.randint(2)]
    ground = generator.uniform(40, 215, 3)
    canvas = _shaded(ground, height, width, generator)
    whole: list[Mask] = []
    visible: list[Mask] = []
    labels: list[int] = []
    for _ in range(1 + generator.randint(MAX_FIGURES)):
        label = int(generator.randint(len(SHAPE_NAMES)))
        mask = _figure(SHAPE_NAMES[label], height, width, generator)
        colour = _distinct_colour(ground, generator)
        remaining = [seen & ~mask for seen in visible]
        if any(left.sum() < MIN_VISIBLE * full.sum() for left, full in zip(remaining, whole, strict=True)):
            continue
        canvas[mask] = _shaded(colour, height, width, generator)[mask]
        whole.append(mask)
        visible = [*remaining, mask]
        labels.append(label)
    noisy = canvas + generator.normal(0.0, NOISE, canvas.shape)
    return Scene(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), tuple(visible), tuple(labels))


def _shaded(colour: NDArray[np.float64], height: int, width: int, generator: np.random.RandomState) -> NDArray[np.float64]:
    """Return a surface of a colour, a little lighter on one side than on the other, (H, W, 3)."""
    angle, strength = generator.uniform(0, 2 * math.pi), generator.uniform(0, 30)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light: NDArray[np.float64] = (math.sin(angle) * rows + math.cos(angle) * columns)[..., None]
    return colour + strength * light


def _distinct_colour(ground: NDArray[np.float64], generator: np.random.RandomState) -> NDArray[np.float64]:
    """Draw a colour that stands out from the ground."""
    while True:
        colour = generator.uniform(20, 235, 3)
        if np.abs(colour - ground).max() > 70:
            return colour


def _figure(name: str, height: int, width: int, generator: np.random.RandomState) -> Mask:
    """Return the pixels of a figure wholly within the image, (H, W)."""
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
        # Every other corner of a star lies nearer to its middle.
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
        counts: scenes to train on, scenes to evaluate.
        image_size: the longer side, in pixels.
        seed: of the generator of the images.
    """
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, SHAPE_NAMES, strict=True)]
    for split, count in zip(SPLITS, counts, strict=True):
        (root / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            scene = draw_scene(seed, split, index, image_size)
            height, width = scene.image.shape[:2]
            images.append({"id": index + 1, "file_name": f"{index:06d}.png", "height": height, "width": width})
            Image.fromarray(scene.image).save(root / f"{split}2017" / images[-1]["file_name"], compress_level=1)
            for mask, label in zip(scene.masks, scene.labels, strict=True):
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1} | _annotation(mask, CATEGORY_IDS[label]))
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content), encoding="utf-8")


def _annotation(mask: Mask, category_id: int) -> dict[str, Any]:
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

    The arguments are those of `write_coco_tree`, and so are the scenes.
    """
    for split, count in zip(SPLITS, counts, strict=True):
        images, maps = root / "images" / _ADE_SPLIT[split], root / "annotations" / _ADE_SPLIT[split]
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for index in range(count):
            scene = draw_scene(seed, split, index, image_size)
            Image.fromarray(scene.image).save(images / f"{index:06d}.png", compress_level=1)
            Image.fromarray(scene.label_map()).save(maps / f"{index:06d}.png")


_WRITERS = {"coco": write_coco_tree, "ade20k": write_ade20k_tree}


def _files(layout: str, counts: Sequence[int]) -> Iterator[str]:
    """Yield the paths of a tree's files below it."""
    for split, count in zip(SPLITS, counts, strict=True):
        names = [f"{index:06d}.png" for index in range(count)]
        if layout == "coco":
            yield f"annotations/instances_{split}2017.json"
            yield from (f"{split}2017/{name}" for name in names)
        else:
            yield from (f"{folder}/{_ADE_SPLIT[split]}/{name}" for folder in ("images", "annotations") for name in names)


def _missing_files(tree: Path, layout: str, counts: Sequence[int]) -> list[str]:
    """Return the files of a tree that are not there or hold nothing: with one scene less a run would be another."""
    expected = list(_files(layout, counts))
    there: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in expected}:
        with contextlib.suppress(OSError), os.scandir(tree / folder) as entries:
            there.update(f"{folder}/{entry.name}" for entry in entries if entry.stat().st_size)
    return [name for name in expected if name not in there]


def shapes_tree(layout: str, counts: Sequence[int], image_size: int, seed: int, parent: str | None = None) -> Path:
    """Return a tree of scenes in ``layout`` (coco or ade20k), writing what of it is not there yet.

    A new one is written aside and renamed, so that it is whole or not there, and several processes may ask at the same time.

    Args:
        layout: coco or ade20k.
        counts: number of images to train on and to evaluate.
        image_size: the longer side, in pixels.
        seed: of the generator of the images.
        parent: the folder it is put in; the user's cache if none.

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
        aside = Path(tempfile.mkdtemp(prefix=f".{tree.name}-", dir=folder))
    except OSError as error:
        raise UserError(
            f"{folder}: the drawn scenes cannot be written here: {error.strerror}. Give a folder by data.dir."
        ) from None
    try:
        _WRITERS[layout](aside / "tree", counts, image_size, seed)
        if tree.is_dir():  # drawn before, and since then a file was lost
            for name in missing:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / "tree" / name).replace(tree / name)
        else:
            (aside / "tree").rename(tree)
    except OSError as error:
        if _missing_files(tree, layout, counts):  # otherwise another process was faster
            raise UserError(f"{tree}: the drawn scenes cannot be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return tree
