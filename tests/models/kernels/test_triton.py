"""The Triton kernels: by Triton's interpreter on a CPU, compiled for sm_90, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from stvit_cli.models.kernels.triton import attention
from stvit_cli.models.kernels.triton import convolution

INTEGERS = {"height", "width", "channels", "num_rows", "num_columns"}
FLOATS = {"shift", "weight", "bias", "column_sums", "sums"}  # parameters and sums stay in float32

def type_of(name, dtype):
    if name in INTEGERS or name.startswith("stride_"):
        return "i32"
    if name == "scale":
        return "fp32"
    return "*fp32" if name in FLOATS else "*" + dtype

of_cells = {"h": 8, "w": 8, **attention._blocks((8, 8), 64)}
cases = [(attention._gather_kernel, of_cells | {"ASSOCIATE": True}), (attention._gather_kernel, of_cells | {"ASSOCIATE": False}),
         (attention._spread_kernel, of_cells)]
cases += [(kernel, {"GELU": gelu, "RESIDUAL": True})
          for kernel in (convolution._convolve_kernel, convolution._convolve_backward_kernel) for gelu in (True, False)]
for dtype in ("bf16", "fp32"):
    for kernel, constants in cases:
        signature = {name: "constexpr" if name in constants else type_of(name, dtype) for name in kernel.arg_names}
        assert compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_kernels_compile_for_sm_90() -> None:
    run_python("-c", COMPILE)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run_python("-c", ON_GPU)


ON_GPU = """
import torch
from torch import nn
from stvit_cli.models.kernels import use_kernels
from stvit_cli.models.layers import ConvFFN, ConvPosEnc
from stvit_cli.models.super_token import SuperTokenAttention

torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
for dim, heads, grid, side in ((64, 1, 8, 56), (128, 2, 4, 28), (96, 2, 16, 50)):
    parts = nn.Sequential(ConvPosEnc(dim), SuperTokenAttention(dim, heads, grid), ConvFFN(dim)).cuda()
    x = torch.randn(2, dim, side, side, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    found = []
    for enable in (False, True):
        use_kernels(parts, "cuda", enable)
        y = parts(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *parts.parameters()])])
    for eager, triton in zip(*found):
        torch.testing.assert_close(triton, eager, rtol=1e-4, atol=1e-4 * max(1.0, eager.abs().max().item()))
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(parts(x).float(), found[0][0], rtol=0.05, atol=0.05)
    parts.compile(dynamic=False)
    torch.testing.assert_close(parts(x), found[0][0], rtol=1e-4, atol=1e-4)
"""
