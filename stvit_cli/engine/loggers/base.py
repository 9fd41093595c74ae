"""What a logger is: the protocol, and what it is told of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from stvit_cli.data.images import decode_image

Status = Literal["finished", "stopped", "failed"]
"""How a run ended: at its end, by a signal or a callback (it can be resumed), by an error."""

PROJECT = "stvit"
"""Project, or experiment, of a tracker whose own environment variable names none."""


@dataclass(frozen=True)
class LoggedRun:
    """The run, as its loggers are told of it.

    Attributes:
        run_dir: its directory.
        name: its name at the tracker.
        step: steps taken before; 0 for a new run.
        config: every key of the recipe, dotted.
        environment: versions, machine, command: what ``environment.json`` holds.
        saved_id: what `Logger.id` was when the run was logged before; None for the first time.
    """

    run_dir: Path
    name: str
    step: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    saved_id: str | None = None


@dataclass(frozen=True)
class LoggedImage:
    """An image for the tracker.

    Attributes:
        name: of the image, unique among those of a call.
        data: a JPEG, PNG or WebP file.
        caption: what is said of it.
    """

    name: str
    data: bytes
    caption: str = ""

    def decode(self) -> Image.Image:
        """Return the image in mode RGB, as the trackers take it."""
        return decode_image(self.data, self.name)


class Logger(Protocol):
    """Writes a run's metrics to a tracker. Created when the run starts; whatever it raises is a warning and its end.

    Attributes:
        id: tells the tracker's run, so that a resumed run continues it.
        location: where to look at it.
        hides_repeated: the tracker hides what a resumed run had logged after its checkpoint. Of the others, steps that have been
            logged are kept away.
    """

    id: str
    location: str
    hides_repeated: bool

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics, named as ``train/loss``, after a number of steps; a value may be infinite or NaN."""
        ...

    def log_images(self, step: int, images: Sequence[LoggedImage]) -> None:
        """Log images after a number of steps."""
        ...

    def finish(self, status: Status) -> None:
        """Write what is left and close; the run may be continued later."""
        ...
