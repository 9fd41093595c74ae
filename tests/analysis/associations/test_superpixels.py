"""Superpixel metrics on segmentations whose values are known, and the label maps that are read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stvit_cli.analysis.associations.superpixels import (
    SlicSearch,
    achievable_accuracy,
    boundaries,
    boundary_recall,
    measure,
    nearest_grid,
    num_components,
    overlaps,
    paint,
    read_labels,
    regular_grid,
    slic,
    undersegmentation_error,
)
from stvit_cli.errors import UserError


def halves(at: int) -> np.ndarray:
    return np.broadcast_to(np.arange(40) >= at, (20, 40)).astype(int)


def test_boundary_recall_has_a_tolerance() -> None:
    truth = halves(20)
    assert boundary_recall(truth, truth) == 1
    assert boundary_recall(halves(22), truth) == boundary_recall(halves(18), truth) == 1
    assert boundary_recall(halves(23), truth) == boundary_recall(halves(17), truth) == 0
    assert boundary_recall(halves(23), truth, tolerance=3) == 1
    assert boundary_recall(halves(7), np.zeros((20, 40), dtype=int)) == 1


def test_achievable_accuracy() -> None:
    truth = halves(20)
    assert achievable_accuracy(truth, truth) == 1
    assert achievable_accuracy(np.zeros_like(truth), halves(30)) == 0.75
    assert achievable_accuracy(regular_grid((20, 40), (1, 4)), halves(23)) == pytest.approx(37 / 40)
    assert achievable_accuracy(1000 * truth - 3, 7 * truth) == 1  # labels need not be counted


def test_undersegmentation_error_by_hand() -> None:
    truth = halves(20)
    assert undersegmentation_error(truth, truth) == undersegmentation_error(np.arange(800).reshape(20, 40), truth) == 0
    # Three of ten columns of one segment are on the other side, once seen from each class.
    assert undersegmentation_error(regular_grid((20, 40), (1, 4)), halves(23)) == pytest.approx(2 * 3 / 40)
    thirds = np.array([[0, 0, 0, 1, 1, 2]])
    assert undersegmentation_error(np.zeros((1, 6), dtype=int), thirds) == pytest.approx((3 + 2 + 1) / 6)
    assert undersegmentation_error(1000 * truth - 3, 7 * truth) == 0  # labels need not be counted


def test_metrics_equal_those_computed_by_scikit_image_and_scipy() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    from scipy.ndimage import distance_transform_cdt

    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, (4, 6)).repeat(7, 0).repeat(6, 1)
    labels = np.roll(generator.integers(0, 9, (7, 9)).repeat(4, 0).repeat(4, 1), 1, 1)
    table = metrics.contingency_table(truth, labels).toarray().T.astype(int)
    np.testing.assert_array_equal(overlaps(labels, truth), table)
    assert achievable_accuracy(labels, truth) == table.max(1).sum() / truth.size
    error = 0
    for segment in np.unique(labels):
        for kind in np.unique(truth[labels == segment]):
            inside = ((labels == segment) & (truth == kind)).sum()
            error += min(inside, (labels == segment).sum() - inside)
    assert undersegmentation_error(labels, truth) == error / truth.size
    distances = distance_transform_cdt(~boundaries(labels), "chessboard")
    assert boundary_recall(labels, truth, 1) == (distances[boundaries(truth)] <= 1).mean() < 1


def test_connected_parts_are_counted_by_edges() -> None:
    pytest.importorskip("skimage")
    assert num_components(np.array([[0, 1], [1, 0]])) == 4
    assert num_components(np.array([[5, 5, 7], [0, 5, 7]])) == 3


def test_nearest_grid_has_nearly_square_rectangles() -> None:
    assert nearest_grid(1, (50, 90)) == (1, 1)
    assert nearest_grid(30, (96, 80)) == (6, 5)
    assert nearest_grid(31, (96, 96)) == (5, 6)  # not 1 by 31
    assert all(abs(np.prod(nearest_grid(n, (96, 80))) - n) <= 0.1 * n + 1 for n in range(1, 120))


def test_slic_is_told_another_number_until_the_result_fits() -> None:
    pytest.importorskip("skimage")
    pixels = np.random.default_rng(0).normal(120, 2, (48, 64, 3))
    pixels[10:30, 20:50] += 60
    pixels = pixels.astype(np.uint8)
    search = SlicSearch(pixels)
    wanted = (9, 14, 20, 27, 33)
    missed = [abs(len(np.unique(search.nearest(n))) - n) for n in wanted]
    missed_at_once = [abs(len(np.unique(slic(pixels, n))) - n) for n in wanted]
    assert all(ours <= theirs for ours, theirs in zip(missed, missed_at_once, strict=True)), (missed, missed_at_once)
    assert sum(missed) < sum(missed_at_once)


def test_regular_grid_has_its_rows_and_columns() -> None:
    grid = measure("regular grid", regular_grid((21, 41), (3, 5)), halves(20)[:1].repeat(21, 0)[:, [*range(40), 39]])
    assert grid.num_segments == 15
    sizes = np.bincount(grid.labels.ravel())
    assert sizes.max() <= 7 * 9
    assert 0 < grid.boundary_share < 0.5


def test_paint_fills_each_segment_with_its_mean_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    painted = paint(pixels, halves(13))
    assert (painted[:, :13] == np.rint(pixels[:, :13].mean((0, 1)))).all()
    assert (painted[:, 13:] == np.rint(pixels[:, 13:].mean((0, 1)))).all()


def test_slic_follows_the_image_better_than_the_grid() -> None:
    pytest.importorskip("skimage")
    ys, xs = np.mgrid[:60, :80]
    truth = ((ys - 31) ** 2 + (xs - 37) ** 2 < 400).astype(int)
    pixels = np.array([[30, 60, 90], [220, 180, 40]], dtype=np.uint8)[truth]
    found, grid = measure("SLIC", slic(pixels, 20), truth), measure("regular grid", regular_grid((60, 80), (4, 5)), truth)
    assert found.accuracy > grid.accuracy
    assert found.boundary_recall > grid.boundary_recall


def test_slic_without_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError, match=r"pip install 'stvit\[superpixels\]'"):
        slic(np.zeros((8, 8, 3), dtype=np.uint8), 4)


def test_label_maps_are_read_in_every_mode(tmp_path: Path) -> None:
    labels = halves(11) * 3
    palette = Image.fromarray(labels.astype(np.uint8), "L").convert("P")
    palette.putdata(labels.ravel().tolist())
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 200, 10, 10])
    kinds = {
        "grey.png": Image.fromarray(labels.astype(np.uint8)),
        "wide.png": Image.fromarray((labels * 1000).astype(np.uint16)),
        "palette.png": palette,
        "colour.png": Image.fromarray(np.array([[0, 0, 0], [1, 1, 1], [1, 2, 3], [10, 200, 30]], dtype=np.uint8)[labels]),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        found = read_labels(tmp_path / name, (20, 40))
        assert boundary_recall(found, labels, tolerance=0) == achievable_accuracy(found, labels) == 1, name
        assert len(np.unique(found)) == 2, name
    assert read_labels(tmp_path / "palette.png", (20, 40)).max() == 3


def test_unusable_label_maps_are_refused(tmp_path: Path) -> None:
    Image.fromarray(halves(11).astype(np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(UserError, match="40 x 20 pixels, but the image has 40 x 21"):
        read_labels(tmp_path / "labels.png", (21, 40))
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photograph.png")
    with pytest.raises(UserError, match=r"6399 distinct values|6400 distinct values"):
        read_labels(tmp_path / "photograph.png", (80, 80))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="is not an image"):
        read_labels(tmp_path / "text.png", (80, 80))
    with pytest.raises(UserError, match="no such file"):
        read_labels(tmp_path / "missing.png", (80, 80))
