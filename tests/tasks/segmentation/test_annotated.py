"""Label maps drawn on images: a colour for each class, and a legend that names them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from stvit_cli.data.palette import class_colour
from stvit_cli.tasks.segmentation.annotated import NUM_IN_LEGEND, legend, overlay, palette, with_legend


def test_pixels_have_the_colour_of_their_class_and_those_without_are_grey() -> None:
    image = overlay(Image.new("RGB", (3, 1), "white"), np.array([[0, 5, -1]]))
    expected = [
        tuple((255 + channel) // 2 for channel in colour) for colour in (class_colour(0), class_colour(5), (128, 128, 128))
    ]
    assert [image.getpixel((x, 0)) for x in range(3)] == expected


def test_the_legend_names_the_classes_by_area() -> None:
    classes = np.array([[2, 2, 2], [0, 0, -1]])
    entries = legend(classes, ["sky", "sea", "a very long name of a class, which nobody would read to its end"])
    assert entries[0] == (2, "a very long name of a class, which no...  50.0%")
    assert entries[1:] == [(0, "sky  33.3%"), (-1, "ignored  16.7%")]
    image = with_legend(Image.new("RGB", (400, 300)), entries)
    assert image.height == 300
    assert image.getpixel((400 + 15, 12)) == class_colour(2)


def test_a_legend_of_many_classes_ends() -> None:
    entries = [(label, f"class {label}") for label in range(150)]
    image = with_legend(Image.new("RGB", (640, 480)), entries)
    assert image.height < 40 * NUM_IN_LEGEND
    assert with_legend(Image.new("RGB", (1, 1)), []).size > (320, 319)


def test_a_palette_has_the_colours_of_the_overlay() -> None:
    colours = np.array(palette([(0, 0), (255, 1), (300, 2)])).reshape(256, 3).tolist()
    assert tuple(colours[0]) == class_colour(0)
    assert tuple(colours[255]) == class_colour(1)
    assert colours[7] == [7, 7, 7]
