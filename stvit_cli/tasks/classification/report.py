"""A classifier's part of a report: metrics with intervals, confusions, classes, calibration, mistakes. N images, K classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from stvit_cli.data.classification import EvalSet
from stvit_cli.recipe import Recipe
from stvit_cli.tasks.bootstrap import Interval, intervals
from stvit_cli.tasks.classification.calibration import IMAGES, calibration, calibration_section
from stvit_cli.tasks.classification.confusion import class_metrics, class_table, matrix_part
from stvit_cli.tasks.classification.multi_label_report import multi_label_sections
from stvit_cli.tasks.classification.predictions import ClassificationPredictions, MultiLabelPredictions
from stvit_cli.tasks.classification.shown_images import ShownImages
from stvit_cli.tasks.report_parts import Metric, MetricsPart, ReportSection, TextPart
from stvit_cli.tasks.report_texts import defined, intervals_note, not_shown_sections
from stvit_cli.tasks.spec import ReportInput
from stvit_cli.utils.text import first_few

CELL_IMAGES = 6
"""Images of the confusion matrix for each image of a gallery."""
MEANINGS = {
    "top1": "images whose most likely class is the true one",
    "top5": "images whose true class is among the five most likely",
    "loss": "cross-entropy, without label smoothing",
    "balanced_accuracy": "mean recall of the classes: each counts the same, however many images it has",
    "f1_macro": "mean F1 of the classes",
    "ece": "expected calibration error; no interval, as resampling makes it larger",
    "map": "mean over the classes of the average precision",
    "f1_micro": "F1 of all decisions at a probability of 0.5",
}
"""What each metric is."""


def classification_report(given: ReportInput) -> Iterator[ReportSection]:
    """Yield the sections of a report; see `tasks.spec.TaskSpec`."""
    predictions = given.predictions
    assert isinstance(predictions, ClassificationPredictions | MultiLabelPredictions)
    shown = ShownImages(cast(EvalSet, given.evaluation.val_set).images, predictions.images, predictions.target)
    yield metrics_section(predictions)
    if isinstance(predictions, MultiLabelPredictions):
        sections = multi_label_sections(predictions, shown, given.max_images)
    else:
        sections = _sections(predictions, shown, given)
    yield from sections
    yield from not_shown_sections(shown.problems())


def metrics_section(predictions: ClassificationPredictions | MultiLabelPredictions) -> ReportSection:
    """Return the section of the metrics with their intervals."""
    num_images, statistics = len(predictions.images), predictions.statistics()
    found = intervals(statistics, num_images)
    meanings = MEANINGS | ({"loss": "mean binary cross-entropy"} if isinstance(predictions, MultiLabelPredictions) else {})
    metrics = [_metric(name, interval, num_images, meanings.get(name, "")) for name, interval in found.items()]
    part, lines = MetricsPart(metrics, note=intervals_note(statistics, num_images)), _remarks(predictions)
    return ReportSection("metrics", "Metrics", [part, *([TextPart(lines)] if lines else [])])


def _metric(name: str, interval: Interval, num_images: int, meaning: str) -> Metric:
    value, low, high = (defined(number) for number in (interval.value, interval.low, interval.high))
    if name == "ece" or low == high:
        low = high = None
    if name in ("top1", "top5") and value in (0, 100):
        bound = 100 * 0.025 ** (1 / num_images)  # Clopper and Pearson's interval: there is nothing to resample
        low, high = (bound, 100.0) if value else (0.0, 100 - bound)
    return Metric(name, value, low, high, "" if name == "loss" else "%", meaning)


def _remarks(predictions: ClassificationPredictions | MultiLabelPredictions) -> list[str]:
    """Return what the numbers alone would hide: the accuracy of a guess."""
    if not isinstance(predictions, ClassificationPredictions):
        return []
    counts = np.bincount(predictions.target)
    most = int(counts.argmax())
    return [
        f"For comparison: a model that always answers {predictions.class_names[most]}, the most frequent class, would have "
        f"top-1 {100 * int(counts[most]) / len(predictions.images):.1f} %."
    ]


def _sections(predictions: ClassificationPredictions, shown: ShownImages, given: ReportInput) -> Iterator[ReportSection]:
    wrong = predictions.labels[:, 0] != predictions.target
    score = predictions.scores[:, 0]
    limit, num_kept = given.max_images, predictions.labels.shape[1]

    def caption(index: int) -> list[str]:
        truth = predictions.class_names[int(predictions.target[index])]
        said = f"predicted: {_scored(predictions, index, 0)}"
        own = f" ({100 * float(predictions.target_score[index]):.1f} %)" if wrong[index] else ""
        return [f"truth: {truth}{own}", said]

    def caption_with_second(index: int) -> list[str]:
        return [*caption(index), *(f"then: {_scored(predictions, index, rank)}" for rank in range(1, min(2, num_kept)))]

    yield ReportSection(
        "confusion",
        "Confusion matrix",
        [matrix_part(predictions, shown, caption, CELL_IMAGES * limit)],
        intro="Which classes are taken for which.",
    )
    yield ReportSection("classes", "Classes", [*_absent(predictions), class_table(predictions)])
    yield calibration_section(calibration(score, ~wrong), IMAGES, _softening(given.recipe))
    mistakes = np.flatnonzero(wrong)
    confident = mistakes[np.lexsort((mistakes, -score[mistakes]))]
    yield ReportSection(
        "mistakes",
        "Most confident mistakes",
        [shown.gallery("", confident, limit, caption, lambda _: True, "Wrong predictions, those with the highest score first.")],
        intro="Where the model is certain and wrong: often wrong labels, images of two classes, or a kind of image that training "
        "lacks.",
    )
    uncertain = np.lexsort((np.arange(len(score)), score))
    note = "All images, the lowest score first."
    yield ReportSection(
        "uncertain",
        "Least certain images",
        [shown.gallery("", uncertain, limit, caption_with_second, lambda index: bool(wrong[index]), note)],
        intro="Images for which no class stands out: candidates for more training images of their kind.",
    )


def _scored(predictions: ClassificationPredictions, index: int, rank: int) -> str:
    """Return the class of a rank, 0 for the most likely one, with its score."""
    return (
        f"{predictions.class_names[int(predictions.labels[index, rank])]} ({100 * float(predictions.scores[index, rank]):.1f} %)"
    )


def _absent(predictions: ClassificationPredictions) -> list[TextPart]:
    """Return a warning on classes that no image has or that are never predicted."""
    found, names = class_metrics(predictions), predictions.class_names
    absent = [names[label] for label in np.flatnonzero(found.images == 0).tolist()]
    never = [names[label] for label in np.flatnonzero((found.predicted == 0) & (found.images > 0)).tolist()]
    lines = []
    if absent:
        lines.append(
            f"No image to evaluate on has {len(absent)} of the {len(names)} classes: {first_few(absent)}. "
            "They have no recall, and balanced accuracy leaves them out."
        )
    if never:
        lines.append(f"{len(never)} of the {len(names)} classes are never predicted: {first_few(never)}.")
    return [TextPart(lines, kind="warning")] if lines else []


def _softening(recipe: Recipe) -> str:
    """Return a line where the training lowers the confidence."""
    augment = recipe.augment
    names = (("mixup", augment.mixup), ("CutMix", augment.cutmix), ("label smoothing", augment.label_smoothing))
    used = [name for name, value in names if value]
    return f"Training with {', '.join(used)} makes a model less confident than it is accurate." if used else ""
