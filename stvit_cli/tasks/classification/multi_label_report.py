"""The report of a classifier with several labels an image. N images, K classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.classification.calibration import DECISIONS, calibration, calibration_section
from stvit_cli.tasks.classification.multi_label import average_precision
from stvit_cli.tasks.classification.predictions import MultiLabelPredictions
from stvit_cli.tasks.classification.shown_images import ShownImages
from stvit_cli.tasks.classification.statistics import THRESHOLD
from stvit_cli.tasks.report_parts import ChartPart, Column, GalleryPart, ReportSection, Series, TablePart, TextPart
from stvit_cli.utils.text import first_few

MAX_CURVES = 8
MAX_POINTS = 120
"""Of a curve: enough for a line 600 pixels wide."""
MAX_LABELS = 5
"""Of a caption."""


def multi_label_sections(predictions: MultiLabelPredictions, shown: ShownImages, max_images: int) -> Iterator[ReportSection]:
    """Yield the sections after the metrics."""
    precisions = [
        average_precision(predictions.scores[:, label], predictions.target[:, label].astype(np.uint8))
        for label in range(len(predictions.class_names))
    ]
    yield ReportSection("classes", "Classes", [*_absent(predictions), _class_table(predictions, precisions)])
    yield ReportSection("curves-pr", "Precision and recall", [_curves(predictions, precisions)])
    decisions = calibration(predictions.scores.ravel(), predictions.target.ravel())
    yield calibration_section(decisions, DECISIONS)
    yield _mistakes(predictions, shown, max_images)


def _absent(predictions: MultiLabelPredictions) -> list[TextPart]:
    names = [
        name for name, has in zip(predictions.class_names, np.any(predictions.target, axis=0).tolist(), strict=True) if not has
    ]
    if not names:
        return []
    line = f"No image to evaluate on has {first_few(names)}: their average precision and F1 are 0, which lowers the means."
    return [TextPart([line], kind="warning")]


def _class_table(predictions: MultiLabelPredictions, precisions: list[float]) -> TablePart:
    """Return the table of the classes: those with the lowest average precision first, those without images last."""
    target, predicted = predictions.target, predictions.scores > THRESHOLD
    columns = [
        Column("class"),
        Column("images", "count"),
        *(Column(name, "percent") for name in ("AP", "precision", "recall", "F1")),
        *(Column(name, "count") for name in ("right (TP)", "wrong (FP)", "missed (FN)", "rightly absent (TN)")),
        Column("best threshold", "number"),
        Column("F1 there", "percent"),
    ]
    rows: list[list[str | float | int | None]] = []
    for label in sorted(range(len(precisions)), key=lambda label: (not target[:, label].any(), precisions[label], label)):
        true, said = target[:, label], predicted[:, label]
        hits, num_true, num_said = int((true & said).sum()), int(true.sum()), int(said.sum())
        best = best_threshold(predictions.scores[:, label], true)
        rows.append(
            [
                predictions.class_names[label],
                num_true,
                100 * precisions[label],
                100 * hits / num_said if num_said else None,
                100 * hits / num_true if num_true else None,
                200 * hits / max(num_true + num_said, 1),
                hits,
                num_said - hits,
                num_true - hits,
                len(true) - num_true - num_said + hits,
                best[0],
                best[1],
            ]
        )
    note = (
        "Precision, recall, F1 and counts at a probability of 0.5. The best threshold has the highest F1 on these very images: "
        "on others, its F1 is a little lower."
    )
    return TablePart(columns, rows, note=note)


def best_threshold(scores: NDArray[np.float32], target: NDArray[np.bool_]) -> tuple[float | None, float | None]:
    """Return the score from which on a class is best predicted, and its F1 in percent; None for a class without images.

    >>> best_threshold(np.array([0.75, 0.5, 0.25], np.float32), np.array([True, True, False]))
    (0.5, 100.0)
    """
    if not target.any():
        return None, None
    curve = _curve(scores, target)
    f1 = 2 * curve.hits / (curve.seen + int(target.sum()))
    best = int(f1.argmax())
    return float(curve.scores[best]), 100 * float(f1[best])


@dataclass(frozen=True)
class _Curve:
    """Predictions at each threshold, from the highest: those made and those that are right. All (thresholds,)."""

    scores: NDArray[np.float32]
    seen: NDArray[np.int64]
    hits: NDArray[np.int64]


def _curve(scores: NDArray[np.float32], target: NDArray[np.bool_]) -> _Curve:
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    return _Curve(scores[order][last], last + 1, np.cumsum(target[order], dtype=np.int64)[last])


def _curves(predictions: MultiLabelPredictions, precisions: list[float]) -> ChartPart:
    """Return precision over recall: of all decisions, and of the classes with the lowest average precision."""
    present = [label for label in range(len(precisions)) if predictions.target[:, label].any()]
    chosen = sorted(present, key=lambda label: (precisions[label], label))[: MAX_CURVES - 1]
    series = [_series("all classes", predictions.scores.ravel(), predictions.target.ravel())]
    series += [
        _series(
            f"{predictions.class_names[label]} (AP {100 * precisions[label]:.1f})",
            predictions.scores[:, label],
            predictions.target[:, label],
        )
        for label in chosen
    ]
    return ChartPart(
        "Precision over recall",
        "recall (%)",
        "precision (%)",
        [one for one in series if one is not None],
        note=f"All decisions, and {len(chosen)} of {len(precisions)} classes, those with the lowest average precision."
        if len(chosen) < len(precisions)
        else "",
        x_range=(0.0, 100.0),
        y_range=(0.0, 100.0),
    )


def _series(name: str, scores: NDArray[np.float32], target: NDArray[np.bool_]) -> Series | None:
    num_true = int(target.sum())
    if not num_true:
        return None
    curve = _curve(scores, target)
    recall, precision = 100 * curve.hits / num_true, 100 * curve.hits / curve.seen
    if len(recall) > MAX_POINTS:
        wanted = np.searchsorted(recall, np.linspace(recall[0], recall[-1], MAX_POINTS))
        kept = np.unique(np.concatenate([[0], wanted, [int(np.searchsorted(recall, recall[-1]))]]))
    else:
        kept = np.arange(int(np.searchsorted(recall, recall[-1])) + 1)
    return Series(name, recall[kept].round(2).tolist(), precision[kept].round(2).tolist())


def _mistakes(predictions: MultiLabelPredictions, shown: ShownImages, max_images: int) -> ReportSection:
    """Return the labels that are predicted with the highest scores and absent, and those with the lowest and present."""
    target, scores, names = predictions.target, predictions.scores, predictions.class_names
    predicted = scores > THRESHOLD

    def gallery(title: str, wrong: NDArray[np.bool_], by: NDArray[np.float32], what: str) -> GalleryPart:
        worst = np.where(wrong, by, -np.inf).max(1)
        images = np.flatnonzero(wrong.any(1))
        order = images[np.lexsort((images, -worst[images]))]

        def caption(index: int) -> list[str]:
            labels = sorted(np.flatnonzero(wrong[index]).tolist(), key=lambda label: (-by[index, label], label))
            said = ", ".join(f"{names[label]} ({100 * float(scores[index, label]):.1f} %)" for label in labels[:MAX_LABELS])
            truth = ", ".join(names[label] for label in np.flatnonzero(target[index]).tolist()) or "no label"
            more = f" and {len(labels) - MAX_LABELS} more" if len(labels) > MAX_LABELS else ""
            return [f"truth: {truth}", f"{what}: {said}{more}"]

        note = f"{int(wrong.sum())} labels of {len(images)} images, the worst first." if len(images) else ""
        return shown.gallery(title, order, max_images, caption, lambda _: True, note)

    return ReportSection(
        "mistakes",
        "Most confident mistakes",
        [
            gallery("Predicted, but not labelled", predicted & ~target, scores, "predicted"),
            gallery("Labelled, but missed", ~predicted & target, -scores, "missed"),
        ],
        intro="Where the model is certain and wrong: often labels that are missing or wrong.",
    )
