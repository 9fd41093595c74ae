"""trackio: a local database (``TRACKIO_DIR``), or a Space of the Hugging Face Hub (``TRACKIO_SPACE_ID``)."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stvit_cli.engine.loggers.base import PROJECT, LoggedImage, LoggedRun, Status
from stvit_cli.recipe.yaml import flow


def connect() -> None:
    """Nothing can be found out before a run starts."""


class TrackioLogger:
    """See `Logger`."""

    hides_repeated = False

    def __init__(self, run: LoggedRun) -> None:
        import trackio

        # trackio finds a run by its name.
        self.id = run.saved_id or f"{run.name}-{secrets.token_hex(2)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        config = {key: flow(value) for key, value in run.config.items()} | {"environment": dict(run.environment)}
        with _quiet():
            self._run: Any = trackio.init(
                project=project,
                name=self.id,
                config=config,
                resume="allow" if run.saved_id else "never",
                embed=False,
                # Samples of the processor's load would be a second series of steps.
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.location = os.environ.get("TRACKIO_SPACE_ID") or f"trackio show --project {project}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with _quiet():
            self._run.log(dict(metrics), step=step)

    def log_images(self, step: int, images: Sequence[LoggedImage]) -> None:
        import trackio

        with _quiet():
            for image in images:
                shown = trackio.Image(image.decode(), caption=image.caption)
                self._run.log({image.name: shown}, step=step)

    def finish(self, status: Status) -> None:
        import trackio

        close: Callable[[], None] = trackio.finish  # of the current run, which it would close again at the end of the process
        with _quiet():
            close()


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Drop what trackio prints: standard output is for results, and the run has said where to look."""
    return contextlib.redirect_stdout(io.StringIO())
