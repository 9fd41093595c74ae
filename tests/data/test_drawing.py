"""Drawn predictions: of any shape of image, with any text, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stvit_cli.data.coco import encode_mask
from stvit_cli.data.drawing import drawn_name, font_for, save_png, write_text
from stvit_cli.errors import UserError
from stvit_cli.tasks.classification.predict import ClassificationPrediction, ClassScore
from stvit_cli.tasks.detection.predict import Detection, DetectionPrediction


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (300, 3)])
def test_a_thin_image_is_drawn_with_letters_of_a_bounded_size(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "thin.png")
    ClassificationPrediction(tmp_path / "thin.png", (ClassScore("cat", 0, 0.5),)).draw(tmp_path / "class.png")
    mask = encode_mask(np.ones(size[::-1], dtype=bool))
    found = Detection("cat", 0, 0.9, (0.0, 0.0, float(size[0]), float(size[1])), mask)
    DetectionPrediction(tmp_path / "thin.png", *size, (found,)).draw(tmp_path / "objects.png")
    with Image.open(tmp_path / "class.png") as drawn:
        assert drawn.width * drawn.height < 5_000_000
    with Image.open(tmp_path / "objects.png") as drawn:
        assert drawn.size == size


def test_control_characters_of_a_class_name_are_drawn_and_not_obeyed() -> None:
    def drawn(text: str) -> bytes:
        image = Image.new("L", (200, 60))
        font, _ = font_for(image, 10, smallest=10)
        write_text(ImageDraw.Draw(image), (0, 0), text, "white", font)
        return image.tobytes()

    assert drawn("a\nb") == drawn("a\\nb")
    assert drawn("a\x1b[2J\0") == drawn("a\\x1b[2J\\x00")


def test_a_file_that_cannot_be_written_is_named_and_not_left_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, *_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=r"x\.png cannot be written: No space left on device"):
        save_png(Image.new("RGB", (1, 1)), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("letter", ["x", "ü", "語", "\udcff"])
def test_the_name_of_a_drawn_file_fits_where_that_of_the_image_did(tmp_path: Path, letter: str) -> None:
    stem = letter * (251 // len(os.fsencode(letter)))
    (tmp_path / f"{stem}.png").write_bytes(b"")
    name = drawn_name(7, tmp_path / f"{stem}.png")
    assert name.startswith(f"00007-{letter}")
    assert name.endswith(".png")
    (tmp_path / f"{name.removesuffix('.png')}-labels.png").write_bytes(b"")


def test_letters_beyond_ascii_are_drawn_as_such() -> None:
    """Pillow's own font has one sign for all that it lacks."""
    drawn = []
    for text in ("ü", "ж"):
        image = Image.new("RGB", (40, 30))
        font, _ = font_for(image, 2, 20, text)
        write_text(ImageDraw.Draw(image), (0, 0), text, "white", font)
        drawn.append(image.tobytes())
    assert drawn[0] != drawn[1]
