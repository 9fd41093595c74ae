"""Compile `cpu/` for the processor of this machine, once; the library is kept in the user's cache."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from stvit_cli.models.kernels.errors import UnsupportedDeviceError
from stvit_cli.utils.cpp import compile_library, stored_library, system
from stvit_cli.utils.cpp import compiler as _compiler
from stvit_cli.utils.cpp import processor as _processor

SOURCES = Path(__file__).with_name("cpu")
# Links to the OpenMP library of torch, which is loaded already: there must not be a second one.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-std=c++20", "-shared", "-fPIC")


def library() -> Path:
    """Return the compiled library for this source, torch and processor; compile it if there is none, or a damaged one.

    Raises:
        KernelsUnavailableError: not on Linux, no compiler, a compiler error, or a cache that cannot be used.
    """
    if sys.platform != "linux":
        raise UnsupportedDeviceError("the CPU kernels need Linux")
    compiler = _compiler()
    # Machines with other processors may share a home directory.
    sources = [path.read_text() for path in sorted(SOURCES.iterdir())]
    parts = [*sources, torch.__version__, *system(), *compiler, *FLAGS, *_processor()]
    return stored_library("kernels", "the CPU kernels", parts, lambda built: _compile(compiler, built))


def _compile(compiler: list[str], built: Path) -> None:
    root = Path(torch.__file__).parent
    paths = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-L{root / 'lib'}"]
    compile_library(
        [*compiler, *FLAGS, str(SOURCES / "register.cpp"), "-o", str(built), *paths, "-ltorch_cpu", "-lc10"], compiler
    )
