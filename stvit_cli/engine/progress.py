"""Progress of a run on standard error: bars on a terminal, lines elsewhere, nothing on ranks other than 0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from stvit_cli.engine.schedule import Timeline
from stvit_cli.utils.text import metric_text, printable

# Without a terminal: seconds between two lines, beside those of the evaluations.
LINE_SECONDS = 10.0
# Weight of the newest step in the moving average of the time per step.
NEWEST = 0.1


class Progress:
    """``quiet`` is for the ranks that keep silent."""

    def __init__(self, timeline: Timeline, start_step: int, quiet: bool) -> None:
        self.timeline = timeline
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
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
        self._last_step: float | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self.console.print(printable(text, keep="\n"), markup=False, emoji=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        text = printable(text, keep="\n")
        self.console.print(
            f"Warning: {text.removeprefix('Warning: ')}", style="yellow", markup=False, emoji=False, soft_wrap=True
        )

    def step(self, done: int, loss: float, lr: float, images: int) -> None:
        """A step of ``images`` images is over; ``done`` are."""
        now = time.monotonic()
        if self._last_step is not None:
            seconds = now - self._last_step
            self.step_seconds = (
                seconds if self.step_seconds is None else self.step_seconds + NEWEST * (seconds - self.step_seconds)
            )
        self._last_step = now
        rate = f"{images / self.step_seconds:.0f} images/s" if self.step_seconds else ""
        values = f"loss {loss:.4f}  lr {lr:.2e}  {rate}"
        epoch = (done - 1) // self.timeline.steps_per_epoch
        total = -(-self.timeline.num_steps // self.timeline.steps_per_epoch)
        within = done - epoch * self.timeline.steps_per_epoch
        if not self.bars.disable:
            self.bars.update(self.epoch_bar, description=f"epoch {epoch + 1}/{total}", completed=within, text=values)
            self.bars.update(self.run_bar, description="run", completed=done, text=f"{self.time_left(done)} left")
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.say(f"epoch {epoch + 1}/{total}  step {done}/{self.timeline.num_steps}  {values}  {self.time_left(done)} left")

    def pause(self) -> None:
        """Exclude what follows (an evaluation, a checkpoint) from the time of a step."""
        self._last_step = None

    def evaluating(self, done: int, total: int) -> None:
        self.bars.update(self.epoch_bar, description="evaluation", completed=done, total=total, text="")

    def recomputing(self, done: int, total: int) -> None:
        self.bars.update(self.epoch_bar, description="batch norm statistics", completed=done, total=total, text="")

    def evaluated(self, epoch: float, metrics: Mapping[str, float], best: bool, seconds: float) -> None:
        self.eval_seconds = seconds
        self.bars.update(self.epoch_bar, total=self.timeline.steps_per_epoch)
        # A name with a slash belongs to a breakdown, such as the IoU of each of 150 classes: for metrics.jsonl only.
        shown = {name: value for name, value in metrics.items() if isinstance(value, float) and "/" not in name}
        values = "  ".join(
            f"{name} {metric_text(name, value, metrics.get('num_images', 100_000))}" for name, value in shown.items()
        )
        self.say(f"epoch {epoch:g}: {values}{'  (best so far)' if best else ''}")

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
