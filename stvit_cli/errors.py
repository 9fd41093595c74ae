"""Exceptions by which a run ends early without an internal error."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input is wrong: a path, a key, a value, a file's content.

    The message is one to six lines: what was given, what was found, what is expected. The command line prints it without a
    traceback and exits with 2. Anything else that is raised is an internal error.
    """


class WriteError(UserError):
    """A file cannot be written: a full disk, a read-only folder."""


class Interrupted(Exception):  # noqa: N818  # no error, as KeyboardInterrupt is none
    """A signal stopped the run; its state is saved. The command line exits with 130 (Ctrl-C) or 143 (any other)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.signal_number = signal_number
