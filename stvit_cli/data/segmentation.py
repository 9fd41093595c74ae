"""Datasets for semantic segmentation: images with label maps, through the transforms.

H W rows and columns of an image, h w at one scale of an evaluation, S side of a training crop, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stvit_cli.data.classification import open_or_replace
from stvit_cli.data.image_pairs import LabelledImages
from stvit_cli.data.loader import seeded
from stvit_cli.data.sampling import SampleKey, derive_seed
from stvit_cli.data.segmentation_transforms import TrainTransform


class SegmentationTrainSet(Dataset[dict[str, Any]]):
    """Training set, indexed by `SampleKey`.

    Items are ``{"image": (C, S, S), "target": (S, S), "index": int, "skipped": [path]}``. An item depends on
    the seed and the key alone. ``skipped`` are the undecodable images that it replaces.

    Args:
        images: with their label maps.
        transform: the random transform.
        seed: of the run.
        unreadable: what to do about an image that cannot be decoded; see `open_or_replace`.
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
    """Validation set. Items are ``{"images": [(1, C, h, w) per scale], "target": (H, W) at the original size, "index": int}``.

    Args:
        images: with their label maps.
        transform: from an image to one tensor per scale.
    """

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
    """The training and the validation set of a run."""

    train_set: SegmentationTrainSet
    val_set: SegmentationEvalSet
