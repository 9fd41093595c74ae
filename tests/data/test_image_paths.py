"""Image files named on a command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from stvit_cli.data.image_paths import list_images


def test_label_maps_beside_their_images_are_no_images(tmp_path: Path) -> None:
    photograph, label_map = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    for name, pixels in (
        ("a.jpg", photograph),
        ("a.png", label_map),
        ("b.JPEG", photograph),
        ("b.png", photograph),  # the same photograph in another format
        ("c.png", label_map),  # a gray photograph of its own
    ):
        Image.fromarray(pixels).save(tmp_path / name)
    said: list[str] = []
    assert [path.name for path in list_images([tmp_path], said.append)] == ["a.jpg", "b.JPEG", "b.png", "c.png"]
    assert said == [f"{tmp_path}: 1 label maps beside their images are skipped, such as a.png."]
    assert list_images([tmp_path / "a.png"]) == [tmp_path / "a.png"]
