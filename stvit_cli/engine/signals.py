"""Signals that end a run in good order: the first poll, the second insists."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from stvit_cli.utils.environment import is_main_process

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")
"""Those that the system has: Windows has the first two, and the last."""
# A process that another one started (torchrun, isotropic-ablation) has a signal handed on to it that the terminal or the cluster
# may have sent it already: within this time it is the same one. These name such a parent in the environment.
ECHO_SECONDS = 1.0
PARENTS = ("TORCHELASTIC_RUN_ID", "STVIT_ABLATION")
# GNU timeout sends its signal to the process and then to the group that the process is in: that is one request too.
TWICE_SECONDS = 0.25


class StopRequest:
    """``number`` is the first signal that came, 0 until one comes."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._echo = ECHO_SECONDS if any(name in os.environ for name in PARENTS) else 0.0
        self._pid = os.getpid()

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if is_main_process() and os.getpid() == self._pid:
                with suppress(OSError):  # after SIGHUP the terminal is gone
                    os.write(2, b"\nEnding the step and saving; the same signal again exits at once.\n")
            return
        echo = max(self._echo, TWICE_SECONDS) if number == self.number else self._echo
        if time.monotonic() - self._since >= echo and os.getpid() == self._pid:
            # Files are renamed into place when complete, so nothing needs cleaning up. Torch answers the end of a worker with an
            # exception in the main thread, which would come before the exit.
            if hasattr(signal, "SIGCHLD"):  # not on Windows
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(exit_code(number))


def exit_code(number: int) -> int:
    """130 for Ctrl-C, 143 for any other request."""
    return 130 if number == signal.SIGINT else 143


def _left_alone(name: str) -> bool:
    """Whether the caller has the signal ignored, as nohup does with SIGHUP so that the run outlives the terminal."""
    return name == "SIGHUP" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Collect the signals that ask a run to end; the former handlers come back afterwards.

    Outside the main thread Python allows no handlers: the request then stays empty.
    """
    request = StopRequest()
    former = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name) and not _left_alone(name)]
        former = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
