"""A look at the data of a segmentation recipe: every image with its label map."""

from __future__ import annotations

from collections import Counter

import numpy as np

from stvit_cli.data.image_pairs import LabelledImages
from stvit_cli.data.label_checks import NumberCount, suspicions
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.data_view import DataView, ImageReport, ImagesView, header_size
from stvit_cli.tasks.segmentation.data import build_segmentation


class SegmentationView(ImagesView[LabelledImages]):
    """See `SetView`."""

    def size(self, index: int) -> tuple[int, int] | None:
        return header_size(self.images.images[index])

    def inspect(self, index: int) -> ImageReport:
        report = ImageReport(index)
        image = self.open(index, report)
        try:
            numbers = self.images.numbers(index, None if image is None else image.size)
        except UserError as error:
            report.error("wrong label map", str(self.images.maps[index]), str(error))
            return report
        values, pixels = np.unique(numbers, return_counts=True)
        report.pixels.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        if set(values.tolist()) <= self.images.ignored_numbers:
            text = "all of its pixels are ignored"
            report.warning("label map without a class", str(self.images.maps[index]), text)
        return report

    def pixels(self, index: int) -> Counter[int]:
        classes = {number: label for label, number in enumerate(self.images.class_numbers)}
        values, pixels = np.unique(self.images.numbers(index), return_counts=True)
        counted = zip(values.tolist(), pixels.tolist(), strict=True)
        return Counter({classes[number]: count for number, count in counted if number in classes and not self._ignored(number)})

    def suspicions(self, pixels: Counter[int], num_maps: int) -> list[str]:
        return suspicions(self.images, NumberCount(pixels, num_maps))

    def _ignored(self, number: int) -> bool:
        return number in self.images.ignored_numbers


def view_segmentation(recipe: Recipe) -> DataView:
    """Return what the recipe's folders hold. Raises UserError as `build_segmentation` does."""
    data = build_segmentation(recipe)
    train, val = data.train_set.images, data.val_set.images
    views = (
        SegmentationView("train", train, stops_at_unreadable=recipe.data.unreadable == "stop"),
        SegmentationView("val", val, stops_at_unreadable=True),
    )
    notes = tuple(dict.fromkeys((*train.notes, *val.notes)))
    return DataView(tuple(recipe.segmentation.class_names), "pixels", views, notes)
