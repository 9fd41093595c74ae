"""Sizes that a recipe with data.auto_size gets: never above its own, no larger than the images, smaller on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from stvit_cli.api.image_sizes import fitting_heads, fitting_sizes
from stvit_cli.models.weights.file import WeightsInfo
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io


def recipe(name: str, root: Path, *sizes: tuple[int, int]) -> Recipe:
    """Return a shipped recipe for a folder of images of these sizes."""
    for index, size in enumerate(sizes):
        Image.new("L", size).save(root / f"{index}.png")
    return recipe_io.load(name, [f"data.dir={root}"])


@pytest.mark.parametrize(
    ("size", "on_gpu", "expected"),
    [((30, 30), True, 64), ((100, 150), True, 128), ((4000, 3000), True, 224), ((4000, 3000), False, 128), ((60, 90), False, 64)],
)
def test_classification(size: tuple[int, int], on_gpu: bool, expected: int, tmp_path: Path) -> None:
    assert fitting_sizes(recipe("own-images", tmp_path, size), on_gpu=on_gpu) == {"data.image_size": expected}


def test_half_of_the_images_decide_and_unreadable_ones_do_not(tmp_path: Path) -> None:
    settings = recipe("own-images", tmp_path, (70, 70), (90, 90), (500, 500))
    (tmp_path / "x.png").write_bytes(b"no image")
    assert fitting_sizes(settings, on_gpu=True) == {"data.image_size": 96}


@pytest.mark.parametrize(("on_gpu", "short", "long"), [(True, 640, 1088), (False, 256, 448)])
def test_detection_keeps_the_ratio_of_its_sides(on_gpu: bool, short: int, long: int, tmp_path: Path) -> None:
    sizes = fitting_sizes(recipe("own-boxes", tmp_path, (4000, 3000)), on_gpu=on_gpu)
    assert sizes == {"detection.short_sides": (short,), "detection.long_side": long}


def test_segmentation_crops_what_it_resizes_to(tmp_path: Path) -> None:
    sizes = fitting_sizes(recipe_io.load("own-maps", [f"data.dir={tmp_path}"]), on_gpu=False)
    assert sizes == {"data.image_size": 192, "segmentation.max_size": (768, 192)}


def test_heads_are_narrower_on_a_cpu_and_those_of_the_weights_where_these_have_them(tmp_path: Path) -> None:
    settings = recipe("own-boxes", tmp_path)
    assert fitting_heads(settings, None, on_gpu=True) == {}
    assert fitting_heads(settings, None, on_gpu=False)["detection.channels"] == 64
    weights = WeightsInfo("stvit-s", task="detection", settings=json.dumps({"channels": 128, "head": "faster-rcnn"}))
    assert fitting_heads(settings, weights, on_gpu=False) == {"detection.channels": 128}
    backbone = WeightsInfo("stvit-s")
    assert fitting_heads(settings, backbone, on_gpu=False)["detection.channels"] == 64
