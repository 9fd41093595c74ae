"""The few images of a classifier's report: opened when they are shown, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.classification import Images
from stvit_cli.data.thumbnails import thumbnail
from stvit_cli.errors import UserError
from stvit_cli.tasks.report_parts import GalleryPart, ShownImage, Thumbnail
from stvit_cli.tasks.report_texts import failure_lines

MAX_FAILURES = 50
"""Images that cannot be opened, after which no more are tried: the disk may be gone."""
Caption = Callable[[int], Sequence[str]]
"""Returns the lines below an image, given its index."""


class ShownImages:
    """Makes thumbnails of the images of a validation set, as they are before the transforms.

    Args:
        images: the validation set as it is now; images that were predicted are found in it by their names.
        names: of the images that were predicted.
        targets: their true classes, (N,), or labels, (N, K); an image that has others now is not the one that was predicted.

    Attributes:
        failures: why images could not be shown, by index.
    """

    def __init__(self, images: Images, names: Sequence[str], targets: NDArray[Any]) -> None:
        self._images, self._names, self._targets = images, names, targets
        self._thumbnails: dict[int, Thumbnail | None] = {}
        self.failures: dict[int, str] = {}
        self._by_name: dict[str, int] | None = None

    @property
    def has_given_up(self) -> bool:
        """Whether the limit of images that could not be opened is reached, so that no more are tried."""
        return len(self.failures) >= MAX_FAILURES

    def show(self, index: int, caption: Sequence[str], is_wrong: bool | None) -> ShownImage | None:
        """Return an image with its caption; None where it cannot be opened."""
        data = self._thumbnail(index)
        return None if data is None else ShownImage(self._names[index], [data], caption, is_wrong)

    def first(self, order: Iterable[int], limit: int, caption: Caption, is_wrong: Callable[[int], bool]) -> list[ShownImage]:
        """Return the first ``limit`` images of an order that can be opened; as many that cannot be are tried."""
        shown: list[ShownImage] = []
        for tried, index in enumerate(order):
            if len(shown) == limit or tried == 2 * limit or self.has_given_up:
                break
            image = self.show(int(index), caption(int(index)), is_wrong(int(index)))
            if image is not None:
                shown.append(image)
        return shown

    def gallery(
        self, title: str, order: NDArray[np.intp], limit: int, caption: Caption, is_wrong: Callable[[int], bool], note: str
    ) -> GalleryPart:
        """Return a gallery of the first images of an order, which has all of them."""
        return GalleryPart(title, self.first(order, limit, caption, is_wrong), len(order), note)

    def problems(self) -> list[str]:
        """Return lines on what could not be shown."""
        return failure_lines(self._names, self.failures, "; no more were tried" if self.has_given_up else "")

    def _thumbnail(self, index: int) -> Thumbnail | None:
        if index not in self._thumbnails:
            try:
                position = self._position(index)
                if not np.array_equal(self._images.target(position), self._targets[index]):
                    raise UserError(f"{self._images.path(position)}: it has another class than when it was predicted.")
                self._thumbnails[index] = Thumbnail(thumbnail(self._images.open(position)))
            except (UserError, OSError) as error:
                self.failures[index], self._thumbnails[index] = str(error), None
        return self._thumbnails[index]

    def _position(self, index: int) -> int:
        """Return the index in the data set of an image that was predicted. Raises UserError where it is not there any more."""
        name = self._names[index]
        if index < len(self._images) and self._images.relative_path(index) == name:
            return index
        if self._by_name is None:
            self._by_name = {self._images.relative_path(number): number for number in range(len(self._images))}
        if name not in self._by_name:
            raise UserError(f"{name}: it is no longer in the data set.")
        return self._by_name[name]
