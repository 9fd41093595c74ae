"""The sheet of augmented training samples: what the model sees, with the classes of mixed images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stvit_cli import tasks
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import registry
from stvit_cli.tasks.report_parts import ShownImage

OFF = {
    "crop_scale": "[1.0,1.0]",
    "crop_ratio": "[1.0,1.0]",
    "hflip": 0,
    "auto_augment": "null",
    "random_erasing": 0,
    "color_jitter": 0,
}
PLAIN = [f"augment.{key}={value}" for key, value in OFF.items()]


def sheet(data: Path, *overrides: str, num_images: int = 6) -> list[ShownImage]:
    words = [f"data.dir={data}", "model.name=stvit-nano", "data.image_size=64", *overrides]
    recipe = recipe_io.load("own-images", words)
    sample_sheet = registry.get("classification").sample_sheet
    assert sample_sheet is not None
    return list(sample_sheet(tasks.build(recipe), num_images))


def pixels(image: ShownImage) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(image.thumbnails[0].data)).convert("RGB"), dtype=float)


def test_sheet_is_a_function_of_the_seed(image_folder: Path) -> None:
    first = sheet(image_folder)
    assert first == sheet(image_folder)
    assert first != sheet(image_folder, "train.seed=1")
    assert len(first) == 6
    assert {image.caption[0] for image in first} == {"red", "blue"}
    assert all(image.caption[0] == image.name.split("/")[0] for image in first)


def test_images_are_denormalized(image_folder: Path) -> None:
    for image in sheet(image_folder, *PLAIN, num_images=3):
        source = Image.open(image_folder / "train" / image.name).resize((64, 64), Image.Resampling.BICUBIC)
        assert pixels(image).mean((0, 1)) == pytest.approx(np.asarray(source, dtype=float).mean((0, 1)), abs=6)


def test_mixed_images_name_their_classes(image_folder: Path) -> None:
    shown = sheet(image_folder, *PLAIN, "augment.mixup=1.0", num_images=7)
    assert len(shown) == 6  # images are mixed in pairs
    mixed = [image for image in shown if "," in image.caption[0]]
    assert mixed
    for image in mixed:
        parts = dict(text.rsplit(" ", 1) for text in image.caption[0].split(", "))
        assert set(parts) == {"red", "blue"}
        assert sum(int(part.rstrip("%")) for part in parts.values()) in (99, 100, 101)
        red, blue = pixels(image).mean((0, 1))[[0, 2]]
        assert (red > blue) == (int(parts["red"].rstrip("%")) > 50)


def test_grey_models_have_grey_samples(image_folder: Path) -> None:
    shown = sheet(image_folder, *PLAIN, "model.in_chans=1", "data.mean=[0.5]", "data.std=[0.25]", num_images=2)
    assert pixels(shown[0]).std(2).max() < 12
