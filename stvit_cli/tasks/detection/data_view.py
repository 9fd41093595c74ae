"""A look at the data of a detection recipe: every image with its boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stvit_cli.data.coco import CocoImages
from stvit_cli.data.coco_index import CocoIndex
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.data_view import DataView, Finding, ImageReport, ImagesView, Level
from stvit_cli.tasks.detection.data import read_sets

TINY = 3.0
"""Boxes with a side of fewer pixels are named."""

WHOLE = 0.995
"""Fraction of the width and of the height from which on a box is that of the entire image."""


class DetectionView(ImagesView[CocoImages]):
    """See `SetView`."""

    def __init__(self, name: str, images: CocoImages, *, stops_at_unreadable: bool) -> None:
        super().__init__(name, images, stops_at_unreadable=stops_at_unreadable)
        self.names = [category.name for category in images.index.categories]

    def sizes(self) -> list[tuple[int, int]] | None:
        return [(width, height) for height, width in self.images.index.sizes[self.images.indices].tolist()]

    def size(self, index: int) -> tuple[int, int] | None:
        height, width = self.images.size(index)
        return width, height

    def counts(self) -> list[int]:
        found = Counter(entry["label"] - 1 for index in range(len(self)) for entry in self._objects(index))
        return [found[label] for label in range(len(self.names))]

    def labels(self, index: int) -> frozenset[int]:
        return frozenset(entry["label"] - 1 for entry in self._objects(index))

    def inspect(self, index: int) -> ImageReport:
        report, path = ImageReport(index), self.path(index)
        self.open(index, report)
        height, width = self.images.size(index)
        seen: set[tuple[Any, ...]] = set()
        for entry in self.images.index.annotations(int(self.images.indices[index])):
            self._check_box(report, path, entry, (width, height), seen)
        return report

    def _objects(self, index: int) -> list[dict[str, Any]]:
        return self.images.index.objects(int(self.images.indices[index]))

    def _check_box(
        self, report: ImageReport, path: str, entry: Mapping[str, Any], size: tuple[int, int], seen: set[tuple[Any, ...]]
    ) -> None:
        """Name what is valid and looks wrong about a box."""
        (left, top, across, down), (width, height) = entry["box"], size
        what = f"the box {[round(side, 1) for side in entry['box']]} of {self.names[entry['label'] - 1]}"
        if "crowd" in entry:
            return
        if across <= 0 or down <= 0:
            report.warning("box without area", path, f"{what} has no area, and is not trained on")
        elif min(across, down) < TINY:
            report.warning("tiny box", path, f"{what} is less than {TINY:g} pixels wide or high")
        if left < -1 or top < -1 or left + across > width + 1 or top + down > height + 1:
            report.warning("box beyond its image", path, f"{what} reaches beyond its image of {width} x {height}, and is clipped")
        if across >= WHOLE * width and down >= WHOLE * height:
            report.warning("box of the whole image", path, f"{what} is the whole image")
        key = (entry["label"], *entry["box"])
        if key in seen:
            report.warning("duplicated box", path, f"{what} is there twice")
        seen.add(key)


def view_detection(recipe: Recipe) -> DataView:
    """Return what the recipe's annotation files hold. What is invalid in them is a finding.

    Raises:
        UserError: as `read_sets` does for files that cannot be used at all.
    """
    stops = recipe.detection.invalid_annotations == "stop"
    detection = recipe.detection.model_copy(update={"keep_empty": True, "invalid_annotations": "skip"})
    sets = read_sets(recipe.data, detection, recipe.shapes)
    exif, masks = detection.exif_orientation, False
    train = CocoImages(sets.train, sets.chosen, exif, masks=masks)
    val = CocoImages(sets.val, exif_orientation=exif, masks=masks)
    names = tuple(category.name for category in sets.train.categories)
    one_file = sets.val.path == sets.train.path
    notes = [*sets.notes, *sets.train.notes(of_training=True, masks=False)]
    notes += [] if one_file else sets.val.notes(of_training=False, masks=False)
    empty = int((sets.train.num_objects[sets.chosen] == 0).sum())
    if empty and not recipe.detection.keep_empty:
        notes.append(f"{empty} images without objects are not trained on (detection.keep_empty=true: they are).")
    findings = [*_invalid("train", sets.train, stops=stops), *([] if one_file else _invalid("val", sets.val, stops=stops))]
    if stops and findings:
        notes.append(
            f"Warning: a training would end at {len(findings)} annotations that cannot be used, unless "
            "detection.invalid_annotations=skip; `stvit data check` names them."
        )
    views = (
        DetectionView("train", train, stops_at_unreadable=recipe.data.unreadable == "stop"),
        DetectionView("val", val, stops_at_unreadable=True),
    )
    return DataView(names, "objects", views, tuple(notes), tuple(findings))


def _invalid(split: str, index: CocoIndex, *, stops: bool) -> list[Finding]:
    level: Level = "error" if stops else "warning"
    return [Finding(level, f"annotation {found.reason}", split, found.origin, found.message) for found in index.invalid]
