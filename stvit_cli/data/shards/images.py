"""Images in shards as a data set of a classifier. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stvit_cli.data.images import UnreadableImageError, decode_image
from stvit_cli.data.shards.index import ShardIndex
from stvit_cli.data.shards.storage import without_query


class ShardImages:
    """Some images of shards.

    Args:
        index: of the shards.
        chosen: the images to keep, by their position in the index, (N,); None: all that have a label.
        class_names: None: those of the index.
        notes: remarks for the user.
    """

    def __init__(
        self,
        index: ShardIndex,
        chosen: NDArray[np.int64] | None = None,
        class_names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.index, self.notes = index, tuple(notes)
        self.class_names = index.class_names if class_names is None else tuple(class_names)
        labels = index.labels()
        if chosen is None and (labels < 0).any():
            chosen = np.flatnonzero(labels >= 0)
        self._chosen, self._labels = chosen, labels if chosen is None else labels[chosen]

    def __len__(self) -> int:
        return len(self._labels)

    def position(self, index: int) -> int:
        """Return the position of an image in the index of the shards."""
        return index if self._chosen is None else int(self._chosen[index])

    def path(self, index: int) -> str:
        """Return the shard's path, and the file in it."""
        position = self.position(index)
        file = self.index.files[self.index.shard_of(position)]
        return without_query(file.path).removesuffix(file.name) + self.index.name(position)

    def relative_path(self, index: int) -> str:
        """Return the shard's name, and the file in it."""
        return self.index.name(self.position(index))

    def target(self, index: int) -> int:
        return int(self._labels[index])

    def all_targets(self) -> NDArray[np.int64]:
        """Return the class of every image, (N,)."""
        return self._labels.astype(np.int64)

    def blocks(self) -> NDArray[np.int64]:
        """Return the position of the first image of each shard, and the number of images, (S + 1,)."""
        starts = self.index.shard_starts
        return starts if self._chosen is None else np.searchsorted(self._chosen, starts).astype(np.int64)

    def read(self, index: int) -> bytes:
        """Return the encoded image. Raises UserError where its shard cannot be read."""
        return self.index.read(self.position(index))

    def open(self, index: int) -> Image.Image:
        """Return the image in mode RGB.

        Raises:
            UnreadableImageError: it cannot be decoded.
            UserError: its shard cannot be read.
        """
        content = self.read(index)
        try:
            return decode_image(content, "")
        except UnreadableImageError:
            return decode_image(content, self.path(index))  # its name costs a read

    def fingerprint(self) -> str:
        """Return a hash of the classes, the shards, where each image lies, its class and the choice."""
        total = hashlib.blake2b(json.dumps([self.class_names, self.index.fingerprint]).encode(), digest_size=16)
        total.update(self._labels.astype("<i4").tobytes())
        if self._chosen is not None:
            total.update(self._chosen.astype("<i8").tobytes())
        return total.hexdigest()
