"""What is held out for validation of a data set without a split: stratified by class, with the images of a group together.

The choice is a function of the names alone: every run and every seed holds out the same images, in whatever order they come.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from stvit_cli.data.sampling import derive_seed
from stvit_cli.errors import UserError
from stvit_cli.utils.text import printable

Group = tuple[str, ...]
"""The key of images that are not to be divided: one text for a single image, two for a group."""


def group_images(names: Sequence[str], group_by: str | None) -> list[Group]:
    r"""Return the group of each image: the part of its name that a regular expression finds.

    Args:
        names: paths of the images, relative to their folder.
        group_by: ``data.group_by``, searched in each name. Its first group names the group of the image, or, without one, the
            whole match. An image in which it is not found is a group of its own, as all are where it is None.

    Raises:
        UserError: it is no regular expression, or found in no name.

    Example:
        >>> group_images(["a_1.jpg", "a_2.jpg", "x.jpg"], r"^(\w+)_")
        [('group', 'a'), ('group', 'a'), ('x.jpg',)]
    """
    if group_by is None:
        return [(name,) for name in names]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UserError(f"data.group_by: found {printable(group_by)}, expected a regular expression: {error}.") from None
    matches = [pattern.search(name) for name in names]
    if not any(matches):
        raise UserError(
            f"data.group_by: {printable(group_by)} is found in no path of an image, such as {printable(names[0])}.\n"
            "Expected a regular expression whose first group, or whole match, names the group of an image."
        )
    return [_group(name, match) for name, match in zip(names, matches, strict=True)]


def _group(name: str, match: re.Match[str] | None) -> Group:
    if match is None:
        return (name,)
    first = match.group(1) if match.re.groups else None
    return ("group", match.group(0) if first is None else first)


def hold_out_groups(groups: Sequence[Group], classes: Sequence[Collection[int]] | None, fraction: float) -> NDArray[np.bool_]:
    """Choose groups that together have about a fraction of the images, and of the images of each class.

    Rare classes come first, and each gets at least one image on both sides where the fraction has room for it. A class of
    several groups stays in training. A class of one group does too, unless the fraction cannot be reached otherwise. The number
    of held-out images differs from the fraction by less than a group, unless more would take the last group of a class.

    Args:
        groups: of each image, see `group_images`.
        classes: the classes in each image; None: not stratified.
        fraction: of the images, above 0 and below 1.

    Returns:
        A mask of shape (len(groups),); nothing is chosen where there is only one group.

    Example:
        >>> hold_out_groups([("a",), ("b",), ("c",), ("d",)], [{0}, {0}, {1}, {1}], 0.5).sum()
        np.int64(2)
    """
    chosen = _Choice(groups, classes, fraction).choose()
    return np.array([group in chosen for group in groups], dtype=np.bool_)


class _Choice:
    """The choice of `hold_out_groups` as it grows, group by group."""

    def __init__(self, groups: Sequence[Group], classes: Sequence[Collection[int]] | None, fraction: float) -> None:
        self.fraction = fraction
        self.sizes: dict[Group, int] = defaultdict(int)
        self.counts: dict[Group, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for group, found in zip(groups, classes if classes is not None else [()] * len(groups), strict=True):
            self.sizes[group] += 1
            for label in found:
                self.counts[group][label] += 1
        self.order = sorted(self.sizes, key=lambda group: (derive_seed("held out", *group), group))
        self.by_class: dict[int, list[Group]] = defaultdict(list)
        """The groups with a class, in the order in which they are tried."""
        for group in self.order:
            for label in self.counts[group]:
                self.by_class[label].append(group)
        self.target = max(round(fraction * len(groups)), 1)
        self.num_chosen = 0
        self.chosen: set[Group] = set()
        self.num_chosen_of: dict[int, int] = defaultdict(int)
        self.num_in_training = {label: len(found) for label, found in self.by_class.items()}
        """The number of groups with a class that are not chosen."""

    def choose(self) -> set[Group]:
        for label in sorted(self.by_class, key=lambda label: (len(self.by_class[label]), label)):
            total = sum(self.counts[group][label] for group in self.by_class[label])
            self._fill(self.by_class[label], max(round(self.fraction * total), 1), label)
        self._fill(self._without_class(), round(self.fraction * sum(self.sizes[group] for group in self._without_class())))
        self._fill(self.order)
        self._come_nearer(keep_all=True)
        self._fill(self.order, keep_all=False)
        self._come_nearer(keep_all=False)
        return self.chosen

    def _without_class(self) -> list[Group]:
        return [group for group in self.order if not self.counts[group]]

    def _fill(
        self, groups: Iterable[Group], wanted: int | None = None, label: int | None = None, *, keep_all: bool = True
    ) -> None:
        """Choose those groups for which there is room, until enough images are ``wanted`` (of a class)."""
        start = self.num_chosen
        for group in groups:
            done = self.num_chosen_of[label] if label is not None else self.num_chosen - start
            if wanted is not None and done >= wanted:
                return
            if group not in self.chosen and self.num_chosen + self.sizes[group] <= self.target and self._may_go(group, keep_all):
                self._take(group)

    def _come_nearer(self, *, keep_all: bool) -> None:
        """Choose one more group where the number is then nearer to the target, or none is chosen yet."""
        able = [group for group in self.order if group not in self.chosen and self._may_go(group, keep_all)]
        if not able:
            return
        best = min(able, key=lambda group: abs(self.num_chosen + self.sizes[group] - self.target))
        nearer = abs(self.num_chosen + self.sizes[best] - self.target) < self.target - self.num_chosen
        if nearer or not self.chosen:
            self._take(best)

    def _may_go(self, group: Group, keep_all: bool) -> bool:
        """Whether training keeps its classes without the group; those of one group alone count with ``keep_all``."""
        if len(self.chosen) + 1 >= len(self.sizes):
            return False
        return all(
            self.num_in_training[label] > 1 or (not keep_all and len(self.by_class[label]) == 1) for label in self.counts[group]
        )

    def _take(self, group: Group) -> None:
        self.chosen.add(group)
        self.num_chosen += self.sizes[group]
        for label, count in self.counts[group].items():
            self.num_chosen_of[label] += count
            self.num_in_training[label] -= 1


def held_out_note(name: str, held_out: NDArray[np.bool_], groups: Sequence[Hashable], group_by: str | None) -> str:
    """Return the line that says what is held out of a data set of a ``name``."""
    num, total = int(held_out.sum()), len(held_out)
    of_groups = ""
    if group_by is not None:
        chosen = {group for group, held in zip(groups, held_out.tolist(), strict=True) if held}
        of_groups = f", {len(chosen)} of {len(set(groups))} groups by data.group_by"
    return f"{name} has no split: {num} of {total} images are held out for validation ({num / total:.0%}{of_groups})."
