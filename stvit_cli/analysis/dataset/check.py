"""A check of every image of a data set with its annotations, by several processes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset

from stvit_cli.data.loader import build_eval_loader
from stvit_cli.tasks.data_view import DataView, Finding, ImageReport, SetView

AT_ONCE = 4
"""Images that a process opens before it hands over what it found."""

Place = tuple[int, int]
"""Position of a set, and of an image in it."""


def check(
    view: DataView, *, num_workers: int, advance: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[Finding], int]:
    """Open every image of a data set and check it.

    Args:
        view: the data set.
        num_workers: number of processes, limited to the number of cores; 0: this one.
        advance: called with the number of images done and their total.

    Returns:
        What was found, errors first, and the number of images that were turned upright by their EXIF orientation.
    """
    findings, num_turned = list(view.findings), 0
    by_digest: dict[bytes, list[Place]] = defaultdict(list)
    pixels: list[Counter[int]] = [Counter() for _ in view.sets]
    num_maps = [0] * len(view.sets)
    for done, (position, report) in enumerate(_reports(view.sets, num_workers), start=1):
        findings += [replace(finding, split=view.sets[position].name) for finding in report.findings]
        num_turned += report.is_turned
        if report.digest:
            by_digest[report.digest].append((position, report.index))
        pixels[position].update(report.pixels)
        num_maps[position] += bool(report.pixels)
        advance(done, sum(map(len, view.sets)))
    for split, counted, count in zip(view.sets, pixels, num_maps, strict=True):
        lines = split.suspicions(counted, count)
        findings += [Finding("warning", "label maps that do not fit the classes", split.name, "", line) for line in lines]
    findings += _duplicates(view, by_digest)
    return sorted(findings, key=lambda finding: finding.level), num_turned


class _Reports(Dataset[tuple[int, ImageReport]]):
    """The images of all sets, one after the other."""

    def __init__(self, sets: Sequence[SetView]) -> None:
        self.sets = sets
        self.places = [(position, index) for position, split in enumerate(sets) for index in range(len(split))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> tuple[int, ImageReport]:
        position, index = self.places[item]
        return position, self.sets[position].inspect(index)


def _as_list(reports: list[Any]) -> list[Any]:
    return reports


def _reports(sets: Sequence[SetView], num_workers: int) -> Iterator[tuple[int, ImageReport]]:
    loader = build_eval_loader(_Reports(sets), _as_list, AT_ONCE, num_workers)
    with closing(iter(loader)) as batches:
        for batch in batches:
            yield from batch


def _duplicates(view: DataView, by_digest: Mapping[bytes, Sequence[Place]]) -> Iterator[Finding]:
    """Yield a finding for each image whose pixels are those of an earlier one."""
    for places in by_digest.values():
        first = places[0]
        for place in places[1:]:
            yield _duplicate(view, first, place)


def _duplicate(view: DataView, first: Place, place: Place) -> Finding:
    one, other = (view.sets[position] for position, _ in (first, place))
    path, same = other.path(place[1]), one.path(first[1])
    labels = [split.labels(index) for split, (_, index) in ((one, first), (other, place))]
    names = [", ".join(sorted(view.class_names[label] for label in found)) for found in labels]
    as_what = f" (there {names[0]}, here {names[1]})" if view.unit == "images" and labels[0] != labels[1] else ""
    if one is not other:
        kind = f"image of {one.name} in {other.name} too"
        return Finding("warning", kind, other.name, path, f"the same pixels as {same} of {one.name}{as_what}")
    kind = "duplicated image with another class" if as_what else "duplicated image"
    return Finding("warning", kind, other.name, path, f"the same pixels as {same}{as_what}")
