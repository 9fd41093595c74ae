"""What a command writes to: standard output, which may be closed, full or without a reader, and log records on standard error.

What cannot be printed must not end the work. So the first error of writing is kept, and becomes the exit code once everything
else is done. A reader that goes away does end the command, as in ``stvit recipes show deit300 | head``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from stvit_cli.utils.streams import Nowhere
from stvit_cli.utils.text import printable


class GuardedOutput:
    """A text stream that takes any text and outlives what it writes to.

    Attributes:
        was_closed: the process was started without this stream (``>&-``); everything written is dropped.
        failure: the first error of writing, where there was one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.was_closed = stream is None
        self.failure: OSError | None = None
        self._stream = Nowhere() if stream is None else stream

    def write(self, text: str) -> int:
        with self._noting_failure():
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:  # a terminal without these letters
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        with self._noting_failure():
            self._stream.flush()

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.failure = self.failure or error

    def settle(self) -> None:
        """Write what is left or give it up: Python would try it once more at its end, and fail with an exit code of its own."""
        try:
            self._stream.flush()
        except OSError as error:
            self.failure = self.failure or error
            self.give_up()

    def give_up(self) -> None:
        """Let everything that is still written go nowhere."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded_output() -> Iterator[GuardedOutput]:
    """Guard ``sys.stdout`` within the block, and yield what stands for it."""
    before, output = sys.stdout, GuardedOutput(sys.stdout)
    sys.stdout = cast(TextIO, output)
    try:
        yield output
    finally:
        sys.stdout = before
        output.settle()


class _StderrHandler(logging.Handler):
    """Prints each record as one line to what is ``sys.stderr`` at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "Warning: " if record.levelno >= logging.WARNING else ""
        print(printable(f"{prefix}{record.getMessage()}"), file=sys.stderr)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Within the block, print the package's log records of level INFO and above to standard error, a line each."""
    logger, handler = logging.getLogger("stvit_cli"), _StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
