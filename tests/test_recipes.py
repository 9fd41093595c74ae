"""Every shipped recipe, driven through the real command line: a dry run (everything built, a step taken) on shrunken settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stvit_cli import recipe_io
from stvit_cli.recipe import Recipe

RECIPES = recipe_io.list_recipes()
NAMES = [path.stem for path in RECIPES]

SHRUNK = {
    "classification": [
        *("model.name=stvit-nano", "data.image_size=64", "data.num_workers=0"),
        *("train.global_batch_size=4", "train.batch_size_per_device=2", "train.device=cpu", "train.precision=fp32"),
    ],
}
"""What makes a recipe of each task small enough for a test; all else is as shipped."""


def test_the_recipes_are_there() -> None:
    assert len(NAMES) == 3
    folder = Path(__file__).parents[1] / "recipes"
    assert sorted(path.stem for path in folder.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs(stvit, name: str, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_io.load(name)
    words = [*SHRUNK[recipe.task], *(["--data", str(picture_folder)] if recipe.data.kind == "imagefolder" else [])]
    ended = stvit("train", "--recipe", name, "--dry-run", "--json", "figures.json", *words)
    assert ended.code == 0, ended.err
    figures = json.loads(Path("figures.json").read_text())
    assert figures["global_batch_size"] == 4
    assert figures["grad_accum_steps"] == 2
    assert figures["loss"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_head_of_a_recipe_says_what_it_is(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    assert f"--recipe {path.stem}" in head or "\n#\n#   stvit " in path.read_text()
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "Cost:" in comments
    assert "Paper's figure" in comments
    assert recipe_io.load(path.stem).description


@pytest.mark.parametrize("name", ["deit300", "finetune384"])
def test_every_value_of_the_paper_s_recipes_names_its_source(name: str) -> None:
    text = recipe_io.find(name).read_text()
    settings = [line for line in text.splitlines() if line.startswith("  ") and not line.startswith(("    ", "  kind: image"))]
    unsourced = [line for line in settings if not any(mark in line for mark in ("[P]", "[D]", "[O]")) and "name:" not in line]
    assert unsourced == []
    assert len(settings) > 25


def test_the_paper_s_training_is_the_paper_s() -> None:
    """Section C of the supplement, written down a second time."""
    recipe = recipe_io.load("deit300")
    rates = {
        model: recipe_io.load("deit300", [f"model.name={model}"]).drop_path_rate for model in ("stvit-s", "stvit-b", "stvit-l")
    }
    assert rates == {"stvit-s": 0.1, "stvit-b": 0.4, "stvit-l": 0.6}
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.schedule.kind) == (300, 5, "cosine")
    assert (recipe.peak_lr, recipe.optim.weight_decay, recipe.train.global_batch_size) == (1e-3, 0.05, 1024)
    augment = recipe.augment
    assert (augment.auto_augment, augment.mixup, augment.cutmix) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0)
    assert (augment.random_erasing, augment.label_smoothing, augment.repeats) == (0.25, 0.1, 3)
    assert recipe.train.ema_decay is None
    assert recipe.data.image_size == 224


def test_the_paper_s_fine_tuning_is_the_paper_s() -> None:
    recipe, training = recipe_io.load("finetune384"), recipe_io.load("deit300")
    assert (recipe.schedule.epochs, recipe.peak_lr, recipe.optim.weight_decay) == (30, 1e-5, 1e-8)
    assert (recipe.train.global_batch_size, recipe.data.image_size) == (512, 384)
    assert recipe.augment == training.augment
    assert recipe.model == training.model


def test_the_quickstart_is_small() -> None:
    recipe = recipe_io.load("quickstart")
    assert (recipe.model.name, recipe.data.kind, recipe.data.image_size) == ("stvit-nano", "digits", 64)
    assert recipe.augment.hflip == 0, "a mirrored digit is none"
    assert recipe != Recipe()
