"""Standard output and error that never fail: a pipe closed at the other end, a terminal that is gone, a full disk."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal, TextIO, cast

Name = Literal["stdout", "stderr"]


class Nowhere(io.TextIOBase):
    """A text stream that drops everything: in place of one that the caller closed, for which Python has None.

    ``print(..., file=None)`` would print to standard output.
    """

    def write(self, text: str) -> int:
        return len(text)


class Lasting:
    """A text stream whose writes never fail: from the first failure on, what is written is dropped."""

    def __init__(self, stream: TextIO | Nowhere) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:  # characters that the terminal's encoding lacks
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: the stream is closed
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        """Point the file at the null device: Python flushes what is left in its buffer at exit, and must not fail then."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting_output(*names: Name) -> Iterator[None]:
    """Within the block nothing that is printed to these streams raises: the work continues where nobody reads its messages."""
    former = {name: getattr(sys, name) for name in names}
    for name, stream in former.items():
        if not isinstance(stream, Lasting):
            setattr(sys, name, cast(TextIO, Lasting(Nowhere() if stream is None else stream)))
    try:
        yield
    finally:
        for name, stream in former.items():
            if isinstance(getattr(sys, name), Lasting):
                getattr(sys, name).flush()
            setattr(sys, name, stream)


def open_standard_files() -> None:
    """Open the null device where a standard file was closed by the caller (``2>&-``).

    Otherwise the next file that is opened, such as a checkpoint, gets its number, and messages are written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
