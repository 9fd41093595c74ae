"""Images with label maps, laid out as ADE20K's or in any two folders, as the sets of a training and an evaluation.

H W rows and columns of an image, C its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stvit_cli.data.classification import open_or_replace
from stvit_cli.data.image_pairs import LabelledImages, find_pairs
from stvit_cli.data.loader import seeded
from stvit_cli.data.sampling import SampleKey, derive_seed
from stvit_cli.data.segmentation_transforms import TrainTransform, eval_transform
from stvit_cli.data.shapes import shapes_tree
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.utils.text import did_you_mean


class SegmentationTrainSet(Dataset[dict[str, Any]]):
    """Items ``{"image": C H W, "target": H W, "index": int, "skipped": [path]}`` by ``SampleKey``.

    An item is a function of the seed and the key alone; ``skipped`` are images that could not be decoded, in whose place it is.
    """

    def __init__(self, images: LabelledImages, transform: TrainTransform, seed: int, unreadable: Literal["stop", "skip"]) -> None:
        self.images, self.transform, self.seed, self.unreadable = images, transform, seed, unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, image, skipped = open_or_replace(self.images, key, self.seed, self.unreadable)
        labels = self.images.labels(index, image.size)
        with seeded(derive_seed(self.seed, "sample", key.epoch, key.index, key.view)):
            pixels, target = self.transform(image, labels)
        return {"image": pixels, "target": target, "index": index, "skipped": skipped}


class SegmentationEvalSet(Dataset[dict[str, Any]]):
    """Items ``{"images": [1 C h w, one for each scale], "target": H W at the original size, "index": int}``."""

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images.open(index)
        labels = self.images.labels(index, image.size)
        return {"images": self.transform(image), "target": torch.from_numpy(labels).long(), "index": index}


@dataclass(frozen=True)
class SegmentationData:
    train_set: SegmentationTrainSet
    val_set: SegmentationEvalSet


def build_segmentation(recipe: Recipe) -> SegmentationData:
    """Build the training and the validation set of a recipe.

    Raises:
        UserError: a folder is missing or empty, or images have no label maps.
    """
    section = recipe.segmentation
    root = _root(recipe)
    images = find_pairs(root, section.train_images, section.train_maps, section)
    transform = TrainTransform(section, recipe.augment, recipe.data)
    train_set = SegmentationTrainSet(images, transform, recipe.train.seed, recipe.data.unreadable)
    return SegmentationData(train_set, build_segmentation_eval(recipe))


def build_segmentation_eval(recipe: Recipe) -> SegmentationEvalSet:
    """Build the validation set alone. Raises UserError as `build_segmentation` does."""
    section = recipe.segmentation
    images = find_pairs(_root(recipe), section.val_images, section.val_maps, section)
    scales = eval_transform(section, recipe.augment.interpolation, recipe.data.mean, recipe.data.std)
    return SegmentationEvalSet(images, scales)


def _root(recipe: Recipe) -> Path:
    if recipe.data.kind == "shapes":
        shapes = recipe.shapes
        counts = (shapes.num_train, shapes.num_val)
        return shapes_tree("ade20k", counts, recipe.data.image_size, shapes.seed, recipe.data.dir)
    if recipe.data.dir is None:
        raise UserError("data.dir is not set: the folder of images and label maps (on the command line: --data DIR).")
    root = Path(recipe.data.dir).expanduser()
    if not root.is_dir():
        siblings = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"data.dir: there is no folder {root}.{did_you_mean(root.name, siblings)}")
    return root
