"""Input sizes, and the positions of tokens in an image."""

from __future__ import annotations

import numpy as np
import pytest

from stvit_cli.analysis.associations.token_grid import TokenGrid, fit_input_size


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((400, 600), (224, 336)),
        ((4000, 3000), (299, 224)),
        ((8, 8), (224, 224)),
        ((100, 1000), (67, 672)),  # long: at most three times 224
        ((2000, 10), (672, 32)),  # very narrow: its aspect ratio changes
    ],
)
def test_fit_input_size(image: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_input_size(image, 224) == expected


def test_resize_nearest_gives_every_pixel_its_nearest_token() -> None:
    grid = TokenGrid((5, 8), stride=4, offset=0.0, input_size=(18, 30), image_hw=(18, 30))
    values = np.arange(40).reshape(5, 8)
    resized = grid.resize_nearest(values)
    assert resized.shape == (18, 30)
    centres = np.arange(5) * 4, np.arange(8) * 4
    for y in range(18):
        for x in range(30):
            nearest = np.abs(centres[0] - y).min(), np.abs(centres[1] - x).min()
            row, column = divmod(resized[y, x], 8)
            assert (abs(row * 4 - y), abs(column * 4 - x)) == nearest
            assert grid.token_at(x, y) == (row, column)


def test_edges_are_where_the_nearest_token_changes() -> None:
    grid = TokenGrid((5, 8), stride=4, offset=0.0, input_size=(18, 30), image_hw=(180, 300))
    rows = grid.nearest(0, 180)
    assert grid.edges(0)[[0, -1]].tolist() == [0, 180]
    assert (np.flatnonzero(np.diff(rows)) + 1).tolist() == grid.edges(0)[1:-1].round().tolist()


def test_resize_linear_keeps_values_at_centres_and_interpolates_between() -> None:
    grid = TokenGrid((5, 8), stride=4, offset=0.0, input_size=(18, 30), image_hw=(18, 30))
    values = np.random.default_rng(0).random((5, 8)).astype(np.float32)
    resized = grid.resize_linear(values)
    np.testing.assert_allclose(resized[::4, ::4], values, rtol=1e-6)
    np.testing.assert_allclose(resized[2, 4], (values[0, 1] + values[1, 1]) / 2, rtol=1e-6)
    assert resized.min() >= values.min()
    assert resized.max() <= values.max()
