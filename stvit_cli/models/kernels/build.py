"""Compile `cpu/` on this machine, for its processor, once; the result is kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from stvit_cli.models.kernels import cache
from stvit_cli.models.kernels.errors import KernelsUnavailableError, UnsupportedDeviceError
from stvit_cli.utils.text import printable

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).with_name("cpu")
# OpenMP's library is the one that torch brings: it is loaded already, and there must be no second one.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++20", "-shared", "-fPIC")
# What tells one processor from another in /proc/cpuinfo, on x86, ARM, POWER, s390 and RISC-V.
PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "cpu\t", "features", "isa", "uarch")
INTERRUPTED = ("Interrupt signal terminated", "Terminated signal terminated", "Hangup signal terminated")


def library() -> Path:
    """Return the compiled library, after compiling it where this source, torch and processor have no undamaged one.

    Raises:
        KernelsUnavailableError: not on Linux, no compiler, it ends with an error, or the cache cannot be used.
    """
    if sys.platform != "linux":
        raise UnsupportedDeviceError("those of a CPU are for Linux")
    compiler = _compiler()
    folder = cache.folder()
    cache.require_executable(folder)
    target = folder / f"kernels-{_key(compiler)}.so"
    reason = cache.damage(target) if target.exists() else None
    if reason is not None or not target.exists():
        with cache.storing(target) as built:
            what = ", once on this machine" if reason is None else f" again, as {target} {reason}"
            logger.info("Compiling the CPU kernels%s: some seconds", what)
            _compile(compiler, built)
    return target


def _compiler() -> list[str]:
    """Return the command that compiles C++: ``CXX``, which may have several words (``ccache g++``), else ``c++``."""
    command = os.environ.get("CXX", "").strip() or "c++"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise KernelsUnavailableError(f"CXX is {printable(command)!r}, which is no command ({error})") from error
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise KernelsUnavailableError(f"no C++ compiler here ({printable(command)})")
    return [program, *words[1:]]


def _key(compiler: list[str]) -> str:
    """Tell apart what a compiled library depends on. A home may be shared by machines of other processors."""
    sources = [path.read_text() for path in sorted(SOURCES.iterdir())]
    system = [torch.__version__, sysconfig.get_platform(), *platform.libc_ver()]
    parts = [*sources, *system, *compiler, *FLAGS, *_processor()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=10).hexdigest()


def _processor() -> list[str]:
    """Return what the system says about the first processor; where it says nothing, the machine's name stands for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    first: dict[str, str] = {}
    for line in lines:
        name = next((name for name in PROCESSOR if line.startswith(name)), None)
        if name is not None:
            first.setdefault(name, line)
    return [*first.values()] if len(first) > 1 else [*first.values(), platform.machine(), platform.node()]


def _compile(compiler: list[str], built: Path) -> None:
    """Compile into a file. A signal that was meant for this process may end the compiler; then it is started once more."""
    root = Path(torch.__file__).parent
    paths = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-L{root / 'lib'}"]
    words = [*compiler, *FLAGS, str(SOURCES / "register.cpp"), "-o", str(built), *paths, "-ltorch_cpu", "-lc10"]
    status, said = _run(words)
    if status in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP) or any(sign in said for sign in INTERRUPTED):
        status, said = _run(words)
    if status:
        end = f"it ended with status {status}" if status > 0 else f"it was ended by signal {-status}"
        lines = said.splitlines() or [end]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise KernelsUnavailableError(f"{' '.join(compiler)} failed: {printable(first.strip())}")


def _run(words: list[str]) -> tuple[int, str]:
    """Run a command and return its status and its standard error.

    It has a session of its own: Ctrl-C asks a run to save and end, and must not end the compiler under it, for then the run's
    first step would be taken without the kernels and a resumed run by them.
    """
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise KernelsUnavailableError(f"{words[0]} cannot be run ({error.strerror})") from error
    with process:
        try:
            said = process.communicate()[1]
        except BaseException:  # such as a KeyboardInterrupt, where no run is to be saved
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return process.returncode, said
