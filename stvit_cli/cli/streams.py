"""Standard output as a command finds it: closed, full, or with a reader that has gone; see `utils.streams` for standard error.

What cannot be printed must not end the work. So the first error of writing is kept, and becomes the exit code once everything
else is done. A reader that goes away does end the command, as in ``stvit recipes show deit300 | head``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from stvit_cli.utils.streams import Nowhere


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
