"""The row of a run's evaluation: as wide for the last as for the first, at most 80 characters, the best marked with ``*``."""

from __future__ import annotations

from collections.abc import Mapping

from stvit_cli.engine.schedule import Timeline
from stvit_cli.utils.metric_names import MANY_IMAGES, epoch_text, metric_name, metric_value

MAX_WIDTH = 80
MAX_METRICS = 6
GAP = "  "
MARK = "*"
"""Stands before the row of the best weights so far; colour alone says nothing in a file, or to a reader who does not see it."""

_EPOCH, _LEFT = "epoch", "time left"
_LEFT_WIDTH = len("59 min 59 s")


class EvalRows:
    """Rows of the same columns, which the first one decides.

    Args:
        main_metric: always shown; of the moving average too, where there is one.
        timeline: of the run.
        width: of the terminal.
    """

    def __init__(self, main_metric: str, timeline: Timeline, width: int = MAX_WIDTH) -> None:
        self.main_metric = main_metric
        self.width = min(width, MAX_WIDTH)
        whole = str(int(timeline.epoch(timeline.num_steps)))
        self.epoch_width = max(len(_EPOCH), len(whole) + 3 * bool(timeline.eval_every % timeline.steps_per_epoch))
        self.columns: list[str] | None = None
        self.has_left = True

    def lines(self, epoch: float, metrics: Mapping[str, float], best: bool, time_left: str) -> list[str]:
        """Return the lines of an evaluation: the row and, before the first one, the header.

        Args:
            epoch: epochs trained.
            metrics: the metrics by name, with those of the moving average as ``ema_NAME`` and the mean loss of the training steps
                since the last evaluation as ``train_loss``.
            best: these are the best weights so far.
            time_left: of the run.
        """
        header = []
        if self.columns is None:
            self.columns = self._columns(metrics)
            header = [self._line(" ", _EPOCH, [_head(name) for name in self.columns], _LEFT)]
        num_images = metrics.get("num_images", MANY_IMAGES)
        values = [_value(name, metrics.get(name), num_images) for name in self.columns]
        return [*header, self._line(MARK if best else " ", epoch_text(epoch), values, time_left)]

    def _columns(self, metrics: Mapping[str, float]) -> list[str]:
        """Return the metrics to show, in order: losses, the task's metrics, the moving average; the last of each give way."""
        averages = [name for name in metrics if name.startswith("ema_")]
        shown = [
            name
            for name, value in metrics.items()
            # A name with a slash belongs to a breakdown, such as the IoU of each of 150 classes.
            if isinstance(value, float) and "/" not in name and metric_name(name).in_row and name not in averages
        ]
        losses = [name for name in ("train_loss", "loss") if name in shown]
        others = sorted((name for name in shown if name not in losses), key=lambda name: name != self.main_metric)
        others, averages = others or [self.main_metric], [name for name in averages if name == f"ema_{self.main_metric}"]
        while len(losses + others + averages) > MAX_METRICS or self._width(losses + others + averages) > self.width:
            if len(others) > 1:
                others = others[:-1]
            elif losses:
                losses = losses[:-1]
            elif self.has_left:
                self.has_left = False
            else:
                break
        return losses + others + averages

    def _width(self, columns: list[str]) -> int:
        left = self.has_left * (len(GAP) + _LEFT_WIDTH)
        return 2 + self.epoch_width + sum(len(GAP) + _column_width(name) for name in columns) + left

    def _line(self, mark: str, epoch: str, cells: list[str], left: str) -> str:
        assert self.columns is not None
        padded = [f"{cell:>{_column_width(name)}}" for cell, name in zip(cells, self.columns, strict=True)]
        lefts = [f"{left:>{_LEFT_WIDTH}}"] if self.has_left else []
        return GAP.join([f"{mark} {epoch:>{self.epoch_width}}", *padded, *lefts])


def _head(name: str) -> str:
    return f"{metric_name(name).label} {metric_name(name).unit}".rstrip()


def _column_width(name: str) -> int:
    return max(len(_head(name)), len("100.00"))


def _value(name: str, value: float | None, num_images: float) -> str:
    if value is None:
        return "-"
    text = metric_value(name, value, MANY_IMAGES if name == "train_loss" else num_images)
    return text if len(text) <= _column_width(name) else f"{value:.0e}"
