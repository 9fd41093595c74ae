"""A classifier of synthetic shapes, by the recipe `shapes-classifier`: the images are generated, an image has several labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stvit_cli import tasks
from stvit_cli.data.shapes import SHAPE_NAMES, draw_image
from stvit_cli.recipe import io as recipe_io

WORDS = [
    *("shapes.num_train=8", "shapes.num_val=4", "data.image_size=64", "schedule.steps=2", "schedule.warmup_epochs=0"),
    *("train.global_batch_size=4", "train.eval_every_steps=2", "train.report=false"),
]


def test_it_is_trained_on_generated_images_and_evaluated_and_predicts(stvit, tmp_path: Path) -> None:
    ended = stvit("train", "--recipe", "shapes-classifier", "--data", tmp_path / "shapes", "--output", tmp_path / "run", *WORDS)
    assert ended.code == 0, ended.err
    ended = stvit("eval", tmp_path / "run", "--json", tmp_path / "eval.json")
    assert ended.code == 0, ended.err
    assert 0 < json.loads((tmp_path / "eval.json").read_text())["map"] <= 100
    image = next((tmp_path / "shapes").glob("*/val/*.png"))
    ended = stvit("predict", image, "--weights", tmp_path / "run")
    assert any(name in ended.out for name in SHAPE_NAMES)


def test_targets_are_the_kinds_of_shapes_in_the_image(tmp_path: Path) -> None:
    recipe = recipe_io.load("shapes-classifier", [*WORDS, f"data.dir={tmp_path}", "shapes.seed=3"])
    task = tasks.build(recipe)
    images = task.val_set.images
    names = task.data.class_names
    assert names == tuple(sorted(SHAPE_NAMES))
    for index in range(4):
        drawn = draw_image(3, "val", index, 64)
        assert {names[label] for label in np.flatnonzero(images.target(index))} == {SHAPE_NAMES[label] for label in drawn.labels}
        assert np.array_equal(np.asarray(images.open(index)), drawn.image)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shapes-classifier", "data.multi_label=false"], "data.multi_label: expected true for data.kind shapes"),
        (["shapes-mask-rcnn", "data.multi_label=true"], "data.multi_label: belongs to task classification"),
        (["shapes-classifier", "shapes.num_trian=8"], "Did you mean 'shapes.num_train'?"),
        (["quickstart", "shapes.num_val=8"], "shapes.num_val: belongs to task detection or segmentation"),
    ],
)
def test_contradictions_are_refused(stvit, words: list[str], expected: str) -> None:
    ended = stvit("train", "--recipe", *words)
    assert ended.code == 2
    assert expected in ended.err
