"""A look at the data of a classification recipe: every image with its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stvit_cli.data.classification import Images, images_of_classes
from stvit_cli.data.digits import SIDE, DigitImages
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.classification.data import build_classification
from stvit_cli.tasks.data_view import DataView, ImageReport, ImagesView, header_size


class ClassificationView(ImagesView[Images]):
    """See `SetView`."""

    def sizes(self) -> list[tuple[int, int]] | None:
        return [(SIDE, SIDE)] * len(self) if isinstance(self.images, DigitImages) else None

    def size(self, index: int) -> tuple[int, int] | None:
        path = Path(self.path(index))
        if path.is_file():
            return header_size(path)
        try:  # in a table or an archive
            return self.images.open(index).size
        except UserError:
            return None

    def counts(self) -> list[int]:
        counts: list[int] = images_of_classes(self.images).tolist()
        return counts

    def labels(self, index: int) -> frozenset[int]:
        target = self.images.target(index)
        return frozenset({target} if isinstance(target, int) else np.flatnonzero(target).tolist())  # several labels

    def inspect(self, index: int) -> ImageReport:
        report = ImageReport(index)
        self.open(index, report)
        return report


def view_classification(recipe: Recipe) -> DataView:
    """Return what the recipe's folders hold. Raises UserError as `build_classification` does."""
    data = build_classification(recipe.data, recipe.augment, recipe.eval, recipe.train.seed, recipe.model.in_chans)
    train, val = data.train_set.images, data.val_set.images
    views: tuple[ClassificationView, ...] = (
        ClassificationView("train", train, stops_at_unreadable=recipe.data.unreadable == "stop"),
        ClassificationView("val", val, stops_at_unreadable=True),
    )
    if data.test_set is None:
        return DataView(data.class_names, "images", views, (*train.notes, *val.notes))
    test = data.test_set.images
    views = (*views, ClassificationView("test", test, stops_at_unreadable=True))
    return DataView(data.class_names, "images", views, (*train.notes, *val.notes, *test.notes))
