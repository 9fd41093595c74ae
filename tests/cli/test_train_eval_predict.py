"""The main job from end to end on a CPU: train, evaluate, predict, go on, fine-tune."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import stvit_cli
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io

METRICS = ("top1", "loss")


def test_a_run_leaves_what_is_needed_to_use_it(short_run: Path) -> None:
    written = {path.name for path in short_run.iterdir()}
    assert written >= {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "best.safetensors",
        "last.safetensors",
        "curves.png",
    }
    recipe = recipe_io.load(short_run / "recipe.yaml")
    assert (recipe.name, recipe.data.image_size, recipe.schedule.epochs) == ("quickstart", 32, 8)
    reported = json.loads((short_run.parent / "run.json").read_text())
    assert reported["steps"] == 16
    assert reported["top1"] > 50


def test_eval_gives_the_same_figure_again(stvit, short_run: Path) -> None:
    reported = json.loads((short_run.parent / "run.json").read_text())
    ended = stvit("eval", short_run, "--json", "-")
    figures = json.loads(ended.out)
    assert figures["task"] == "classification"
    assert figures["num_images"] == 6
    assert {name: figures[name] for name in METRICS} == pytest.approx({name: reported[name] for name in METRICS}, rel=1e-5)
    assert f"top-1     {reported['top1']:.0f} %\n" in ended.err  # of six images: no decimals
    assert "top5" not in figures
    assert "top5" not in reported


def test_eval_of_the_weights_alone_is_the_same(stvit, short_run: Path, image_folder: Path) -> None:
    whole = json.loads(stvit("eval", short_run, "--json", "-").out)
    alone = json.loads(stvit("eval", "--weights", short_run / "best.safetensors", "--data", image_folder, "--json", "-").out)
    assert alone == pytest.approx(whole)


def test_eval_on_another_folder_takes_all_of_it(stvit, short_run: Path, image_folder: Path) -> None:
    ended = stvit("eval", short_run, "--data", image_folder / "train", "--json", "-", "eval.batch_size=5")
    assert json.loads(ended.out)["num_images"] == 16


def test_eval_draws_the_worst_images_of_a_run(stvit, short_run: Path, tmp_path: Path) -> None:
    ended = stvit("eval", short_run, "--output", tmp_path / "drawn", "--max-images", "2", "--json", "-")
    assert ended.code == 0, ended.err
    assert f"Drawn, the worst first: {tmp_path / 'drawn'}" in ended.err
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    twin = stvit_cli.evaluate(short_run, output=tmp_path / "twin", max_images=1)
    assert len(list((tmp_path / "twin").iterdir())) == 1
    assert twin.to_dict()["num_images"] == 6
    (tmp_path / "file").touch()
    assert stvit("eval", short_run, "--output", tmp_path / "file").code == 2
    with pytest.raises(UserError, match="max_images: found 0"):
        stvit_cli.evaluate(short_run, output=tmp_path / "twin", max_images=0)


def test_predict_names_what_is_seen(stvit, short_run: Path, image_folder: Path, tmp_path: Path) -> None:
    top1 = json.loads((short_run.parent / "run.json").read_text())["top1"]
    ended = stvit(
        "predict", image_folder / "val", "--weights", short_run, "--top", "9", "--json", "-", "--output", tmp_path / "drawn"
    )
    assert ended.code == 0
    results = json.loads(ended.out)
    assert [Path(result["file"]).parent.name for result in results] == ["blue"] * 3 + ["red"] * 3
    for result in results:
        assert {guess["name"] for guess in result["classes"]} == {"red", "blue"}
        assert sum(guess["probability"] for guess in result["classes"]) == pytest.approx(1)
        assert result["classes"][0]["probability"] >= result["classes"][1]["probability"]
    right = sum(result["classes"][0]["name"] == Path(result["file"]).parent.name for result in results)
    assert 100 * right / 6 == pytest.approx(top1)
    assert len(list((tmp_path / "drawn").iterdir())) == 6


def test_train_says_what_to_type_next(
    stvit, small: list[str], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = stvit("train", "--recipe", "quickstart", "--data", image_folder, *small, "schedule.epochs=2")
    assert ended.code == 0, ended.err
    run_dir = next(Path("runs").iterdir())
    assert run_dir.name.startswith("quickstart-")
    assert f"  stvit eval {run_dir}\n" in ended.err
    assert f"  stvit predict IMAGE --weights {run_dir}\n" in ended.err
    assert ended.out == ""
    assert stvit("eval", run_dir).code == 0


def test_resume_refuses_a_changed_recipe(stvit, short_run: Path, tmp_path: Path) -> None:
    ended = stvit("train", "--resume", short_run, "optim.lr=5e-4", "data.num_workers=1")
    assert ended.code == 2
    assert "optim.lr: 0.002 -> 0.0005" in ended.err
    assert "num_workers" not in ended.err


def test_resume_of_a_finished_run_is_at_its_end(stvit, short_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(short_run, tmp_path / "run")
    reported = json.loads((short_run.parent / "run.json").read_text())
    ended = stvit("train", "--resume", run_dir, "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["top1"] == reported["top1"]


def test_finetune_with_other_classes_and_another_size(
    stvit, small: list[str], short_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    for split in ("train", "val"):
        for old, new in (("red", "warm"), ("blue", "cold"), ("blue", "freezing")):
            shutil.copytree(image_folder / split / old, others / split / new)
    words = [word for word in small if "image_size" not in word]
    ended = stvit(
        *("finetune", "--recipe", "quickstart", "--weights", short_run, "--data", others, "--output", tmp_path / "tuned"),
        *(*words, "data.image_size=48", "schedule.epochs=2"),
    )
    assert ended.code == 0, ended.err
    assert "The classifier is new" in ended.err
    shown = json.loads(
        stvit("predict", others / "val" / "warm" / "0.png", "--weights", tmp_path / "tuned", "--top", "3", "--json", "-").out
    )
    assert {guess["name"] for guess in shown[0]["classes"]} == {"warm", "cold", "freezing"}
