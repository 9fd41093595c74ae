"""Progress of a run on standard error: bars on a terminal, lines elsewhere, nothing on ranks other than 0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from stvit_cli.engine.eval_rows import MAX_WIDTH, EvalRows
from stvit_cli.engine.schedule import Timeline
from stvit_cli.utils.console import open_console
from stvit_cli.utils.text import printable

# Without a terminal: seconds between two lines, beside those of the evaluations.
LINE_SECONDS = 10.0
# Weight of the newest step in the moving average of the time per step.
NEWEST = 0.1


class Progress:
    """What a run shows while it trains.

    Args:
        timeline: of the run.
        start_step: steps taken before.
        quiet: for the ranks that keep silent.
        main_metric: the metric that decides which weights are best.
    """

    def __init__(self, timeline: Timeline, start_step: int, quiet: bool, main_metric: str = "") -> None:
        self.timeline = timeline
        self.console = open_console(stderr=True, quiet=quiet)
        self.rows = EvalRows(main_metric, timeline, self.console.width if self.console.is_terminal else MAX_WIDTH)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
            refresh_per_second=4,
        )
        self.epoch_bar = self.bars.add_task("epoch", total=timeline.steps_per_epoch, text="")
        self.run_bar = self.bars.add_task("run", total=timeline.num_steps, completed=start_step, text="")
        self.step_seconds: float | None = None
        self.eval_seconds = 0.0
        self._num_timed = 0
        self._losses: list[float] = []  # of the steps since the last evaluation
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self._print(printable(text, keep="\n"))

    def warn(self, text: str) -> None:
        text = printable(text, keep="\n")
        self._print(f"Warning: {text.removeprefix('Warning: ')}", style="yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, emoji=False, soft_wrap=True)

    def step(self, done: int, loss: float, lr: float, images: int, seconds: float) -> None:
        """A step of ``images`` images took ``seconds``; ``done`` steps are over."""
        self._losses.append(loss)
        self._num_timed += 1
        if self.step_seconds is None or self._num_timed == 2:  # the first step also starts loader workers and compiles kernels
            self.step_seconds = seconds
        else:
            self.step_seconds += NEWEST * (seconds - self.step_seconds)
        rate = images / self.step_seconds if self.step_seconds else 0.0
        values = f"loss {loss:.4f}  lr {lr:.1e}  {rate:.{0 if rate >= 10 else 1}f} images/s"
        epoch = (done - 1) // self.timeline.steps_per_epoch
        total = -(-self.timeline.num_steps // self.timeline.steps_per_epoch)
        within = done - epoch * self.timeline.steps_per_epoch
        now = time.monotonic()
        if not self.bars.disable:
            self.bars.update(self.epoch_bar, description=f"epoch {epoch + 1}/{total}", completed=within, text=values)
            self.bars.update(self.run_bar, description="run", completed=done, text=f"{self.time_left(done)} left")
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(f"epoch {epoch + 1}/{total}  step {done}/{self.timeline.num_steps}  {values}  {self.time_left(done)} left")

    def evaluating(self, done: int, total: int) -> None:
        self.bars.update(self.epoch_bar, description="evaluation", completed=done, total=total, text="")

    def recomputing(self, done: int, total: int) -> None:
        self.bars.update(self.epoch_bar, description="batch norm statistics", completed=done, total=total, text="")

    def decoding(self, done: int, total: int) -> None:
        self.bars.update(self.epoch_bar, description="decoding images", completed=done, total=total, text="")
        if done == total:
            self.bars.update(self.epoch_bar, description="epoch", completed=0, total=self.timeline.steps_per_epoch)
        elif self.bars.disable and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"decoding images: {done} of {total}")

    def evaluated(self, step: int, metrics: Mapping[str, float], best: bool, seconds: float) -> None:
        """Print the row of an evaluation.

        Args:
            step: steps taken.
            metrics: by name.
            best: these are the best weights so far.
            seconds: that the evaluation took.
        """
        self.eval_seconds = seconds
        self.bars.update(self.epoch_bar, total=self.timeline.steps_per_epoch)
        self.bars.update(self.run_bar, text=f"{self.time_left(step)} left")
        shown = dict(metrics)
        if self._losses:
            shown["train_loss"] = sum(self._losses) / len(self._losses)
            self._losses.clear()
        *header, row = self.rows.lines(self.timeline.epoch(step), shown, best, self.time_left(step))
        for line in header:
            self._print(line, style="bold")
        self._print(row, style="green" if best else None)
        self._last_line = time.monotonic()

    def time_left(self, done: int) -> str:
        """Return the time left for steps and evaluations, or a dash before it is known."""
        if self.step_seconds is None:
            return "-"
        evaluations = -(-self.timeline.num_steps // self.timeline.eval_every) - done // self.timeline.eval_every
        return duration((self.timeline.num_steps - done) * self.step_seconds + evaluations * self.eval_seconds)


def duration(seconds: float) -> str:
    """Format a time: 45 s, 3 min 20 s, 5 h 12 min, 2 d 7 h."""
    whole = int(seconds + 0.5)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"
    return f"{whole} s"
