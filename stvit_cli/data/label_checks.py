"""Checks of the numbers in label maps against the classes, before training or evaluation.

Label maps that are off by one, or whose foreground is ignored, train and evaluate without an error, often with high metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stvit_cli.data.image_pairs import LabelledImages
from stvit_cli.data.inspection import NUM_INSPECTED, evenly_spaced, refuse_unusable
from stvit_cli.errors import UserError
from stvit_cli.utils.text import first_few, printable

TOO_MUCH_IGNORED = 0.5
"""Fraction of ignored pixels above which a warning is given."""


@dataclass
class NumberCount:
    """Counts over some label maps of a set."""

    pixels: Counter[int] = field(default_factory=Counter)
    """Number of pixels by the number in the map."""
    num_maps: int = 0
    problems: list[str] = field(default_factory=list)
    """A message for each unusable image or map."""


def check_labels(name: str, images: LabelledImages, *, to_train: bool, open_images: bool) -> list[str]:
    """Check some label maps of a set, evenly spaced, or all of a small set; return a warning line for each suspicion.

    Args:
        name: of the set: training or validation.
        images: the set.
        to_train: refuse a set with fewer than two classes.
        open_images: open the images too.

    Raises:
        UserError: maps or images cannot be used, or (``to_train``) hold fewer than two classes.
    """
    positions = evenly_spaced(len(images))
    count = count_numbers(images, positions, open_images=open_images)
    refuse_unusable(name, count.problems, len(positions))
    if len(_classes_met(images, count)) < 2 and to_train:
        _refuse_one_class(images, count)
    return [f"Warning: {name}: {line}" for line in suspicions(images, count)]


def count_numbers(images: LabelledImages, positions: Sequence[int], *, open_images: bool) -> NumberCount:
    """Count the pixels of some label maps by the number in the map."""
    count = NumberCount()
    for position in positions:
        try:
            numbers = images.numbers(position, images.open(position).size if open_images else None)
        except UserError as error:
            count.problems.append(str(error))
            continue
        values, pixels = np.unique(numbers, return_counts=True)
        count.pixels.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
        count.num_maps += 1
    return count


def suspicions(images: LabelledImages, count: NumberCount) -> list[str]:
    """Return what is valid but looks wrong about the counts, with the recipe keys that fix it."""
    if not count.num_maps:
        return []
    maps = f"{count.num_maps} label maps" if count.num_maps == len(images) else f"{count.num_maps} inspected label maps"
    lines = []
    met = _classes_met(images, count)
    absent = [label for index, label in enumerate(images.class_names) if index not in met]
    if absent:
        some = f"{len(absent)} of {len(images.class_names)} classes ({first_few(absent, 3)}) are"
        classes = f"the class {printable(absent[0])} is" if len(absent) == 1 else some
        lines.append(f"{classes} in none of the {maps}.{_shift_remedy(images, count) or _unused_remedy(images, count)}")
    ignored = {number: count.pixels[number] for number in images.ignored_numbers if count.pixels[number]}
    share = sum(ignored.values()) / max(sum(count.pixels.values()), 1)
    if share > TOO_MUCH_IGNORED:
        largest = max(ignored, key=lambda number: ignored[number])
        lines.append(f"{share:.0%} of the pixels of the {maps} are ignored. {_ignored_remedy(images, largest)}")
    return lines


def _classes_met(images: LabelledImages, count: NumberCount) -> set[int]:
    """Return the classes that occur; numbers that are no class were refused before."""
    classes = {number: label for label, number in enumerate(images.class_numbers)}
    return {classes[number] for number in count.pixels if number not in images.ignored_numbers}


def _refuse_one_class(images: LabelledImages, count: NumberCount) -> None:
    """Raise where all maps together hold fewer than two classes; a rare class may be in any of them."""
    inspected = set(evenly_spaced(len(images), NUM_INSPECTED))
    for position in range(len(images)):
        if position not in inspected:
            more = count_numbers(images, [position], open_images=False)
            count.pixels.update(more.pixels)
            count.num_maps += more.num_maps
            if len(_classes_met(images, count)) > 1:
                return
    met = _classes_met(images, count)
    only = (
        f"only the class {printable(images.class_names[min(met)])} ({images.class_numbers[min(met)]})"
        if met
        else "no class at all"
    )
    ignored = sorted(number for number in images.ignored_numbers if count.pixels[number])
    also = f", and {' and '.join(map(str, ignored))}, which is ignored" if ignored else ""
    remedy = _ignored_remedy(images, max(ignored, key=lambda number: count.pixels[number])) if ignored else ""
    raise UserError(
        f"{images.map_dir}: the label maps hold {only}{also}: at least two classes are expected.\n"
        f"{remedy or 'Maps hold a number for each pixel: that of its class in segmentation.class_names, from 0.'}"
    )


def _shift_remedy(images: LabelledImages, count: NumberCount) -> str:
    """Return the recipe key to change where the numbers are probably off by one."""
    if images.label_values is not None:
        return ""
    if images.reduce_zero_label and count.pixels[0] and not count.pixels[images.class_numbers[-1]]:
        return " 0 is ignored; if it is a class: segmentation.reduce_zero_label=false"
    if not images.reduce_zero_label and not count.pixels[0]:
        return " No pixel is 0; if the classes count from 1: segmentation.reduce_zero_label=true"
    return ""


def _unused_remedy(images: LabelledImages, count: NumberCount) -> str:
    """Return the key to change where pixels that are ignored may be those of the missing one of two classes."""
    ignored = [number for number in images.ignored_numbers if count.pixels[number]]
    is_likely = len(images.class_names) == 2 and len(ignored) == 1
    return f" {_ignored_remedy(images, ignored[0])}" if is_likely else ""


def _ignored_remedy(images: LabelledImages, number: int) -> str:
    """Return how a number that is ignored becomes a class."""
    if number == 0 and images.reduce_zero_label:
        return "If 0 is a class: segmentation.reduce_zero_label=false"
    if number in images.class_numbers:
        return f"If {number} is a class, ignore another number: segmentation.ignore_index=65535"
    values = [*images.class_numbers[:-1], number]
    example = f"=[{', '.join(map(str, values))}]" if len(values) == 2 else ""
    return f"If {number} is a class, set the number of each class: segmentation.label_values{example}"
