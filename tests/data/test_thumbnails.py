"""Thumbnails are small files that a browser shows."""

import io

import numpy as np
import pytest
from PIL import Image

from stvit_cli.data.thumbnails import image_kind, thumbnail


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (300, 200), (5, 3), (1, 900)])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_longer_side_is_limited_and_none_is_lost(size: tuple[int, int], lossless: bool) -> None:
    small = opened(thumbnail(Image.new("RGB", size, "teal"), side=100, lossless=lossless))
    assert max(small.size) == min(100, max(size))
    assert min(small.size) >= 1


def test_lossless_keeps_the_colours_and_every_mode_is_taken() -> None:
    map_ = Image.fromarray(np.random.default_rng(0).integers(0, 2, (300, 200), dtype=np.uint8) * 255)
    colours = opened(thumbnail(map_, lossless=True)).convert("RGB").getcolors()
    assert {colour for _, colour in colours} == {(0, 0, 0), (255, 255, 255)}
    assert thumbnail(Image.new("RGBA", (20, 20)))
    assert thumbnail(Image.new("P", (20, 20)))


def test_the_kind_is_that_of_the_file() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    for data in (thumbnail(photo), thumbnail(photo, lossless=True), thumbnail(Image.new("RGB", (8, 8)))):
        assert image_kind(data) == Image.MIME[opened(data).format]
