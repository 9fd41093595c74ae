"""The numbers in label maps, looked at before a training or an evaluation: do they fit the classes of the recipe?

Maps that are shifted by one, or whose foreground is ignored, train and evaluate without an error, and to the best of metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stvit_cli.data.image_pairs import LabelledPictures
from stvit_cli.data.looked_at import NUM_LOOKED_AT, refuse_unusable, spread
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few

TOO_MUCH_IGNORED = 0.5
"""Share of the pixels."""


@dataclass
class NumberCount:
    """What some label maps of a set hold."""

    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels by their number."""
    num_maps: int = 0
    problems: list[str] = field(default_factory=list)
    """Of pictures and maps that cannot be used, a message each."""


def check_labels(name: str, pictures: LabelledPictures, *, to_train: bool, open_pictures: bool) -> list[str]:
    """Look at some label maps of a set, evenly spread, or at all where they are few; return what looks wrong, a line each.

    Args:
        name: of the set: training or validation.
        to_train: refuse what nothing can be learned from.
        open_pictures: open the pictures too.

    Raises:
        UserError: maps or pictures cannot be used, or (``to_train``) hold fewer than two classes.
    """
    positions = spread(len(pictures))
    count = count_numbers(pictures, positions, open_pictures=open_pictures)
    refuse_unusable(name, count.problems, len(positions))
    if len(_classes_met(pictures, count)) < 2 and to_train:
        _refuse_one_class(pictures, count)
    return [f"Warning: {name}: {line}" for line in suspicions(pictures, count)]


def count_numbers(pictures: LabelledPictures, positions: Sequence[int], *, open_pictures: bool) -> NumberCount:
    """Count the pixels of the maps at some positions by their numbers."""
    count = NumberCount()
    for position in positions:
        try:
            numbers = pictures.numbers(position, pictures.open(position).size if open_pictures else None)
        except UserError as error:
            count.problems.append(str(error))
            continue
        values, pixels = np.unique(numbers, return_counts=True)
        count.pixels.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        count.num_maps += 1
    return count


def suspicions(pictures: LabelledPictures, count: NumberCount) -> list[str]:
    """Return what is possible but looks wrong about the numbers that were counted, with the keys that mend it."""
    if not count.num_maps:
        return []
    maps = f"{count.num_maps} label maps" if count.num_maps == len(pictures) else f"{count.num_maps} label maps looked at"
    lines = []
    met = _classes_met(pictures, count)
    absent = [label for index, label in enumerate(pictures.class_names) if index not in met]
    if absent:
        some = f"{len(absent)} of {len(pictures.class_names)} classes ({first_few(absent, 3)}) are"
        classes = f"the class {absent[0]} is" if len(absent) == 1 else some
        lines.append(f"{classes} in none of the {maps}.{_shift_remedy(pictures, count)}")
    ignored = {number: count.pixels[number] for number in pictures.ignored_numbers if count.pixels[number]}
    share = sum(ignored.values()) / max(sum(count.pixels.values()), 1)
    if share > TOO_MUCH_IGNORED:
        largest = max(ignored, key=lambda number: ignored[number])
        lines.append(f"{share:.0%} of the pixels of the {maps} are ignored. {_ignored_remedy(pictures, largest)}")
    return lines


def _classes_met(pictures: LabelledPictures, count: NumberCount) -> set[int]:
    """Return the classes that have a pixel; numbers that are no class were refused before."""
    classes = {number: label for label, number in enumerate(pictures.class_numbers)}
    return {classes[number] for number in count.pixels if number not in pictures.ignored_numbers}


def _refuse_one_class(pictures: LabelledPictures, count: NumberCount) -> None:
    """Raise where all maps together hold fewer than two classes. Where one class is rare all maps have to be looked at."""
    looked_at = set(spread(len(pictures), NUM_LOOKED_AT))
    for position in range(len(pictures)):
        if position not in looked_at:
            more = count_numbers(pictures, [position], open_pictures=False)
            count.pixels.update(more.pixels)
            count.num_maps += more.num_maps
            if len(_classes_met(pictures, count)) > 1:
                return
    met = _classes_met(pictures, count)
    only = f"only the class {pictures.class_names[min(met)]} ({pictures.class_numbers[min(met)]})" if met else "no class at all"
    ignored = sorted(number for number in pictures.ignored_numbers if count.pixels[number])
    also = f", and {' and '.join(map(str, ignored))}, which is ignored" if ignored else ""
    remedy = _ignored_remedy(pictures, max(ignored, key=lambda number: count.pixels[number])) if ignored else ""
    raise UserError(
        f"{pictures.map_dir}: the label maps hold {only}{also}: at least two classes are expected.\n"
        f"{remedy or 'Maps hold a number for each pixel: that of its class in segmentation.class_names, from 0.'}"
    )


def _shift_remedy(pictures: LabelledPictures, count: NumberCount) -> str:
    """Return the key to change where the numbers are likely shifted by one."""
    if pictures.label_values is not None:
        return ""
    if pictures.reduce_zero_label and count.pixels[0] and not count.pixels[pictures.class_numbers[-1]]:
        return " 0 is ignored; where it is a class: segmentation.reduce_zero_label=false"
    if not pictures.reduce_zero_label and not count.pixels[0]:
        return " No pixel is 0; where the classes count from 1: segmentation.reduce_zero_label=true"
    return ""


def _ignored_remedy(pictures: LabelledPictures, number: int) -> str:
    """Return how a number that is ignored becomes a class."""
    if number == 0 and pictures.reduce_zero_label:
        return "Where 0 is a class: segmentation.reduce_zero_label=false"
    if number in pictures.class_numbers:
        return f"Where {number} is a class, another number is to be ignored: segmentation.ignore_index=65535"
    values = [*pictures.class_numbers[:-1], number]
    example = f"=[{', '.join(map(str, values))}]" if len(values) == 2 else ""
    return f"Where {number} is a class, give each class its number: segmentation.label_values{example}"
