"""Colours of classes."""

from itertools import combinations

from stvit_cli.data.palette import class_colour


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    return max(abs(left - right) for left, right in zip(a, b, strict=True))


def test_colours_of_the_first_classes_are_far_apart_and_no_two_of_200_are_equal() -> None:
    colours = [class_colour(index) for index in range(200)]
    assert len(set(colours)) == 200
    assert min(_distance(a, b) for a, b in combinations(colours[:7], 2)) > 40
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
