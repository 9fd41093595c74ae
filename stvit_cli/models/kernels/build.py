"""Compile `cpu/` for the processor of this machine, once; the library is kept in the user's cache."""

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
# Links to the OpenMP library of torch, which is loaded already: there must not be a second one.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-std=c++20", "-shared", "-fPIC")
# The lines of /proc/cpuinfo that identify a processor, on x86, ARM, POWER, s390 and RISC-V.
PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant", "cpu\t", "features", "isa", "uarch")
INTERRUPTED = ("Interrupt signal terminated", "Terminated signal terminated", "Hangup signal terminated")


def library() -> Path:
    """Return the compiled library for this source, torch and processor; compile it if there is none, or a damaged one.

    Raises:
        KernelsUnavailableError: not on Linux, no compiler, a compiler error, or a cache that cannot be used.
    """
    if sys.platform != "linux":
        raise UnsupportedDeviceError("the CPU kernels need Linux")
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
    """Return the command that compiles C++: ``CXX``, which may have arguments (``ccache g++``), else ``c++``."""
    text = os.environ.get("CXX", "").strip() or "c++"
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise KernelsUnavailableError(f"CXX is {printable(text)!r}, which is not a command ({error})") from error
    program = shutil.which(command[0]) if command else None
    if program is None:
        raise KernelsUnavailableError(f"no C++ compiler here ({printable(text)})")
    return [program, *command[1:]]


def _key(compiler: list[str]) -> str:
    """Return a hash of all that a compiled library depends on. Machines with other processors may share a home directory."""
    sources = [path.read_text() for path in sorted(SOURCES.iterdir())]
    system = [torch.__version__, sysconfig.get_platform(), *platform.libc_ver()]
    parts = [*sources, *system, *compiler, *FLAGS, *_processor()]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=10).hexdigest()


def _processor() -> list[str]:
    """Return the description of the first processor; if the system has none, the name of the machine."""
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
    """Compile to a file. A compiler that was ended by a signal meant for this process is run once more."""
    root = Path(torch.__file__).parent
    paths = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-L{root / 'lib'}"]
    command = [*compiler, *FLAGS, str(SOURCES / "register.cpp"), "-o", str(built), *paths, "-ltorch_cpu", "-lc10"]
    status, stderr = _run(command)
    if status in (-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP) or any(sign in stderr for sign in INTERRUPTED):
        status, stderr = _run(command)
    if status:
        end = f"it ended with status {status}" if status > 0 else f"it was ended by signal {-status}"
        lines = stderr.splitlines() or [end]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise KernelsUnavailableError(f"{' '.join(compiler)} failed: {printable(first.strip())}")


def _run(command: list[str]) -> tuple[int, str]:
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
        raise KernelsUnavailableError(f"{command[0]} cannot be run ({error.strerror})") from error
    with process:
        try:
            stderr = process.communicate()[1]
        except BaseException:  # such as a KeyboardInterrupt outside a training run
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    return process.returncode, stderr
