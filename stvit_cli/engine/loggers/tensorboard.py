"""TensorBoard: event files in ``events/`` of the run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stvit_cli.engine.loggers.base import LoggedImage, LoggedRun, Status
from stvit_cli.recipe.yaml import flow
from stvit_cli.utils.files import writing


def connect() -> None:
    """Nothing can be found out before a run starts."""


class TensorBoardLogger:
    """See `Logger`."""

    hides_repeated = True

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = run.name
        path = run.run_dir / "events"
        self.location = f"tensorboard --logdir {path}"
        with writing(path):
            # TensorBoard hides what was logged from this step on: a resumed run takes these steps again.
            self._writer = SummaryWriter(str(path), purge_step=run.step + 1)
        if run.saved_id is None:
            self._writer.add_text("recipe", _table(run.config), 0)
            self._writer.add_text("environment", _table(run.environment), 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_images(self, step: int, images: Sequence[LoggedImage]) -> None:
        import numpy as np

        for image in images:
            self._writer.add_image(image.name, np.asarray(image.decode()), step, dataformats="HWC")

    def finish(self, status: Status) -> None:
        self._writer.close()


def _table(values: Mapping[str, object]) -> str:
    """Return Markdown, which TensorBoard shows of a text."""
    rows = [f"| {key} | {flow(value)} |".replace("\n", " ") for key, value in values.items()]
    return "\n".join(["| key | value |", "|---|---|", *rows])
