"""Calibration: whether a model that is 80 % confident is right in 80 % of the cases. N predictions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stvit_cli.tasks.classification.statistics import BINS, confidence_bins
from stvit_cli.tasks.report_parts import ChartPart, Metric, MetricsPart, ReportSection, Series, TextPart

WIDE = 1.96
"""Standard errors of the mean on each side of a 95 % interval."""


@dataclass(frozen=True)
class Event:
    """What confidence is compared with.

    Attributes:
        what: what is counted, in the plural.
        share: the part of them that came true, in percent.
        meaning: what a confidence of 80 % should be.
    """

    what: str
    share: str
    meaning: str


IMAGES = Event("images", "accuracy", "of the images with a confidence of 80 %, 80 % should be right")
DECISIONS = Event(
    "decisions", "labels present", "of the decisions (one class of one image) with a probability of 80 %, 80 % should be labelled"
)


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy by bins of confidence.

    Attributes:
        counts: predictions in each bin, (15,); the last holds a confidence of 1 too.
        confidence: their mean confidence in percent, (15,); NaN in an empty bin.
        accuracy: how many of them are right, in percent, (15,).
        mean_confidence: of all, in percent.
        mean_accuracy: of all, in percent.
        margin: half the width of the 95 % interval of the difference between these two.
        ece: expected calibration error in percent, as torchmetrics computes it.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    mean_confidence: float
    mean_accuracy: float
    margin: float
    ece: float

    def sentence(self, share: str = IMAGES.share) -> str:
        """Return what that means, in words."""
        difference = self.mean_confidence - self.mean_accuracy
        both = f"mean confidence {self.mean_confidence:.1f} %, {share} {self.mean_accuracy:.1f} %"
        if abs(difference) <= self.margin:
            return f"On average the confidence is what it should be: {both}; the difference is within chance."
        if difference > 0:
            return f"The model is overconfident by {difference:.1f} points: {both}."
        return f"The model is underconfident by {-difference:.1f} points: {both}."


def calibration(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> Calibration:
    """Compare confidences with what came true.

    Args:
        confidence: probabilities, (N,).
        right: whether each came true, (N,).

    Example:
        >>> found = calibration(np.array([0.75] * 20, np.float32), np.array([True, False] * 10))
        >>> print(found.ece, found.sentence())
        25.0 The model is overconfident by 25.0 points: mean confidence 75.0 %, accuracy 50.0 %.
    """
    values, bins = confidence.astype(np.float64), confidence_bins(confidence)
    over = values - right
    shown = np.minimum(bins, BINS - 1)
    counts = np.bincount(shown, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [100 * np.bincount(shown, weights=weights, minlength=BINS) / counts for weights in (values, right.astype(float))]
    return Calibration(
        counts=counts,
        confidence=means[0],
        accuracy=means[1],
        mean_confidence=100 * float(values.mean()),
        mean_accuracy=100 * float(right.mean()),
        margin=100 * WIDE * float(over.std()) / len(over) ** 0.5,
        ece=100 * float(np.abs(np.bincount(bins, weights=over)).sum()) / len(over),
    )


def calibration_section(found: Calibration, event: Event, advice: str = "") -> ReportSection:
    """Return the section with the reliability diagram.

    Args:
        found: the calibration.
        event: what the confidence is compared with.
        advice: a line on why a model is underconfident, where it is.
    """
    centers = [100 * (number + 0.5) / BINS for number in range(BINS)]
    shares = [None if np.isnan(value) else float(value) for value in found.accuracy]
    diagram = ChartPart(
        "Reliability diagram",
        "confidence (%)",
        f"{event.share} (%)",
        [
            Series(event.share, centers, shares, "bars"),
            Series("perfectly calibrated", [0.0, 100.0], [0.0, 100.0], "dashes"),
        ],
        note=f"Bars below the dashed line: overconfident; above it: underconfident. A bar of few {event.what} says little.",
        x_range=(0.0, 100.0),
        y_range=(0.0, 100.0),
    )
    histogram = ChartPart(
        f"How many {event.what} have which confidence",
        "confidence (%)",
        event.what,
        [Series(event.what, centers, [float(count) for count in found.counts], "bars")],
        x_range=(0.0, 100.0),
    )
    metrics = MetricsPart(
        [
            Metric("ece", found.ece, unit="%", note=f"expected calibration error, {BINS} bins: mean distance of bars and line"),
            Metric("mean confidence", found.mean_confidence, unit="%"),
            Metric(event.share, found.mean_accuracy, unit="%"),
        ]
    )
    is_low = found.mean_accuracy - found.mean_confidence > found.margin
    lines = [found.sentence(event.share), *([advice] if advice and is_low else [])]
    return ReportSection(
        "calibration",
        "Calibration",
        [TextPart(lines), metrics, diagram, histogram],
        intro=f"Whether confidence can be trusted: {event.meaning}.",
    )
