"""Objects drawn on images: a colour for each class, names that do not cover each other, any size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stvit_cli.data.coco import encode_mask
from stvit_cli.data.palette import class_colour, text_colour
from stvit_cli.tasks.detection import annotated as module
from stvit_cli.tasks.detection.annotated import Annotation, annotated, object_text

GREY = (100, 100, 100)


def drawn(size: tuple[int, int], *objects: Annotation, background: tuple[int, int, int] = GREY) -> Image.Image:
    return annotated(Image.new("RGB", size, background), objects)


def colours_of(image: Image.Image) -> set[tuple[int, int, int]]:
    return {tuple(colour) for colour in np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()}


def test_objects_of_a_class_have_one_colour_and_those_of_others_another() -> None:
    image = drawn((400, 400), *(Annotation(label, (20, top, 200, top + 60), "x") for label, top in ((0, 50), (0, 150), (3, 250))))
    assert image.getpixel((20, 80)) == image.getpixel((20, 180)) == class_colour(0)
    assert image.getpixel((20, 280)) == class_colour(3)
    assert class_colour(1) not in colours_of(image)


@pytest.mark.parametrize("label", range(8))
def test_a_box_is_seen_on_a_background_of_its_own_colour(label: int) -> None:
    image = drawn((400, 400), Annotation(label, (50, 50, 300, 300), "cat 93 %"), background=class_colour(label))
    contrast = {"white": (255, 255, 255), "black": (0, 0, 0)}[text_colour(class_colour(label))]
    assert image.getpixel((49, 200)) == contrast  # a line around the box
    assert contrast in colours_of(image.crop((50, 30, 120, 49)))  # the name


def test_names_of_many_boxes_do_not_cover_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    bands = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda *args: bands.append(args[3]) or write(*args))
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (60, 2))
    drawn((480, 360), *(Annotation(i % 9, (x, y, x + 150, y + 100), f"class {i} 50 %") for i, (x, y) in enumerate(corners)))
    assert 20 < len(bands) <= 60
    for i, (left, top, right, bottom) in enumerate(bands):
        assert 0 <= left < right <= 480
        assert 0 <= top < bottom <= 360
        assert all(left >= x1 or right <= x0 or top >= y1 or bottom <= y0 for x0, y0, x1, y1 in bands[:i])


def test_the_name_of_the_surest_object_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    monkeypatch.setattr(module, "_write", lambda pen, text, *args: texts.append(text))
    drawn((330, 330), *(Annotation(0, (100, 100, 130, 130), f"cat {score} %") for score in range(99, 0, -1)))
    assert texts[0] == "cat 99 %"
    assert 5 < len(texts) < 99


@pytest.mark.parametrize(
    ("size", "shown"), [((1, 1), (320, 320)), ((32, 20), (320, 200)), ((319, 10), (319, 10)), ((900, 20), (900, 20))]
)
def test_a_tiny_image_is_enlarged_and_any_is_drawn(size: tuple[int, int], shown: tuple[int, int]) -> None:
    mask = encode_mask(np.ones(size[::-1], dtype=bool))
    image = drawn(
        size, Annotation(1, (-5.0, -5.0, size[0] + 5.0, size[1] + 5.0), "cat 93 %", mask), Annotation(2, (9, 9, 9, 9), "x")
    )
    assert image.size == shown
    assert class_colour(1) in colours_of(image)


def test_a_mask_is_blended_and_outlined() -> None:
    mask = np.zeros((400, 400), dtype=bool)
    mask[100:200, 100:200] = True
    image = drawn((400, 400), Annotation(0, (100, 100, 200, 200), "x", encode_mask(mask)))
    inside = tuple(int(0.55 * grey + 0.45 * channel) for grey, channel in zip(GREY, class_colour(0), strict=True))
    assert image.getpixel((170, 170)) == inside
    assert image.getpixel((250, 250)) == GREY


def test_a_long_name_keeps_its_score_and_control_characters_are_shown() -> None:
    assert object_text("n" * 300, 0.934).endswith("... 93 %")
    assert object_text("a\x1b[2J\nb") == "a\\x1b[2J\\nb"
    drawn((330, 50), Annotation(0, (0, 0, 5, 5), object_text("n" * 300, 0.5)))
