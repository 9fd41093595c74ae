"""What a data set holds: numbers, sizes, classes and their balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stvit_cli.data.inspection import evenly_spaced
from stvit_cli.errors import UserError
from stvit_cli.tasks.data_view import DataView, SetView

NUM_SIZES = 2000
"""Images of a split whose header is read for their size; evenly spaced."""

NUM_MAPS = 200
"""Label maps of a split whose pixels are counted; evenly spaced."""

THREADS = 8


@dataclass(frozen=True)
class SplitSummary:
    """One split of a data set.

    Attributes:
        name: train or val.
        num_images: in it.
        num_objects: annotated objects to train on; None where images have a class or a label map.
        counts: images, objects or pixels of each class.
        num_counted: images that were counted; fewer than all of large sets of label maps.
        num_unusable: label maps that were to be counted, and cannot be read or hold numbers that are no class.
        sizes: the smallest, the median and the largest image by area, (width, height).
        num_sizes: images whose size was looked at.
    """

    name: str
    num_images: int
    num_objects: int | None
    counts: Sequence[int]
    num_counted: int
    num_unusable: int
    sizes: Sequence[tuple[int, int]]
    num_sizes: int


def describe(view: DataView) -> list[SplitSummary]:
    """Return a summary of each split. Images that cannot be read are skipped; `check.check` names them."""
    return [_summary(view, split) for split in view.sets]


def _summary(view: DataView, split: SetView) -> SplitSummary:
    counts, num_counted, num_unusable = split.counts(), len(split), 0
    if counts is None:
        positions = evenly_spaced(len(split), NUM_MAPS)
        pixels: Counter[int] = Counter()
        for position in positions:
            try:
                pixels += split.pixels(position)
            except UserError:
                num_unusable += 1
        counts, num_counted = [pixels[label] for label in range(len(view.class_names))], len(positions) - num_unusable
    sizes = split.sizes()
    if sizes is None:
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(split.size, evenly_spaced(len(split), NUM_SIZES))
            sizes = [size for size in found if size is not None]
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    shown = [by_area[0], by_area[len(by_area) // 2], by_area[-1]] if by_area else []
    objects = sum(counts) if view.unit == "objects" else None
    return SplitSummary(split.name, len(split), objects, list(counts), num_counted, num_unusable, shown, len(sizes))
