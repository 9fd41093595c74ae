"""What is held out of data without a split: a function of the names, stratified by class, groups kept together."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stvit_cli.data.held_out import group_images, held_out_note, hold_out_groups
from stvit_cli.data.sampling import hold_out
from stvit_cli.errors import UserError

Labels = list[set[int]]
FRACTIONS = st.floats(0.05, 0.6)
LABELLED = st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=2, max_size=40)


def _names(count: int) -> list[str]:
    return [f"{number:03d}.jpg" for number in range(count)]


@given(LABELLED, FRACTIONS)
def test_every_class_of_two_images_is_trained_on_and_the_fraction_holds(labels: Labels, fraction: float) -> None:
    held_out = hold_out_groups(group_images(_names(len(labels)), None), labels, fraction)
    assert 0 < held_out.sum() < len(labels)
    for label in range(5):
        of_class = np.array([label in found for found in labels])
        if of_class.sum() >= 2:
            assert (of_class & ~held_out).any(), "training lost a class"
    num_kept = sum(sum(label in found for found in labels) >= 2 for label in range(5))  # an image of each has to stay
    assert min(fraction * len(labels), len(labels) - num_kept) - 1 <= held_out.sum() <= fraction * len(labels) + 1


@given(st.lists(st.tuples(st.integers(0, 6), st.sets(st.integers(0, 3), max_size=2)), min_size=2, max_size=40), FRACTIONS)
def test_a_group_is_on_one_side_and_training_keeps_each_class_of_two_groups(
    images: list[tuple[int, set[int]]], fraction: float
) -> None:
    names = [f"p{group}_{number}.jpg" for number, (group, _) in enumerate(images)]
    groups = group_images(names, r"^(p\d+)_")
    held_out = hold_out_groups(groups, [labels for _, labels in images], fraction)
    sides: dict[int, set[bool]] = {}
    for (group, _), side in zip(images, held_out.tolist(), strict=True):
        sides.setdefault(group, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert held_out.any() == (len(sides) > 1)
    for label in range(4):
        of_class = {group for group, labels in images if label in labels}
        assert len(of_class) < 2 or any(sides[group] == {False} for group in of_class)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=12), FRACTIONS)
def test_the_fraction_is_met_within_one_group(sizes: list[int], fraction: float) -> None:
    names = [f"{group}-{number}" for group, size in enumerate(sizes) for number in range(size)]
    held_out = hold_out_groups(group_images(names, r"^\d+"), None, fraction)
    assert abs(held_out.sum() - fraction * len(names)) <= max(sizes)


@given(LABELLED, FRACTIONS, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(labels: Labels, fraction: float, random: np.random.RandomState) -> None:
    pairs = list(zip(_names(len(labels)), labels, strict=True))

    def chosen(pairs: list[tuple[str, set[int]]]) -> set[str]:
        held_out = hold_out_groups(group_images([name for name, _ in pairs], None), [found for _, found in pairs], fraction)
        return {name for (name, _), held in zip(pairs, held_out.tolist(), strict=True) if held}

    before = chosen(pairs)
    random.shuffle(pairs)
    assert chosen(pairs) == before


def test_without_classes_and_groups_the_choice_is_that_of_image_folders() -> None:
    names = _names(37)
    assert hold_out_groups(group_images(names, None), None, 0.3).tolist() == hold_out(names, 11).tolist()


def test_a_rare_class_is_on_both_sides() -> None:
    labels = [{0} for _ in range(18)] + [{0, 1}, {1}]
    held_out = hold_out_groups(group_images(_names(20), None), labels, 0.2)
    assert held_out.sum() == 4
    assert sorted(held_out[18:].tolist()) == [False, True]


def test_a_class_of_one_image_is_trained_on() -> None:
    labels = [{0} for _ in range(9)] + [{1}]
    for names in ([f"{run}-{number}" for number in range(10)] for run in range(20)):
        assert not hold_out_groups(group_images(names, None), labels, 0.3)[9]


def test_the_same_file_twice_is_on_one_side() -> None:
    names = [name for name in _names(10) for _ in range(2)]
    held_out = hold_out_groups(group_images(names, None), None, 0.3)
    assert (held_out[::2] == held_out[1::2]).all()
    assert held_out.sum() == 6


def test_a_group_is_the_first_group_or_the_whole_match_and_other_images_are_alone() -> None:
    names = ["a/1.jpg", "a/2.jpg", "b.jpg"]
    alone = ("b.jpg",)
    assert group_images(names, r"^(\w+)/") == group_images(names, r"^\w+(?=/)") == [("group", "a"), ("group", "a"), alone]
    assert group_images(names, r"^(x)?\w+/")[:2] == [("group", "a/")] * 2, "a group that takes no part names nothing"


@pytest.mark.parametrize(
    ("group_by", "said"),
    [
        ("(", r"data.group_by: found \(, expected a regular expression: missing \)"),
        ("^x", "data.group_by: .x is found in no path"),
    ],
)
def test_a_regular_expression_that_groups_nothing_is_refused(group_by: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        group_images(["a.jpg"], group_by)


def test_the_note_counts_images_and_groups() -> None:
    groups = group_images(["a1", "a2", "b1", "c1"], r"^\w")
    held_out = np.array([True, True, False, False])
    note = held_out_note("x.json", held_out, groups, r"^\w")
    assert re.fullmatch(r"x.json has no split: 2 of 4 images are held out .* \(50%, 1 of 3 groups by data.group_by\)\.", note)
