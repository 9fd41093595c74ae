"""Algorithm 1 against golden numbers, a dense form of the equations, and the reference implementation with unfold and fold."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from helpers.reference_model import reference_super_token_attention
from torch import Tensor

from stvit_cli.models import create_model
from stvit_cli.models.kernels import is_available, use_kernels
from stvit_cli.models.neighbours import neighbours, sum_neighbours
from stvit_cli.models.super_token import (
    SuperTokenAttention,
    aggregate,
    associate,
    from_cells,
    sample,
    to_cells,
    upsample,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "super_token_attention.npz"
SIZES = [(16, 16), (19, 30), (8, 8), (5, 41), (1, 1)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("by_kernels", [False, True])
def test_golden(case: int, memory_format: torch.memory_format, by_kernels: bool) -> None:
    arrays = {
        name.removeprefix(f"case{case}."): torch.from_numpy(a)
        for name, a in np.load(GOLDEN).items()
        if name.startswith(f"case{case}.")
    }
    dim, num_heads, h, w, num_iters = arrays["spec"].tolist()
    attention = SuperTokenAttention(dim, num_heads, (h, w), num_iters)
    attention.load_state_dict({name: arrays[f"stoken_refine.{name}"] for name in attention.state_dict()})
    if by_kernels and not (is_available("cpu") and use_kernels(attention, "cpu")):
        pytest.skip("no kernels on this machine")
    x = arrays["x"].contiguous(memory_format=memory_format).requires_grad_()
    y = attention(x)
    y.backward(arrays["grad_y"])
    assert relative_error(y, arrays["y"]) < 1e-5
    assert x.grad is not None
    assert relative_error(x.grad, arrays["grad_x"]) < 1e-5
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None
        assert relative_error(parameter.grad, arrays[f"grad.stoken_refine.{name}"]) < 1e-5, name
    with torch.no_grad():
        assert relative_error(attention(x), arrays["y"]) < 1e-5


def dense_super_token_attention(attention: SuperTokenAttention, x: Tensor) -> Tensor:
    """Equations 1 and 2 over all super tokens with a mask for the 3 x 3 neighbours: N x m matrices, no cells, no strides.

    The neighbours outside the image are columns of zeros that take part in the softmax and are left out after it.
    """
    (h, w), (_, c, height, width) = attention.grid_size, x.shape
    x_padded = F.pad(x, (0, -width % w, 0, -height % h))
    tokens = x_padded.flatten(2).transpose(1, 2)  # B N C
    p, q = x_padded.shape[2] // h, x_padded.shape[3] // w
    cell_row = torch.arange(x_padded.shape[2]).repeat_interleave(x_padded.shape[3]) // h
    cell_column = torch.arange(x_padded.shape[3]).repeat(x_padded.shape[2]) // w
    row, column = torch.meshgrid(torch.arange(-1, p + 1), torch.arange(-1, q + 1), indexing="ij")  # with a border of zeros
    near = ((cell_row[:, None] - row.flatten()).abs() <= 1) & ((cell_column[:, None] - column.flatten()).abs() <= 1)  # N m'
    inside = ((row >= 0) & (row < p) & (column >= 0) & (column < q)).flatten()
    with torch.no_grad():
        super_tokens = F.avg_pool2d(x_padded, (h, w))
        for _ in range(attention.num_iters):
            bordered = F.pad(super_tokens, (1, 1, 1, 1)).flatten(2)  # B C m'
            affinity = (tokens @ bordered * c**-0.5).masked_fill(~near, -torch.inf)
            association = affinity.softmax(-1)[..., inside]  # B N m
            normalised = association / (association.sum(1, keepdim=True) + 1e-12)
            super_tokens = (normalised.transpose(1, 2) @ tokens).transpose(1, 2).unflatten(2, (p, q))
    super_tokens = attention.attend((normalised.transpose(1, 2) @ tokens).transpose(1, 2).unflatten(2, (p, q)))
    y = (association @ super_tokens.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x_padded.shape[2:])
    return y[..., :height, :width]


@pytest.mark.parametrize("grid_size", [(4, 4), (2, 5)])
@pytest.mark.parametrize("num_iters", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_dense_equations(size: tuple[int, int], num_iters: int, grid_size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = SuperTokenAttention(12, 3, grid_size, num_iters).double()
    x = torch.randn(2, 12, *size, dtype=torch.float64, requires_grad=True)
    ours, dense = attention(x), dense_super_token_attention(attention, x)
    torch.testing.assert_close(ours, dense)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, x, upstream)[0], torch.autograd.grad(dense, x, upstream)[0])


def test_agrees_with_the_printed_algorithm() -> None:
    torch.manual_seed(0)
    attention = SuperTokenAttention(16, 2, 4).double()
    x = torch.randn(2, 16, 24, 32, dtype=torch.float64)
    torch.testing.assert_close(attention(x), reference_super_token_attention(attention, x))


@pytest.mark.parametrize("size", SIZES)
def test_pad_and_crop_are_inverse(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    cells = to_cells(x, (4, 5))
    assert cells.shape == (2, -(-size[0] // 4), -(-size[1] // 5), 20, 3)
    assert torch.equal(from_cells(cells, (4, 5), size), x)


def test_rows_sum_to_one_and_constant_tokens_stay() -> None:
    cells = to_cells(torch.randn(2, 8, 20, 24), (4, 4))
    super_tokens, association = sample(cells)
    assert super_tokens.shape == (2, 5, 6, 8)
    assert association.shape == (2, 5, 6, 16, 9)
    torch.testing.assert_close(association.sum(-1), torch.ones(2, 5, 6, 16))
    # A mean of equal tokens is that token, also at the border, where part of the association falls outside.
    constant = torch.full((1, 5, 6, 16, 8), 0.7)
    torch.testing.assert_close(aggregate(association[:1], constant), torch.full((1, 5, 6, 8), 0.7))
    inner = upsample(association[:1], torch.full((1, 5, 6, 8), 0.7))[:, 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.7))


def test_fold_is_the_adjoint_of_unfold() -> None:
    super_tokens, parts = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 9, 5, dtype=torch.float64)
    torch.testing.assert_close((neighbours(super_tokens) * parts).sum(), (super_tokens * sum_neighbours(parts)).sum())
    unfolded = F.unfold(super_tokens.permute(0, 3, 1, 2), 3, padding=1)
    torch.testing.assert_close(rearrange(neighbours(super_tokens), "b p q k c -> b (c k) (p q)"), unfolded)


def test_the_association_carries_no_gradient() -> None:
    cells = torch.randn(1, 2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    super_tokens, association = sample(cells, num_iters=2)
    assert super_tokens.requires_grad
    assert not association.requires_grad


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="10 is not divisible by num_heads 4"):
        SuperTokenAttention(10, 4)


def test_the_normaliser_has_the_precision_of_the_tokens() -> None:
    """In float64, against the same sums in a dense matrix; in float32 they would differ by 1e-8."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(1, 3, 3, 16, 8, dtype=torch.float64, generator=generator)
    association = associate(cells, cells.mean(3))
    found = aggregate(association, cells)
    own = found[0, 1, 1]  # the middle one: every cell is its neighbour, as the (2 - i, 2 - j)th
    parts = [(association[0, y, x, :, 3 * (2 - y) + 2 - x], cells[0, y, x]) for y in range(3) for x in range(3)]
    total = sum(share @ tokens for share, tokens in parts)
    assert found.dtype == torch.float64
    assert (own - total / sum(share.sum() for share, _ in parts)).abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore")  # PyTorch means to retire it, and its tracer warns of every size that is asked for
def test_a_model_is_traced_with_gradients_on() -> None:
    model = create_model("stvit-nano", num_classes=3).eval()
    images = torch.rand(1, 3, 64, 64)
    traced = torch.jit.trace(model, images)  # compares the graphs of two runs, and their results
    torch.testing.assert_close(traced(images), model(images), rtol=1e-4, atol=1e-5)
    traced(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
