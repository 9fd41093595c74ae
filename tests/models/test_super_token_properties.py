"""Properties of super token attention's shapes: any height, width and grid are padded to full cells and cropped back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from stvit_cli.models.neighbours import neighbours, sum_neighbours
from stvit_cli.models.super_token import SuperTokenAttention, from_cells, to_cells

SIDES = st.integers(1, 23)
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def tokens(height: int, width: int, channels: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.rand(2, channels, height, width, generator=generator) + 0.5  # none is zero, as padding is


@given(SIDES, SIDES, GRIDS)
def test_cells_pad_to_a_multiple_of_the_grid_and_crop_back(height: int, width: int, grid: tuple[int, int]) -> None:
    x = tokens(height, width)
    cells = to_cells(x, grid)
    p, q = -(-height // grid[0]), -(-width // grid[1])
    assert cells.shape == (2, p, q, grid[0] * grid[1], 4)
    assert torch.count_nonzero(cells) == x.numel(), "padding is zero, and every token is in one cell"
    torch.testing.assert_close(from_cells(cells, grid, (height, width)), x, rtol=0, atol=0)


@given(SIDES, SIDES, GRIDS)
def test_token_lies_in_the_cell_of_its_position(height: int, width: int, grid: tuple[int, int]) -> None:
    positions = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    cells = to_cells(positions + 1, grid)  # 0 is padding
    for i in range(cells.shape[1]):
        for j in range(cells.shape[2]):
            inside = positions[0, 0, i * grid[0] : (i + 1) * grid[0], j * grid[1] : (j + 1) * grid[1]] + 1
            cell = cells[0, i, j, :, 0]
            assert sorted(cell[cell > 0].tolist()) == sorted(inside.ravel().tolist())


@given(st.integers(1, 6), st.integers(1, 6))
def test_sum_neighbours_is_the_adjoint_of_neighbours(p: int, q: int) -> None:
    generator = torch.Generator().manual_seed(p * 10 + q)
    super_tokens = torch.randn(2, p, q, 3, dtype=torch.float64, generator=generator)
    parts = torch.randn(2, p, q, 9, 3, dtype=torch.float64, generator=generator)
    gathered = neighbours(super_tokens)
    assert gathered.shape == parts.shape
    torch.testing.assert_close((gathered * parts).sum(), (super_tokens * sum_neighbours(parts)).sum())


@given(SIDES, SIDES, GRIDS, st.integers(1, 2))
def test_attention_keeps_the_shape(height: int, width: int, grid: tuple[int, int], num_iters: int) -> None:
    torch.manual_seed(0)
    attention = SuperTokenAttention(8, 2, grid, num_iters)
    x = tokens(height, width, 8).requires_grad_()
    y = attention(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
