"""Size and time of a report at 50 000 validation images and 1000 classes: made predictions, and made images that are opened.

    python tests/benchmarks/report_page.py [--images 50000] [--classes 1000] [--output FILE]

Prints the size of the page, the seconds of each part, and how many images were opened.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from PIL import Image

from stvit_cli.analysis.report.page import render
from stvit_cli.recipe import Recipe
from stvit_cli.tasks import registry
from stvit_cli.tasks.base import Evaluation
from stvit_cli.tasks.classification.predictions import ClassificationPredictions
from stvit_cli.tasks.report_parts import ReportSection
from stvit_cli.tasks.spec import ReportInput, Trained

LIMIT = 10_000_000
"""Bytes that a page may have."""


class MadeImages:
    """Photo-like images of 500 x 375, made when they are opened."""

    def __init__(self, target: np.ndarray, class_names: list[str]) -> None:
        self.targets, self.class_names, self.opened = target, tuple(class_names), 0

    def __len__(self) -> int:
        return len(self.targets)

    def target(self, index: int) -> int:
        return int(self.targets[index])

    def path(self, index: int) -> str:
        return f"val/{index:08d}.jpg"

    def open(self, index: int) -> Image.Image:
        self.opened += 1
        generator = np.random.default_rng(index)
        coarse = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = generator.normal(0, 12, (375, 500, 3))
        return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def predictions(num_images: int, num_classes: int) -> ClassificationPredictions:
    """Make predictions with a top-1 accuracy of about 80 %: a class is taken for one of its neighbours."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, num_classes, num_images)
    rank = np.where(generator.random(num_images) < 0.8, 0, generator.integers(1, 8, num_images))
    labels = (target[:, None] + np.arange(5)[None] - np.minimum(rank, 6)[:, None]) % num_classes
    scores = -np.sort(-generator.dirichlet(np.full(6, 0.4), num_images), axis=1)
    target_score = np.where(rank < 5, np.take_along_axis(scores, np.minimum(rank, 4)[:, None], 1)[:, 0], scores[:, 5])
    return ClassificationPredictions(
        images=[f"val/{index:08d}.jpg" for index in range(num_images)],
        class_names=[f"class number {index}, with a name" for index in range(num_classes)],
        target=target.astype(np.int32),
        labels=labels.astype(np.int32),
        scores=scores[:, :5].astype(np.float32),
        target_score=target_score.astype(np.float32),
        target_rank=rank.astype(np.int32),
        loss=-np.log(np.maximum(target_score, 1e-9)),
    )


def main() -> int:
    """Measure, and return 1 where the page is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = predictions(options.images, options.classes)
    images = MadeImages(found.target, list(found.class_names))
    evaluation = cast(Evaluation, SimpleNamespace(name="classification", val_set=SimpleNamespace(images=images)))
    make = registry.get("classification").report
    assert make is not None
    given = ReportInput(Recipe(), evaluation, found, cast(Trained, None), torch.device("cpu"))
    sections: list[ReportSection] = []
    began = since = time.perf_counter()
    for section in make(given):
        sections.append(section)
        print(f"{section.id:20s} {time.perf_counter() - since:6.1f} s")
        since = time.perf_counter()
    page = render("benchmark", f"{options.images} images, {options.classes} classes", sections).encode()
    print(f"{'page':20s} {time.perf_counter() - since:6.1f} s")
    print(f"{len(page) / 1e6:.2f} MB, {time.perf_counter() - began:.1f} s, {images.opened} of {options.images} images opened")
    if options.output is not None:
        options.output.write_bytes(page)
    return int(len(page) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
