"""The Triton kernels against the plain form, by Triton's interpreter, in a process that began with TRITON_INTERPRET=1.

`test_super_token_triton` starts it; by hand: TRITON_INTERPRET=1 pytest tests/models/interpreted_triton.py
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from stvit_cli.models import super_token
from stvit_cli.models import super_token_triton as kernels
from stvit_cli.models.super_token import SuperTokenAttention

assert os.environ.get("TRITON_INTERPRET") == "1"  # read where triton and a kernel are defined

CASES = [(24, (4, 4), (19, 30)), (64, (8, 8), (16, 24)), (20, (2, 5), (7, 11)), (320, (2, 2), (6, 4)), (3, (16, 16), (17, 5))]


def plain(x: Tensor, grid_size: tuple[int, int], num_iters: int) -> tuple[Tensor, Tensor, Tensor]:
    super_tokens, association = super_token.sample(super_token.to_cells(x, grid_size), num_iters)
    y = super_token.from_cells(super_token.upsample(association, super_tokens), grid_size, (x.shape[2], x.shape[3]))
    return super_tokens, association.transpose(-1, -2), y


@pytest.mark.parametrize("num_iters", [1, 2])
@pytest.mark.parametrize(("channels", "grid_size", "size"), CASES)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_agrees_with_the_plain_form(
    channels: int,
    grid_size: tuple[int, int],
    size: tuple[int, int],
    num_iters: int,
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size).contiguous(memory_format=memory_format).requires_grad_()
    expected = plain(x, grid_size, num_iters)
    super_tokens, association = kernels.sample(x, grid_size, num_iters)
    y = kernels.upsample(association, super_tokens, *grid_size, *size)
    assert not association.requires_grad and y.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip((super_tokens, association, y), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    upstream = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, x, upstream)
    (theirs,) = torch.autograd.grad(expected[2], x, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def test_half_precision_keeps_the_softmax_and_the_normaliser_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 32, 8, 12)
    super_tokens, _, exact = plain(x, (4, 4), 1)
    with torch.autocast("cpu", torch.float16):  # the interpreter multiplies the bits of bfloat16 as whole numbers
        ours, association = kernels.sample(x, (4, 4))
    assert ours.dtype == association.dtype == torch.float16
    torch.testing.assert_close(ours.float(), super_tokens, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(kernels.upsample(association, ours, 4, 4, 8, 12).float(), exact, rtol=2e-3, atol=2e-3)


def test_the_operators_are_what_torch_expects_of_operators() -> None:
    x = torch.randn(1, 16, 6, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    super_tokens, association = kernels.sample(x.detach(), (2, 3))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(kernels.associate_and_aggregate, (x, super_tokens, 2, 3), test_utils=checks)
    torch.library.opcheck(kernels.upsample, (association, super_tokens.requires_grad_(), 2, 3, 6, 7), test_utils=checks)
    torch.library.opcheck(kernels.aggregate, (association, x.detach(), 2, 3), test_utils=checks)


def test_the_module_runs_them() -> None:
    """What a GPU runs, but for where the tensors are."""
    torch.manual_seed(0)
    attention = SuperTokenAttention(16, 2, 4)
    x = torch.randn(2, 16, 10, 13, requires_grad=True)
    for ours, theirs in zip(results(attention, x, attention._forward_triton), results(attention, x, attention), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def results(attention: SuperTokenAttention, x: Tensor, forward) -> list[Tensor]:  # type: ignore[no-untyped-def]
    y = forward(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *attention.parameters()])]


def test_they_are_part_of_a_compiled_graph() -> None:
    torch.manual_seed(0)
    attention, x = SuperTokenAttention(16, 2, 4), torch.randn(1, 16, 8, 10, requires_grad=True)
    compiled = torch.compile(attention._forward_triton, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(results(attention, x, compiled), results(attention, x, attention), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
