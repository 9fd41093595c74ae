"""The C++ compiler of this machine, and what a library that it compiles for this processor depends on."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from stvit_cli.utils import library_cache
from stvit_cli.utils.library_cache import LibraryUnavailableError
from stvit_cli.utils.text import printable

logger = logging.getLogger(__name__)

# The lines of /proc/cpuinfo that identify a processor, on x86, ARM, POWER, s390 and RISC-V.
PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "cpu\t", "features", "isa", "uarch")
_ENDED_BY_SIGNAL = tuple(-getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
INTERRUPTED = ("Interrupt signal terminated", "Terminated signal terminated", "Hangup signal terminated")


def stored_library(name: str, what: str, parts: Sequence[str], compile_to: Callable[[Path], None]) -> Path:
    """Return a compiled library in the user's cache; compile it if there is none, or a damaged one.

    Args:
        name: how its file begins.
        what: what a message calls it.
        parts: all that it depends on: sources, options, versions, processor.
        compile_to: compiles it to a file.

    Raises:
        LibraryUnavailableError: it cannot be compiled, or the cache cannot be used.
    """
    folder = library_cache.folder()
    library_cache.require_executable(folder)
    key = hashlib.blake2b("\n".join(parts).encode(), digest_size=10).hexdigest()
    target = folder / f"{name}-{key}.so"
    reason = library_cache.damage(target) if target.exists() else None
    if reason is not None or not target.exists():
        with library_cache.storing(target) as built:
            again = ", once on this machine" if reason is None else f" again, as {target} {reason}"
            logger.info("Compiling %s%s: some seconds", what, again)
            compile_to(built)
    return target


def compiler() -> list[str]:
    """Return the command that compiles C++: ``CXX``, which may have arguments (``ccache g++``), else ``c++``.

    Raises:
        LibraryUnavailableError: there is none.
    """
    text = os.environ.get("CXX", "").strip() or "c++"
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise LibraryUnavailableError(f"CXX is {printable(text)!r}, which is not a command ({error})") from error
    program = shutil.which(command[0]) if command else None
    if program is None:
        raise LibraryUnavailableError(f"no C++ compiler here ({printable(text)})")
    return [program, *command[1:]]


def processor() -> list[str]:
    """Return the description of the first processor; if the system has none, the name of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    first: dict[str, str] = {}
    for line in lines:
        name = next((name for name in PROCESSOR if line.startswith(name)), None)
        if name is not None:
            first.setdefault(name, line)
    return [*first.values()] if len(first) > 1 else [*first.values(), platform.machine(), platform.node()]


def system() -> list[str]:
    """Return what a compiled library depends on beside its sources, its compiler and the processor."""
    return [sysconfig.get_platform(), *platform.libc_ver()]


def compile_library(command: Sequence[str], program: Sequence[str]) -> None:
    """Run a compiler. One that was ended by a signal meant for this process is run once more.

    Args:
        command: the compiler and all its arguments.
        program: what messages call it.

    Raises:
        LibraryUnavailableError: it fails.
    """
    status, stderr = _run(command)
    if status in _ENDED_BY_SIGNAL or any(sign in stderr for sign in INTERRUPTED):
        status, stderr = _run(command)
    if status:
        end = f"it ended with status {status}" if status > 0 else f"it was ended by signal {-status}"
        lines = stderr.splitlines() or [end]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise LibraryUnavailableError(f"{' '.join(program)} failed: {printable(first.strip())}")


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command and return its status and its standard error.

    It runs in its own session: Ctrl-C asks a training run to save and stop, and must not stop its compiler. Otherwise the first
    step would run without the kernels, and the steps after resuming with them.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise LibraryUnavailableError(f"{command[0]} cannot be run ({error.strerror})") from error
    with process:
        try:
            stderr = process.communicate()[1]
        except BaseException:  # such as a KeyboardInterrupt outside a training run
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            raise
    return process.returncode, stderr
