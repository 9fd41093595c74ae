"""Label maps that train without an error and mean something else: said or refused before the first step, with the key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stvit_cli.data import label_checks
from stvit_cli.data.image_pairs import LabelledImages
from stvit_cli.data.label_checks import check_labels
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.segmentation.data import build_segmentation


def maps(root: Path, *rows: list[int], names: str = "[background, object]", words: tuple[str, ...] = ()) -> LabelledImages:
    """Return a set of images whose maps hold the given numbers, an equal share of the pixels each."""
    for split in ("training", "validation"):
        for number, row in enumerate(rows):
            for kind in ("images", "annotations"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (len(row), 4)).save(root / "images" / split / f"{number}.jpg")
            Image.fromarray(np.tile(np.array(row, np.uint8), (4, 1))).save(root / "annotations" / split / f"{number}.png")
    text = f"{{task: segmentation, data: {{kind: ade20k, dir: '{root}'}}, segmentation: {{class_names: {names}}}}}"
    return build_segmentation(recipe_io.from_text(text, words)).train_set.images


def check(images: LabelledImages, *, to_train: bool = True) -> list[str]:
    return check_labels("training", images, to_train=to_train, open_images=True)


def refused(images: LabelledImages) -> str:
    with pytest.raises(UserError) as caught:
        check(images)
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


REDUCE = ("segmentation.reduce_zero_label=true",)


def test_maps_of_two_classes_from_0_are_fine_without_a_key(tmp_path: Path) -> None:
    images = maps(tmp_path, [0, 1], [0, 0], [1, 255])
    assert check(images) == []
    assert images.labels(0, (2, 4)).tolist() == [[0, 1]] * 4


def test_maps_from_0_that_are_read_from_1_are_refused(tmp_path: Path) -> None:
    message = refused(maps(tmp_path, [0, 1], [0, 0], words=REDUCE))
    assert "only the class background (1), and 0, which is ignored" in message
    assert message.endswith("If 0 is a class: segmentation.reduce_zero_label=false")


def test_maps_of_black_and_white_are_refused_and_the_key_mends_them(tmp_path: Path) -> None:
    message = refused(maps(tmp_path, [0, 255], [0, 0]))
    assert "only the class background (0), and 255, which is ignored" in message
    assert message.endswith("segmentation.label_values=[0, 255]")
    assert check(maps(tmp_path, [0, 255], [0, 0], words=("segmentation.label_values=[0, 255]",))) == []


def test_maps_from_1_that_are_read_from_0_are_refused(tmp_path: Path) -> None:
    message = refused(maps(tmp_path, [1, 2], [1, 1]))
    assert "1 of the 2 training images that were looked at before the first step cannot be used" in message
    assert "0.png: the label map has 2 in row 0, column 1; expected 0 to 1" in message
    assert message.endswith("0 is to be ignored: segmentation.reduce_zero_label=true")


@pytest.mark.parametrize(
    ("number", "key"), [(255, "segmentation.ignore_index=255"), (7, "segmentation.class_names needs a name")]
)
def test_a_number_that_is_no_class_says_the_key(tmp_path: Path, number: int, key: str) -> None:
    images = maps(tmp_path, [0, 1, number], words=("segmentation.ignore_index=9",))
    with pytest.raises(UserError, match=key):
        images.numbers(0)


def test_an_evaluation_on_maps_of_black_and_white_names_the_key(tmp_path: Path) -> None:
    (line,) = check(maps(tmp_path, [0, 0, 255]), to_train=False)
    assert "the class object is in none of the 1 label maps. If 255 is a class" in line
    assert line.endswith("segmentation.label_values=[0, 255]")


def test_a_class_that_is_in_no_map_is_said(tmp_path: Path) -> None:
    (line,) = check(maps(tmp_path, [0, 1], [0, 1], names="[a, b, c]"))
    assert line == "Warning: training: the class c is in none of the 2 label maps."
    (line,) = check(maps(tmp_path, [1, 2], [1, 2], names="[a, b, c]"))
    assert "the class a is in none" in line
    assert line.endswith("count from 1: segmentation.reduce_zero_label=true")
    (line,) = check(maps(tmp_path, [0, 1, 2], [1, 2, 2], names="[a, b, c]", words=REDUCE))
    assert "the class c is in none" in line
    assert line.endswith("if it is a class: segmentation.reduce_zero_label=false")


def test_more_than_half_of_the_pixels_ignored_is_said(tmp_path: Path) -> None:
    assert check(maps(tmp_path, [0, 1, 255, 255])) == []
    (line,) = check(maps(tmp_path, [0, 1, 255, 255, 255]))
    assert "60% of the pixels of the 1 label maps are ignored" in line
    assert "segmentation.label_values" in line
    lines = check(maps(tmp_path, [0, 0, 0, 1, 2], words=REDUCE))
    assert len(lines) == 1
    assert lines[0].endswith("are ignored. If 0 is a class: segmentation.reduce_zero_label=false")


def test_an_evaluation_says_what_a_training_refuses(tmp_path: Path) -> None:
    (line,) = check(maps(tmp_path, [0, 255], [0, 0]), to_train=False)
    assert "the class object is in none of the 2 label maps" in line


def test_of_many_maps_a_sample_is_looked_at_and_all_before_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_checks, "evenly_spaced", lambda count, limit=0: range(0, count, 4))
    images = maps(tmp_path, *[[0, 0]] * 7, [0, 1], *[[0, 0]] * 4)
    assert check(images) == []  # the rare class is in a map that is not in the sample
    images = maps(tmp_path / "none", *[[0, 0]] * 12)
    assert "only the class background (0): at least two classes" in refused(images)
    (line,) = check(images, to_train=False)
    assert "is in none of the 3 inspected label maps" in line


def test_damaged_images_and_maps_are_named_together(tmp_path: Path) -> None:
    images = maps(tmp_path, *[[0, 1]] * 8)
    for number in range(3):
        images.images[number].write_bytes(b"none")
        images.maps[number + 3].write_bytes(b"none")
    message = refused(images)
    assert message.startswith("6 of the 8 training images")
    assert message.splitlines()[4] == "and 3 more"
    assert "stvit data check" in message.splitlines()[5]
    assert all(f"{number}.jpg: not an image" in message for number in range(3))
