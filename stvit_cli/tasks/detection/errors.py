"""Types of a detector's errors, and what each costs: TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115).

A detection that is not right has one type, the first that holds of these, where its IoU with an object is

- localization: 0.1 to 0.5 with one of its class;
- class: at least 0.5 with one of another class;
- duplicate: at least 0.5 with one of its class, which a detection with a higher score has found;
- background: at most 0.1 with any;
- both: what is left, wrong in class and position.

An object is missed where it was found neither by a right detection nor by one with an error of class or localization. The cost
of a type, dAP, is what AP50 would gain were its errors corrected. What a crowd makes COCO ignore is no error here.

M detections, G objects, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.detection.average_precision import AveragePrecision, mean
from stvit_cli.tasks.detection.matching import ImageOverlap, Matching, Overlaps

FOREGROUND, BACKGROUND = 0.5, 0.1
"""TIDE's IoU thresholds."""


@dataclass(frozen=True)
class ErrorType:
    """A type of errors: its name, and what it says of a detection or an object."""

    name: str
    meaning: str

    @property
    def label(self) -> str:
        """The name where it stands beside names of classes."""
        return "wrong class" if self.name == "class" else self.name


ERROR_TYPES: Sequence[ErrorType] = (
    ErrorType("class", "on an object (IoU at least 0.5), with the wrong class"),
    ErrorType("localization", "the right class, but a box that fits badly (IoU 0.1 to 0.5)"),
    ErrorType("both", "near an object, with the wrong class and a box that fits badly"),
    ErrorType("duplicate", "on an object that a detection with a higher score has found"),
    ErrorType("background", "where no object is (IoU at most 0.1)"),
    ErrorType("missed", "an object that no detection found, not even with the wrong class or a bad box"),
)
"""In TIDE's order."""

CLASS, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND_ERROR, MISSED = range(6)
NO_ERROR = -1


@dataclass(frozen=True)
class Errors:
    """The errors of detections.

    Attributes:
        kind: of each detection of the predictions the position of its type in `ERROR_TYPES`; `NO_ERROR`, (M,).
        target: the object that it would have found but for the error; -1: none, (M,).
        missed: of each object of the predictions, (G,).
        right: the detections that are right, (M,).
        found: the objects that they found, (G,).
    """

    kind: NDArray[np.int8]
    target: NDArray[np.int64]
    missed: NDArray[np.bool_]
    right: NDArray[np.bool_]
    found: NDArray[np.bool_]

    def counts(self) -> list[int]:
        """Return the number of errors of each of `ERROR_TYPES`."""
        return [int((self.kind == kind).sum()) for kind in range(MISSED)] + [int(self.missed.sum())]

    def texts(self, objects: NDArray[np.intp], detections: NDArray[np.intp]) -> list[str]:
        """Return the number of errors of each type that some objects and detections have, such as ``2 missed``.

        Args:
            objects: their positions in the predictions.
            detections: theirs.
        """
        kinds = Counter(self.kind[detections].tolist())
        kinds[MISSED] = int(self.missed[objects].sum())
        return [f"{count} {ERROR_TYPES[kind].label}" for kind, count in sorted(kinds.items()) if kind != NO_ERROR and count]


def find_errors(overlaps: Overlaps, matching: Matching, score_threshold: float = 0.0) -> Errors:
    """Find the type of each error at an IoU of 0.5.

    Args:
        overlaps: the IoU of detections and objects.
        matching: what they found, of objects of any size.
        score_threshold: detections with a lower score do not count, as if they were not there.
    """
    num_detections, num_objects = len(overlaps.detection_area), len(overlaps.object_area)
    kept = matching.score >= score_threshold
    match = np.full(num_detections, -1, dtype=np.int64)
    match[matching.detection] = matching.match[0]
    is_open = np.zeros(num_detections, dtype=np.bool_)  # neither right nor ignored
    is_open[matching.detection] = kept & ~matching.is_right[0] & ~matching.ignored[0]
    right = np.zeros(num_detections, dtype=np.bool_)
    right[matching.detection] = kept & matching.is_right[0]
    found = np.zeros(num_objects, dtype=np.bool_)
    found[match[right]] = True
    kind = np.full(num_detections, NO_ERROR, dtype=np.int8)
    target = np.full(num_detections, -1, dtype=np.int64)
    for image in overlaps.images:
        rows = np.flatnonzero(is_open[image.detections])
        if rows.size:
            _classify(overlaps, image, rows, found, kind, target)
    is_near = np.zeros(num_objects, dtype=np.bool_)
    is_near[target[(kind == CLASS) | (kind == LOCALIZATION)]] = True
    return Errors(kind, target, ~overlaps.is_crowd & ~found & ~is_near, right, found)


def _classify(
    overlaps: Overlaps,
    image: ImageOverlap,
    rows: NDArray[np.int64],
    found: NDArray[np.bool_],
    kind: NDArray[np.int8],
    target: NDArray[np.int64],
) -> None:
    """Write type and target of the given detections of an image."""
    chosen, columns = image.detections[rows], np.flatnonzero(~overlaps.is_crowd[image.objects])
    if not columns.size:
        kind[chosen] = BACKGROUND_ERROR
        return
    predictions, objects = overlaps.predictions, image.objects[columns]
    iou = image.iou[np.ix_(rows, columns)]
    same = predictions.detections.label[chosen][:, None] == predictions.objects.label[objects][None]
    of_class, of_others = iou * same, iou * ~same
    of_found = of_class * found[objects]
    best = [np.take_along_axis(part, part.argmax(1)[:, None], 1)[:, 0] for part in (of_class, of_others, of_found, iou)]
    tests = [  # in this order, the first that holds
        (LOCALIZATION, (best[0] >= BACKGROUND) & (best[0] <= FOREGROUND), of_class),
        (CLASS, best[1] >= FOREGROUND, of_others),
        (DUPLICATE, best[2] >= FOREGROUND, of_found),
        (BACKGROUND_ERROR, best[3] <= BACKGROUND, None),
        (BOTH, np.ones(len(rows), dtype=np.bool_), None),
    ]
    left = np.ones(len(rows), dtype=np.bool_)
    for number, holds, part in tests:
        holds = holds & left
        left &= ~holds
        kind[chosen[holds]] = number
        if part is not None:
            target[chosen[holds]] = objects[part.argmax(1)[holds]]


def ap_gains(matching: Matching, errors: Errors) -> list[float]:
    """Return dAP of each of `ERROR_TYPES`: what AP50 gains where these errors alone are corrected, in points of percent.

    An error of class or localization is corrected to a right detection where it has the highest score of those with the same
    object and no other found it; otherwise, as a duplicate and a background error, it is taken away. An object that is missed is
    taken away.

    Args:
        matching: of objects of any size.
        errors: of all detections, whatever their score.
    """
    kind, target, right = errors.kind[matching.detection], errors.target[matching.detection], matching.is_right[0]
    counted = ~matching.ignored[0]
    base = _ap50(matching, matching.label[counted], matching.score[counted], right[counted], matching.counts)
    corrects = _corrects(matching, errors)
    gains = []
    for number in range(MISSED):
        is_kind = kind == number
        corrected = is_kind & corrects if number in (CLASS, LOCALIZATION) else np.zeros_like(is_kind)
        kept = counted & (~is_kind | corrected)
        label = np.where(corrected, matching.object_label[target], matching.label) if corrected.any() else matching.label
        fixed = _ap50(matching, label[kept], matching.score[kept], (right | corrected)[kept], matching.counts)
        gains.append(max(fixed - base, 0.0))
    without = _ap50(matching, matching.label[counted], matching.score[counted], right[counted], matching.counts & ~errors.missed)
    gains.append(100 - base if np.isnan(without) else max(without - base, 0.0))
    return gains


def _corrects(matching: Matching, errors: Errors) -> NDArray[np.bool_]:
    """Return the detections whose correction finds an object: the highest score among its errors of class and localization."""
    kind, target = errors.kind[matching.detection], errors.target[matching.detection]
    candidates = np.flatnonzero(((kind == CLASS) | (kind == LOCALIZATION)) & ~errors.found[target])
    candidates = candidates[np.argsort(-matching.score[candidates], kind="stable")]
    _, first = np.unique(target[candidates], return_index=True)
    corrects = np.zeros(len(kind), dtype=np.bool_)
    corrects[candidates[first]] = True
    return corrects


def _ap50(
    matching: Matching,
    label: NDArray[np.int64],
    score: NDArray[np.float64],
    right: NDArray[np.bool_],
    counts: NDArray[np.bool_],
) -> float:
    """Return AP50 of detections that are known to be right or wrong, in percent; NaN without objects."""
    order = np.lexsort((-score, label))
    zeros = np.zeros(len(order), dtype=np.int64)
    corrected = replace(
        matching,
        detection=order,
        label=label[order],
        image=zeros,
        score=score[order],
        match=np.where(right[order], 0, -1).astype(np.int32)[None],
        ignored=zeros.astype(np.bool_)[None],
        object_image=np.zeros_like(matching.object_image),
        counts=counts,
    )
    return mean(AveragePrecision(corrected).precision(np.ones(1, dtype=np.int64)))
