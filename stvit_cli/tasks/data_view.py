"""What a data set holds, for a look at it and for a check of every image: a `DataView`, which each task makes of a recipe."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from stvit_cli.data.classification import Openable
from stvit_cli.data.formats.collection import image_size
from stvit_cli.data.images import orientation_of
from stvit_cli.errors import UserError

Level = Literal["error", "warning"]
"""error: would end a training or its evaluation. warning: is valid, and looks wrong."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with a data set.

    Attributes:
        level: see `Level`.
        kind: what is counted together: "unreadable image".
        split: train or val; empty where it is of both.
        path: the file; empty where it is of no single one.
        message: what is wrong.
    """

    level: Level
    kind: str
    split: str
    path: str
    message: str


@dataclass
class ImageReport:
    """What was found in one image and its annotations.

    Attributes:
        index: of the image in its set.
        size: width and height; None where it cannot be decoded.
        digest: a hash of the decoded pixels.
        is_turned: its EXIF orientation was undone.
        pixels: number of pixels by the number in its label map.
        findings: without the split, which the set adds.
    """

    index: int
    size: tuple[int, int] | None = None
    digest: bytes = b""
    is_turned: bool = False
    pixels: Counter[int] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def error(self, kind: str, path: str, message: str) -> None:
        """Add a finding that would end a run."""
        self.findings.append(Finding("error", kind, "", path, message))

    def warning(self, kind: str, path: str, message: str) -> None:
        """Add a finding that looks wrong."""
        self.findings.append(Finding("warning", kind, "", path, message))

    def opened(self, path: str, open_image: Callable[[], Image.Image], *, is_error: bool) -> Image.Image | None:
        """Decode the image and keep its size and hash; what cannot be decoded is a finding, and None.

        Args:
            path: of the image.
            open_image: decodes it; raises UserError.
            is_error: whether a run ends at such an image.
        """
        try:
            image = open_image()
        except UserError as error:
            (self.error if is_error else self.warning)("unreadable image", path, str(error))
            return None
        self.size, self.is_turned = image.size, orientation_of(image) != 1
        self.digest = hashlib.blake2b(np.asarray(image).tobytes(), digest_size=16, person=repr(image.size).encode()[:16]).digest()
        return image


class SetView(Protocol):
    """One split of a data set."""

    name: str
    """train or val."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str: ...

    def sizes(self) -> list[tuple[int, int]] | None:
        """Return width and height of every image, as the annotations say; None where the images have to be asked."""
        ...

    def size(self, index: int) -> tuple[int, int] | None:
        """Return width and height of an image without decoding it where that is possible; None where it cannot be read."""
        ...

    def counts(self) -> Sequence[int] | None:
        """Return the number of images, or objects, of each class; None where label maps have to be read."""
        ...

    def labels(self, index: int) -> frozenset[int]:
        """Return the classes of an image; none where they are not known without reading its label map."""
        ...

    def inspect(self, index: int) -> ImageReport:
        """Open an image and what is annotated in it, and check both."""
        ...

    def pixels(self, index: int) -> Counter[int]:
        """Return the number of pixels of each class in an image's label map; empty for a set without label maps."""
        ...

    def suspicions(self, pixels: Counter[int], num_maps: int) -> list[str]:
        """Return what looks wrong about the numbers of all label maps together."""
        ...


_Images = TypeVar("_Images", bound=Openable)


class ImagesView(Generic[_Images]):
    """The part of a `SetView` that the tasks share: its images, and the answers of a set without sizes, classes and label maps.

    Args:
        name: train or val.
        images: of the split.
        stops_at_unreadable: a run ends at an image that cannot be decoded.
    """

    def __init__(self, name: str, images: _Images, *, stops_at_unreadable: bool) -> None:
        self.name, self.images, self.stops_at_unreadable = name, images, stops_at_unreadable

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def sizes(self) -> list[tuple[int, int]] | None:
        return None

    def counts(self) -> Sequence[int] | None:
        return None

    def labels(self, index: int) -> frozenset[int]:
        return frozenset()

    def open(self, index: int, report: ImageReport) -> Image.Image | None:
        """Decode an image; see `ImageReport.opened`."""
        return report.opened(self.path(index), lambda: self.images.open(index), is_error=self.stops_at_unreadable)

    def pixels(self, index: int) -> Counter[int]:
        return Counter()

    def suspicions(self, pixels: Counter[int], num_maps: int) -> list[str]:
        return []


def header_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of the upright image, from the header of its file; None where it cannot be read."""
    size, _ = image_size(path)
    return None if isinstance(size, str) else size


@dataclass(frozen=True)
class DataView:
    """A data set as a recipe sees it.

    Attributes:
        class_names: by label.
        unit: what is counted by class: images, objects or pixels.
        sets: train and val.
        notes: lines on what was found, chosen and left out.
        findings: what is wrong with the annotations, found without opening an image.
    """

    class_names: tuple[str, ...]
    unit: Literal["images", "objects", "pixels"]
    sets: tuple[SetView, ...]
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
