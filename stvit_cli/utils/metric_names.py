"""Names of metrics in tables, pages and messages: ``box_ap50`` is "box AP50", in percent. Files keep the names of the code."""

from __future__ import annotations

import math
from typing import NamedTuple

from stvit_cli.utils.text import metric_text, printable

MANY_IMAGES = 100_000
"""In place of the number of images, where that is unknown or no image alone changes the value: all digits are shown."""


SUBSET = "subset_"
"""Begins the names of the metrics among the classes of ``eval.subset``."""


class MetricName(NamedTuple):
    """A metric in words.

    Attributes:
        label: its name.
        unit: ``%``, or empty for a pure number.
        in_row: it is shown after each evaluation of a run, where there is room.
    """

    label: str
    unit: str = "%"
    in_row: bool = True


_COCO = {
    "ap": ("AP", True),
    "ap50": ("AP50", True),
    "ap75": ("AP75", False),
    "ap_small": ("AP small", False),
    "ap_medium": ("AP medium", False),
    "ap_large": ("AP large", False),
    "ar_1": ("AR 1", False),
    "ar_10": ("AR 10", False),
    "ar_100": ("AR 100", False),
    "ar_small": ("AR small", False),
    "ar_medium": ("AR medium", False),
    "ar_large": ("AR large", False),
}
_NAMES = {
    "top1": MetricName("top-1"),
    "top5": MetricName("top-5"),
    "balanced_accuracy": MetricName("balanced accuracy"),
    "ece": MetricName("ECE"),
    "map": MetricName("mAP"),
    "f1_micro": MetricName("F1 micro"),
    "f1_macro": MetricName("F1 macro"),
    "loss": MetricName("val loss", unit=""),
    "train_loss": MetricName("train loss", unit=""),
    "miou": MetricName("mIoU"),
    "pixel_accuracy": MetricName("pixel accuracy"),
    "class_accuracy": MetricName("class accuracy"),
    "iou": MetricName("IoU"),
    "num_detections": MetricName("detections", unit=""),
    **{
        f"{kind}_{name}": MetricName(f"{kind} {label}", "%", is_in_row)
        for name, (label, is_in_row) in _COCO.items()
        for kind in ("box", "mask")
    },
}


def metric_name(name: str) -> MetricName:
    """Return a metric in words: its own name where it is none of those that `stvit` computes.

    Example:
        >>> metric_name("ema_box_ap50")
        MetricName(label='EMA box AP50', unit='%', in_row=True)
        >>> metric_name("iou/sky").label, metric_name("ema_subset_top1").label
        ('IoU sky', 'EMA subset top-1')
    """
    kind, slash, of = name.partition("/")
    if slash:
        return metric_name(kind)._replace(label=f"{metric_name(kind).label} {printable(of)}", in_row=False)
    if name in _NAMES:
        return _NAMES[name]
    for prefix, word in (("ema_", "EMA"), (SUBSET, "subset")):
        if name.startswith(prefix) and metric_name(name.removeprefix(prefix)).label != name.removeprefix(prefix):
            of_all = metric_name(name.removeprefix(prefix))
            return of_all._replace(
                label=f"{word} {of_all.label}", in_row=of_all.in_row and (prefix != SUBSET or of_all.unit == "%")
            )
    return MetricName(printable(name), unit="")


def metric_value(name: str, value: float, num_images: float) -> str:
    """Return a metric's value without its unit, with the digits that ``num_images`` images support; ``-``: not defined.

    Example:
        >>> metric_value("box_ap", 31.25, 5000), metric_value("box_ap_large", -1.0, 5000)
        ('31.25', '-')
    """
    is_undefined = math.isnan(value) or (value < 0 and metric_name(name).unit == "%")  # pycocotools: -1 without such objects
    return "-" if is_undefined else metric_text(name, value, num_images)


def metric_with_unit(name: str, value: float, num_images: float) -> str:
    """Return a metric's value with its unit.

    Example:
        >>> metric_with_unit("top1", 99.444, 360), metric_with_unit("loss", 0.02, 360)
        ('99.4 %', '0.020')
    """
    text = metric_value(name, value, num_images)
    return f"{text} {metric_name(name).unit}".rstrip() if text != "-" else text


def epoch_text(epoch: float) -> str:
    """Return a number of epochs with two decimals at most: an evaluation may be in the middle of one.

    Example:
        >>> epoch_text(30), epoch_text(0.5), epoch_text(1 / 60), epoch_text(1 / 1251)
        ('30', '0.5', '0.02', '0.0008')
    """
    return f"{epoch:.1g}" if 0 < epoch < 0.01 else f"{epoch:.2f}".rstrip("0").rstrip(".")
