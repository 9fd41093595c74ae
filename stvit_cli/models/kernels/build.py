"""Compile `cpu/` on this machine, for its processor, once; the result is kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

from stvit_cli.models.kernels import CompilationFailed, KernelsUnavailable
from stvit_cli.utils.files import cache_dir

SOURCES = Path(__file__).with_name("cpu")
# OpenMP's library is the one that torch brings: it is loaded already, and there must be no second one.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++20", "-shared", "-fPIC")


def library() -> Path:
    """Return the compiled library, after compiling it where this source, torch and processor have none yet.

    Raises:
        KernelsUnavailable: not on Linux, or no compiler.
        CompilationFailed: it ends with an error.
    """
    if sys.platform != "linux":
        raise KernelsUnavailable("those of a CPU are for Linux")
    name = os.environ.get("CXX", "c++")
    compiler = shutil.which(name)
    if compiler is None:
        raise KernelsUnavailable(f"no C++ compiler here ({name})")
    target = cache_dir() / f"kernels-{_key(compiler)}.so"
    if not target.exists():
        print("Compiling the CPU kernels, once on this machine: some seconds", file=sys.stderr)
        _compile(compiler, target)
    return target


def _key(compiler: str) -> str:
    """Tell apart what a compiled library depends on. A home may be shared by machines of other processors."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = [line for line in lines if line.startswith(("flags", "Features", "model name"))][:2] or [platform.machine()]
    sources = [path.read_text() for path in sorted(SOURCES.iterdir())]
    parts = [*sources, torch.__version__, sysconfig.get_platform(), compiler, *FLAGS, *processor]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=10).hexdigest()


def _compile(compiler: str, target: Path) -> None:
    """Compile beside the target and move it there whole, so that processes that start at once do not meet half a file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent)
    except OSError as error:
        raise KernelsUnavailable(f"{error.filename} cannot be written ({error.strerror})") from error
    with folder:
        built = Path(folder.name) / target.name
        root = Path(torch.__file__).parent
        places = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-L{root / 'lib'}"]
        words = [compiler, *FLAGS, str(SOURCES / "register.cpp"), "-o", str(built), *places, "-ltorch_cpu", "-lc10"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.splitlines() or [f"it ended with status {done.returncode}"]
            first = next((line for line in lines if "error" in line), lines[-1])
            raise CompilationFailed(f"{compiler} failed: {first.strip()}")
        built.replace(target)
