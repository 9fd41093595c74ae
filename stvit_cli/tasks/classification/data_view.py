"""A look at the data of a classification recipe: every image with its class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stvit_cli.data.classification import Images, images_of_classes
from stvit_cli.data.digits import SIDE, DigitImages
from stvit_cli.data.shards.images import ShardImages
from stvit_cli.errors import UserError
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.classification.data import build_classification, data_section
from stvit_cli.tasks.data_view import DataView, Finding, ImageReport, ImagesView, Level, header_size
from stvit_cli.utils.text import printable


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
    settings = data_section(recipe)
    level: Level = "error" if settings.unreadable == "stop" else "warning"
    if settings.kind == "shards":  # damaged shards are findings beside the others
        settings = settings.model_copy(update={"unreadable": "skip"})
    data = build_classification(settings, recipe.augment, recipe.eval, recipe.train.seed, recipe.model.in_chans)
    train, val = data.train_set.images, data.val_set.images
    views: tuple[ClassificationView, ...] = (
        ClassificationView("train", train, stops_at_unreadable=recipe.data.unreadable == "stop"),
        ClassificationView("val", val, stops_at_unreadable=True),
    )
    used = (train, val, *([] if data.test_set is None else [data.test_set.images]))
    findings = tuple(_damaged_shards([images for images in used if isinstance(images, ShardImages)], level))
    if data.test_set is None:
        return DataView(data.class_names, "images", views, (*train.notes, *val.notes), findings)
    test = data.test_set.images
    views = (*views, ClassificationView("test", test, stops_at_unreadable=True))
    return DataView(data.class_names, "images", views, (*train.notes, *val.notes, *test.notes), findings)


def _damaged_shards(sets: Sequence[ShardImages], level: Level) -> Iterator[Finding]:
    """Yield a finding for each damaged shard; of a held-out part the shards are those of the training images."""
    problems = {(images.index.root, name): text for images in sets for name, text in images.index.problems.items()}
    for (root, name), text in problems.items():
        yield Finding(level, "damaged shard", "", f"{root}/{name}", f"{printable(name)}: {text}")
