"""Weights & Biases, online or offline (``WANDB_MODE=offline``); project and team by ``WANDB_PROJECT`` and ``WANDB_ENTITY``.

Offline it writes 32 KB at a time: of a process that is killed, the last rows are in ``metrics.jsonl`` only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from stvit_cli.engine.loggers.base import PROJECT, LoggedImage, LoggedRun, Status
from stvit_cli.errors import UserError

_EXIT_CODES = {"finished": 0, "stopped": 255, "failed": 1}
"""Of a process, by which W&B tells the state of a run; 255 is what it takes for a run that was stopped."""


def connect() -> None:
    """Raise UserError where W&B would ask for an API key, which a run must not wait for."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            "train.loggers: Weights & Biases has no API key here.\n"
            "Log in by `wandb login`, or set WANDB_API_KEY, or log offline: WANDB_MODE=offline."
        )


class WandbLogger:
    """See `Logger`."""

    hides_repeated = False

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        self.id = run.saved_id or secrets.token_hex(4)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self.id,
            resume="allow",
            dir=str(run.run_dir),
            config={**run.config, "environment": dict(run.environment)},
            # Its capture of standard output would be in the way of the progress bars.
            settings=wandb.Settings(console="off", silent=True),
        )
        is_offline = self._run.offline
        self.location = f"wandb sync {self._run.settings.sync_dir}" if is_offline else self._run.url or self._run.name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def log_images(self, step: int, images: Sequence[LoggedImage]) -> None:
        import wandb

        for image in images:
            shown = wandb.Image(image.decode(), caption=image.caption)
            self._run.log({image.name: shown}, step=step)

    def finish(self, status: Status) -> None:
        self._run.finish(exit_code=_EXIT_CODES[status])
