"""Detection data in COCO's layout: pictures with boxes, labels and masks.

N objects of a picture, H W its rows and columns. Boxes are (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional as F

from stvit_cli.data.classification import open_or_replace
from stvit_cli.data.coco_index import Category, CocoIndex, read_coco, read_json
from stvit_cli.data.images import open_image
from stvit_cli.data.loader import seeded
from stvit_cli.data.order import SampleKey, derive_seed
from stvit_cli.data.shapes import shapes_tree
from stvit_cli.errors import UserError
from stvit_cli.recipe import DataSection, DetectionSection, ShapesSection


class CocoPictures:
    """Some pictures of an annotation file, by ``indices`` (all of them if none)."""

    def __init__(self, index: CocoIndex, indices: NDArray[np.int64] | None = None) -> None:
        self.index = index
        self.indices = np.arange(len(index)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def path(self, index: int) -> str:
        return str(self.index.folder / self.index.file_names[self.indices[index]])

    def image_id(self, index: int) -> Any:
        return self.index.image_ids[self.indices[index]]

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width."""
        height, width = self.index.sizes[self.indices[index]].tolist()
        return height, width

    def open(self, index: int) -> Image.Image:
        """Return the picture. Raises UserError as `open_image` does, and where its size is not that of the annotations."""
        image, (height, width) = open_image(self.path(index)), self.size(index)
        if image.size != (width, height):
            raise UserError(
                f"{self.path(index)} is {image.width} x {image.height} pixels, not {width} x {height}, as {self.index.path} says."
            )
        return image

    def targets(self, index: int) -> dict[str, Tensor]:
        """Return ``boxes`` (N, 4) float, ``labels`` (N,) from 1, ``masks`` (N, H, W) of 0 and 1 in uint8."""
        objects = self.index.objects(int(self.indices[index]))
        height, width = self.size(index)
        masks = [decode_mask(entry["segmentation"], height, width) for entry in objects]
        return {
            "boxes": torch.tensor([entry["box"] for entry in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([entry["label"] for entry in objects], dtype=torch.int64),
            "masks": torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, height, width, dtype=torch.uint8),
        }


class DetectionTrainSet(Dataset[dict[str, Any]]):
    """Items ``{"image": 3 H W in 0..1, "targets": see CocoPictures.targets, "index": int}``, a function of the seed and the key.

    Attributes:
        likeness: width by height of every picture; those of a step that are alike share a micro-batch, which saves padding.
    """

    def __init__(self, pictures: CocoPictures, hflip: float, seed: int, unreadable: Literal["stop", "skip"]) -> None:
        self.pictures, self.hflip, self.seed, self.unreadable = pictures, hflip, seed, unreadable
        sizes = pictures.index.sizes[pictures.indices]
        self.likeness = sizes[:, 1] / sizes[:, 0]

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, index: int) -> str:
        return self.pictures.path(index)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, picture, skipped = open_or_replace(self.pictures, key, self.seed, self.unreadable)
        image, targets = F.to_tensor(picture), self.pictures.targets(index)
        with seeded(derive_seed(self.seed, "sample", key.epoch, key.index, key.view)):
            if torch.rand(()) < self.hflip:
                image, targets = flip(image, targets)
        return {"image": image, "targets": targets, "index": index, "skipped": skipped}


class DetectionEvalSet(Dataset[dict[str, Any]]):
    """Items ``{"image": 3 H W in 0..1, "index": int}``; a picture that cannot be read is a ``UserError``."""

    def __init__(self, pictures: CocoPictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, index: int) -> str:
        return self.pictures.path(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": F.to_tensor(self.pictures.open(index)), "index": index}


@dataclass(frozen=True)
class DetectionData:
    train_set: DetectionTrainSet
    val_set: DetectionEvalSet
    class_names: tuple[str, ...]


def build_detection(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection, hflip: float, seed: int
) -> DetectionData:
    """Build both sets of a recipe.

    Raises:
        UserError: see `read_coco`; also where training and validation have other categories, or nothing can be trained on.
    """
    root = _root(data, shapes)
    train = read_coco(root / detection.train_json, root / detection.train_images)
    val = read_coco(root / detection.val_json, root / detection.val_images)
    if train.categories != val.categories:
        ours, theirs = (", ".join(_names(index.categories)[:6]) for index in (train, val))
        raise UserError(f"{val.path}: its categories ({theirs}) are not those of {train.path} ({ours}), ids and names.")
    indices = np.arange(len(train)) if detection.keep_empty else np.flatnonzero(train.num_objects)
    if not train.num_objects.any():
        raise UserError(f"{train.path}: no object in it can be trained on: only crowds, or boxes of less than a pixel.")
    return DetectionData(
        train_set=DetectionTrainSet(CocoPictures(train, indices), hflip, seed, data.unreadable),
        val_set=DetectionEvalSet(CocoPictures(val)),
        class_names=_names(train.categories),
    )


def build_detection_eval_set(
    data: DataSection, detection: DetectionSection, shapes: ShapesSection, class_names: Sequence[str]
) -> DetectionEvalSet:
    """Build the set of an evaluation alone, for a model of ``class_names``. Raises UserError as `build_detection` does."""
    root = _root(data, shapes)
    index = read_coco(root / detection.val_json, root / detection.val_images)
    names = _names(index.categories)
    if names != tuple(class_names):
        raise UserError(
            f"{index.path}: its categories are {', '.join(names[:6])}, the model's {', '.join(class_names[:6])} "
            f"({len(names)} and {len(class_names)})."
        )
    return DetectionEvalSet(CocoPictures(index))


def _root(data: DataSection, shapes: ShapesSection) -> Path:
    if data.kind == "shapes":
        return shapes_tree("coco", (shapes.num_train, shapes.num_val), data.image_size, shapes.seed, data.dir)
    if data.dir is None:
        raise UserError("data.dir is not set: which folder holds the annotations and the pictures? Give --data DIR")
    root = Path(data.dir).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder (data.dir).")
    return root


def _names(categories: Sequence[Category]) -> tuple[str, ...]:
    return tuple(category.name for category in categories)


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return a mask (H, W) of 0 and 1 from polygons, or from a run-length code as text or as a list of counts."""
    if isinstance(segmentation, list):
        code = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        code = rle.frPyObjects(segmentation, height, width)
    else:
        code = segmentation
    mask: NDArray[np.uint8] = rle.decode(code)
    return mask


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the run-length code of a mask (H, W), as JSON can hold it."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def flip(image: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mirror a picture (3, H, W) and what is in it left and right."""
    left, top, right, bottom = targets["boxes"].unbind(1)
    width = image.shape[2]
    boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
    return image.flip(2), targets | {"boxes": boxes, "masks": targets["masks"].flip(2)}


def ground_truth(path: Path) -> COCO:
    """Return pycocotools' reading of an annotation file, with what some files leave out: ``iscrowd`` and ``area``.

    Annotations are numbered anew from 1: pycocotools takes an id of 0 for none.
    """
    content = read_json(path)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            annotation["area"] = int(decode_mask(annotation["segmentation"], *sizes[annotation["image_id"]]).sum())
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
