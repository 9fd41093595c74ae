"""The Triton kernels without a GPU: by Triton's interpreter, and compiled for GPUs of NVIDIA and AMD; `tests/gpu` runs on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import helpers
import pytest

pytest.importorskip("triton")


def run_python(*arguments: str, **environment: str) -> None:
    """Run in a process of its own: triton reads once, as it is imported, whether to interpret."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


KERNEL_TESTS = str(Path(__file__).with_name("test_kernels.py"))
MINUTES = "70-size0 or compiled_graph"
"""What takes a minute of the interpreter; the same width runs at a smaller size."""


def test_interpreted_kernels_agree_with_the_eager_form() -> None:
    run_python("-m", "pytest", "-q", KERNEL_TESTS, "-k", f"not ({MINUTES})", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_interpreted_kernels_agree_at_larger_sizes() -> None:
    run_python("-m", "pytest", "-q", KERNEL_TESTS, "-k", MINUTES, TRITON_INTERPRET="1")


TARGETS = str(Path(helpers.__file__).with_name("triton_targets.py"))


def test_kernels_compile_for_sm_90_without_spilling_registers() -> None:
    run_python(TARGETS, "--targets", "sm_90", "--dtypes", "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_kernels_compile_for_other_gpus_without_spilling_registers(target: str) -> None:
    run_python(TARGETS, "--targets", target, "--dtypes", "bf16")


ON_A_GPU = str(Path(__file__).parents[2] / "gpu" / "test_kernels.py")


@pytest.mark.slow
def test_what_runs_on_a_gpu_runs_in_the_interpreter() -> None:
    run_python("-m", "pytest", "-q", "-m", "gpu", ON_A_GPU, TRITON_INTERPRET="1")
