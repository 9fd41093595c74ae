"""The Triton kernels: by Triton's interpreter on a CPU, through the compiler for a GPU that is not here, and on one that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stvit_cli.models import create_model
from stvit_cli.models.super_token import SuperTokenAttention, use_triton

pytest.importorskip("triton")


def run_python(*words: str, **environment: str) -> None:
    """Run in a process of its own: triton reads once, as it is imported, whether to interpret."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_the_interpreter_finds_what_the_plain_form_finds() -> None:
    run_python("-m", "pytest", "-q", str(Path(__file__).with_name("interpreted_triton.py")), TRITON_INTERPRET="1")


def test_a_cpu_runs_the_plain_form_where_kernels_are_asked_for() -> None:
    model = create_model("stvit-nano").eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    use_triton(model)
    assert all(module.triton for module in model.modules() if isinstance(module, SuperTokenAttention))
    assert torch.equal(model(images), expected)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from stvit_cli.models import super_token_triton as kernels

TYPES = {"shares": "*fp32", "scale": "fp32", "tokens": "*TYPE", "super_tokens": "*TYPE", "association": "*TYPE", "parts": "*TYPE"}
for type in ("bf16", "fp32"):
    for kernel, flags in ((kernels._gather_kernel, {"ASSOCIATE": True}), (kernels._gather_kernel, {"ASSOCIATE": False}),
                          (kernels._spread_kernel, {})):
        constants = {"h": 8, "w": 8, **flags, **kernels._blocks((8, 8), 64)}
        signature = {
            name: "constexpr" if name in constants else TYPES.get(name, "i32").replace("TYPE", type) for name in kernel.arg_names
        }
        assert compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


def test_they_compile_for_a_gpu_that_is_not_here() -> None:
    run_python("-c", COMPILE)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run_python("-c", ON_GPU)


ON_GPU = """
import torch
from stvit_cli.models.super_token import SuperTokenAttention, use_triton

torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
for dim, heads, grid, side in ((64, 1, 8, 56), (128, 2, 4, 28), (96, 2, 16, 50)):
    attention = SuperTokenAttention(dim, heads, grid).cuda()
    x = torch.randn(2, dim, side, side, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    found = []
    for enable in (False, True):
        use_triton(attention, enable)
        y = attention(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *attention.parameters()])])
    for plain, triton in zip(*found):
        torch.testing.assert_close(triton, plain, rtol=1e-4, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        torch.testing.assert_close(attention(x).float(), found[0][0], rtol=0.05, atol=0.05)
    attention.compile(dynamic=False)
    torch.testing.assert_close(attention(x), found[0][0], rtol=1e-4, atol=1e-4)
"""
