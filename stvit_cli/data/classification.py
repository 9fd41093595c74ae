"""Datasets for classification: images with a class, through the transforms.

C channels, S side of the square input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from stvit_cli.data.batch_transforms import Composed, TrainBatchTransform
from stvit_cli.data.byte_images import ByteImages, new_block
from stvit_cli.data.images import UnreadableImageError
from stvit_cli.data.in_memory import decode_all, image_bytes, stacked, without_colour
from stvit_cli.data.loader import WorkerUse, generators_kept, seeded
from stvit_cli.data.pixels import library
from stvit_cli.data.sampling import SampleKey, derive_seed, sample_seeds
from stvit_cli.data.transforms import EvalTransform, Transform
from stvit_cli.errors import UserError

MAX_REPLACEMENTS = 20
"""Maximum number of consecutive unreadable images; more end the run."""


class Images(Protocol):
    """Images with their classes, before transforms; only ``open`` reads pixels."""

    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    """Remarks on the data set for the user."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Return a hash of the classes and the images, in order."""
        ...

    def path(self, index: int) -> str: ...

    def relative_path(self, index: int) -> str:
        """Return the name of an image within the data set."""
        ...

    def target(self, index: int) -> int | NDArray[np.float32]:
        """Return the class, or the presence of each class as 0 and 1, (K,)."""
        ...

    def open(self, index: int) -> Image.Image: ...


@runtime_checkable
class KnowsTargets(Protocol):
    """Images that have their classes in an array."""

    def all_targets(self) -> NDArray[np.int64]:
        """Return the class of every image, (N,), or the presence of each class, (N, K)."""
        ...


def all_targets(images: Images) -> NDArray[np.int64]:
    """Return the class of every image, (N,), or the presence of each class, (N, K)."""
    if isinstance(images, KnowsTargets):
        return images.all_targets()
    return np.array([images.target(index) for index in range(len(images))]).astype(np.int64)


def images_of_classes(images: Images) -> NDArray[np.int64]:
    """Return the number of images of each class, (K,)."""
    targets = all_targets(images)
    if targets.ndim == 2:
        counts: NDArray[np.int64] = targets.sum(0)
        return counts
    return np.bincount(targets, minlength=len(images.class_names))


class EvalSet(Dataset[dict[str, Any]]):
    """Validation set; an unreadable image raises UserError.

    Items are ``{"image": (C, S, S), "target": int or (K,), "index": int}``.

    Args:
        images: with their classes.
        transform: from an image to a tensor.
    """

    workers: WorkerUse = "never"

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform
        self._pixels: Tensor | None = None
        self._missing: frozenset[int] = frozenset()
        if self.makes_batches:
            library()  # before there are workers, which share it

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.transform(self.images.open(index))
        return {"image": image, "target": self.images.target(index), "index": index}

    @property
    def makes_batches(self) -> bool:
        return isinstance(self.transform, EvalTransform)

    @property
    def is_in_memory(self) -> bool:
        return self._pixels is not None

    def keep_in_memory(self, most: int, stopped: Callable[[], bool], advance: Callable[[int], None]) -> int:
        """Keep the images as they are before normalization; see `in_memory.decode_all` for arguments, result and errors."""
        transform = self.transform
        assert isinstance(transform, EvalTransform)

        def pixels(image: Image.Image) -> NDArray[np.uint8]:
            grey = image.convert("L") if transform.mode == "L" else without_colour(image)
            return transform.pixels(grey)

        found, taken = decode_all(self.images, pixels, lambda array: array.nbytes, most, stopped=stopped, advance=advance)
        self._pixels = torch.from_numpy(stacked(found, transform.size))
        self._missing = frozenset(index for index, array in enumerate(found) if array is None)
        return taken

    def release(self) -> None:
        """Read the images from their files again."""
        self._pixels = None

    def batch(self, keys: Sequence[int]) -> dict[str, Any]:
        """Return a batch, its images as bytes; see `byte_images`."""
        assert isinstance(self.transform, EvalTransform)
        indices = torch.tensor(keys)
        if self._pixels is None:
            pixels = new_block((len(keys), self.transform.size, self.transform.size, 1 if self.transform.mode == "L" else 3))
            for row, index in zip(pixels.numpy(), keys, strict=True):
                row[...] = self.transform.pixels(self.transform.in_mode(self.images.open(index))).reshape(row.shape)
        else:
            for index in self._missing.intersection(keys):
                self[index]  # says why
            pixels = self._pixels[indices]
        image = ByteImages(pixels, *self.transform.statistics)
        return {"image": image, "target": _targets(self.images, keys), "index": indices, "skipped": []}


class TrainSet(Dataset[dict[str, Any]]):
    """Training set, indexed by `SampleKey`. Items are those of `EvalSet`; an item depends on the seed and the key alone.

    An item that replaces undecodable images also has ``"skipped"``, their paths.

    Args:
        images: with their classes.
        transform: from an image to a tensor; may draw random numbers.
        seed: of the run.
        unreadable: what to do about an image that cannot be decoded; see `open_or_replace`.
    """

    def __init__(self, images: Images, transform: Transform, seed: int, unreadable: Literal["stop", "skip"]) -> None:
        self.images, self.transform, self.seed, self.unreadable = images, transform, seed, unreadable
        self._kept: list[Image.Image | None] | None = None
        self._batch_transform = TrainBatchTransform(transform) if isinstance(transform, Composed) else None

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, opened, skipped = open_or_replace(self.images, key, self.seed, self.unreadable)
        with seeded(*sample_seeds(self.seed, [key])):
            image = self.transform(opened)
        item = {"image": image, "target": self.images.target(index), "index": index}
        return {**item, "skipped": skipped} if skipped else item

    @property
    def makes_batches(self) -> bool:
        return self._batch_transform is not None

    @property
    def is_in_memory(self) -> bool:
        return self._kept is not None

    @property
    def workers(self) -> WorkerUse:
        return "spare cores" if self._batch_transform is not None and self._batch_transform.is_light else "always"

    def keep_in_memory(self, most: int, stopped: Callable[[], bool], advance: Callable[[int], None]) -> int:
        """Keep the decoded images; see `in_memory.decode_all` for arguments, result and errors."""
        assert self._batch_transform is not None
        prepared = self._batch_transform.prepared
        self._kept, taken = decode_all(self.images, prepared, image_bytes, most, stopped=stopped, advance=advance)
        return taken

    def release(self) -> None:
        """Read the images from their files again."""
        self._kept = None

    def batch(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        """Return a batch, its images as bytes (`byte_images`). One that cannot be opened is replaced as an item is."""
        assert self._batch_transform is not None
        indices, images, skipped = [], [], []
        for key in keys:
            index, image = key.index, None if self._kept is None else self._kept[key.index]
            if image is None:
                index, image, paths = open_or_replace(self.images, key, self.seed, self.unreadable)
                if self._kept is not None or self._batch_transform.is_grey:
                    image = self._batch_transform.prepared(image)
                skipped += paths
            indices.append(index)
            images.append(image)
        with generators_kept():
            batch = self._batch_transform(images, sample_seeds(self.seed, keys))
        return {"image": batch, "target": _targets(self.images, indices), "index": torch.tensor(indices), "skipped": skipped}


def _targets(images: Images, indices: Sequence[int]) -> Tensor:
    targets: Tensor = default_collate([images.target(index) for index in indices])
    return targets


class Openable(Protocol):
    """A set whose images are opened by index."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    def open(self, index: int) -> Image.Image: ...


def open_or_replace(
    images: Openable, key: SampleKey, seed: int, unreadable: Literal["stop", "skip"]
) -> tuple[int, Image.Image, list[str]]:
    """Open the image of a key, or a replacement.

    Args:
        images: that ``key`` indexes.
        key: of the training sample.
        seed: of the run.
        unreadable: skip replaces an image that cannot be decoded by another one, drawn from the key. stop refuses it. A file
            that cannot be read at all, such as a missing one, always ends the run: it may be back later, and a resumed run would
            differ.

    Returns:
        The index of the image, the image, and the paths of the images that were skipped.

    Raises:
        UserError: the image cannot be opened, or more than `MAX_REPLACEMENTS` replacements in a row.
    """
    index = key.index
    skipped: list[str] = []
    while True:
        try:
            return index, images.open(index), skipped
        except UnreadableImageError as error:
            if unreadable == "stop":
                raise UserError(f"{error}\ndata.unreadable=skip trains without such images.") from None
            skipped.append(images.path(index))
            if len(skipped) > MAX_REPLACEMENTS:
                raise UserError(f"{len(skipped)} images in a row cannot be decoded; the last: {error}") from None
        index = derive_seed(seed, "in place of", *key, len(skipped)) % len(images)


@dataclass(frozen=True)
class ClassificationData:
    """The training and the validation set of a run, and its test set where the recipe names one."""

    train_set: TrainSet
    val_set: EvalSet
    class_names: tuple[str, ...]
    test_set: EvalSet | None = None
