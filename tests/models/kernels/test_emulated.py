"""The instructions of AVX512-BF16, on a processor that lacks them: SIMDe (libsimde-dev) computes in C what they do.

By hand: CXX='c++ -DSTVIT_EMULATE_AVX512_BF16' pytest tests/models/kernels/test_{precision,convolution}.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TESTS = ("test_precision.py", "test_convolution.py")


@pytest.mark.slow  # compiles the kernels: half a minute
def test_kernels_by_avx512_bf16(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    probe = [compiler, "-E", "-x", "c++", "-include", "simde/x86/avx512/dpbf16.h", os.devnull]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no SIMDe here: apt install libsimde-dev")
    environment = {
        **os.environ,
        "CXX": f"{compiler} -DSTVIT_EMULATE_AVX512_BF16",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in TESTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout
