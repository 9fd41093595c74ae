"""Data sets of classification: an image and its class, through the transforms, as an item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image
from torch.utils.data import Dataset

from stvit_cli.data.images import UnreadableImageError
from stvit_cli.data.loader import seeded
from stvit_cli.data.sampling import SampleKey, derive_seed
from stvit_cli.data.transforms import Transform
from stvit_cli.errors import UserError

MAX_REPLACEMENTS = 20
"""Unreadable images in a row, after which the data as a whole are taken to be wrong."""


class Images(Protocol):
    """Images by class, not yet transformed; pixels are read only by ``open``."""

    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    """What a person should know of what was found."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Return what is the same for the same images of the same classes in the same order, and differs otherwise."""
        ...

    def path(self, index: int) -> str: ...

    def target(self, index: int) -> int: ...

    def open(self, index: int) -> Image.Image: ...


class EvalSet(Dataset[dict[str, Any]]):
    """Items ``{"image": C H W, "target": int, "index": int}``; an image that cannot be read is a ``UserError``."""

    def __init__(self, images: Images, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.transform(self.images.open(index))
        return {"image": image, "target": self.images.target(index), "index": index}


class TrainSet(Dataset[dict[str, Any]]):
    """The same items, indexed by ``SampleKey``; an item is a function of the seed and the key alone.

    With ``unreadable`` skip, an image that cannot be decoded is replaced by another one, drawn from the key; the item then
    also has ``"skipped"``, the paths of the images it stands for. A file that cannot be read at all stops the run nevertheless:
    it may be there again tomorrow, and the run would not be the same.
    """

    def __init__(self, images: Images, transform: Transform, seed: int, unreadable: Literal["stop", "skip"]) -> None:
        self.images, self.transform, self.seed, self.unreadable = images, transform, seed, unreadable

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, opened, skipped = open_or_replace(self.images, key, self.seed, self.unreadable)
        with seeded(derive_seed(self.seed, "sample", key.epoch, key.index, key.view)):
            image = self.transform(opened)
        item = {"image": image, "target": self.images.target(index), "index": index}
        return {**item, "skipped": skipped} if skipped else item


class Openable(Protocol):
    """A set whose images are opened by index."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    def open(self, index: int) -> Image.Image: ...


def open_or_replace(
    images: Openable, key: SampleKey, seed: int, unreadable: Literal["stop", "skip"]
) -> tuple[int, Image.Image, list[str]]:
    """Return the index and the image for a key, and the paths of unreadable images that were in its place."""
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
    """The sets of a classification run and the names of its classes."""

    train_set: TrainSet
    val_set: EvalSet
    class_names: tuple[str, ...]
