"""Multiply-adds of detectors: heads computed by hand, and at 800 x 1280 pixels those measured with the authors' backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stvit_cli.analysis.cost.profile_recipe import profile_recipe
from stvit_cli.recipe import io as recipe_io

# Multiply-adds in G, of stvit-s and stvit-b, by grid.
MEASURED = {
    ("coco-mask-rcnn-1x", (8, 4, 1, 1)): (350.5, 543.6),
    ("coco-mask-rcnn-1x", (8, 4, 2, 1)): (254.0, 359.4),
    ("coco-mask-rcnn-1x", (16, 8, 2, 1)): (252.1, 355.6),
    ("coco-cascade-mask-rcnn-1x", (8, 4, 1, 1)): (828.8, 1021.9),
    ("coco-cascade-mask-rcnn-1x", (8, 4, 2, 1)): (732.4, 837.8),
    ("coco-cascade-mask-rcnn-1x", (16, 8, 2, 1)): (730.5, 834.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "grid"), MEASURED)
def test_flops_at_800_x_1280_match_the_measured_ones(recipe: str, grid: tuple[int, ...]) -> None:
    for name, measured in zip(("stvit-s", "stvit-b"), MEASURED[recipe, grid], strict=True):
        row = profile_recipe(recipe_io.load(recipe, [f"model.name={name}", f"model.grid_sizes={list(grid)}"]), None)
        assert row["image_size"] == [800, 1280]
        assert row["uncounted"] == {}
        assert row["flops"] / 1e9 == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(("head", "stages"), [("mask-rcnn", 1), ("cascade-mask-rcnn", 3)])
def test_flops_of_heads_are_those_of_1000_boxes_and_100_masks(head: str, stages: int) -> None:
    overrides = ["model.name=stvit-nano", "detection.channels=16", "detection.fc_dim=32"]
    row = profile_recipe(recipe_io.load(f"shapes-{head}", overrides), (64, 64))
    convs = 4 * 9 * 16 * 16 * 49 if stages == 3 else 0  # each box head's, on 7 x 7
    linear = 16 * 49 * 32 + (32 * 32 if stages == 1 else 0) + 32 * 81 * 5
    mask = 196 * 4 * 9 * 16 * 16 + 196 * 4 * 16 * 16 + 784 * 16 * 81  # four convolutions, a doubling, the classes
    norms = 4 * 2 * 16 * 49 if stages == 3 else 0
    expected = stages * (1000 * (convs + linear + norms) + 100 * mask)
    assert row["flops_by_module"]["roi_heads"] == pytest.approx(expected, rel=0.01)
    assert row["uncounted"] == {}


def test_on_the_command_line(stvit: Any, tmp_path: Path) -> None:
    overrides = ("detection.channels=16", "detection.fc_dim=32", "--image-size", "64x96", "--json", tmp_path / "rows.json")
    ended = stvit("profile", "stvit-nano", "--recipe", "coco-mask-rcnn-1x", *overrides)
    assert ended.code == 0, ended.err
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["model"] == "coco-mask-rcnn-1x stvit-nano"
    assert row["image_size"] == [64, 96]
    assert stvit("profile", "optim.lr=1").code == 2
    assert "leave --recipe out" in stvit("profile", "--recipe", "coco-mask-rcnn-1x", "--throughput").err
