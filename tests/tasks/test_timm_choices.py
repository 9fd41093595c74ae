"""What is chosen for a model of timm in the recipes of the built-in models, its pretrained weights, and runs with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file, save_file

from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import timm_choices

TINY = ("data.num_workers=0", "train.device=cpu", "train.global_batch_size=4", "schedule.epochs=1", "schedule.warmup_epochs=0")


def test_recipes_of_the_paper_choose_for_timms_models() -> None:
    for name, rate in (("timm/swin_tiny_patch4_window7_224", 0.1), ("timm/swin_small_patch4_window7_224", 0.3)):
        recipe, notes = timm_choices.resolve_model(recipe_io.load("coco-mask-rcnn-1x", [f"model.name={name}", "data.dir=x"]))
        assert recipe.model.drop_path_rate == rate
        assert recipe.model.grid_sizes is None
        assert [note.split(":")[0] for note in notes] == ["model.drop_path_rate", "model.grid_sizes"]
        assert timm_choices.resolve_model(recipe) == (recipe, []), "resolved again, nothing changes"
    recipe, notes = timm_choices.resolve_model(recipe_io.load("coco-mask-rcnn-1x", ["model.name=timm/stvit_base", "data.dir=x"]))
    assert (recipe.model.drop_path_rate, recipe.model.grid_sizes, notes) == (0.3, (16, 8, 2, 1), [])


def test_pretrained_weights_bring_their_normalization() -> None:
    words = ["model.name=timm/test_vit", "model.pretrained=true"]
    recipe, notes = timm_choices.resolve_model(recipe_io.load("deit300", [*words, "model.drop_path_rate=0"]))
    assert recipe.data.mean == (0.5, 0.5, 0.5)
    assert "those of the pretrained weights" in notes[0]
    other = recipe_io.load("deit300", [*words, "model.drop_path_rate=0", "data.mean=[0.1,0.1,0.1]"])
    kept, notes = timm_choices.resolve_model(other)
    assert kept.data.mean == (0.1, 0.1, 0.1)
    assert notes[0].startswith("Warning: the pretrained weights of timm/test_vit expect")


def test_a_pretrained_run_starts_from_timms_weights_and_resumes_without_a_network(
    stvit: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = timm.create_model("test_convnext", num_classes=1000)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def download(repository: str, file: str) -> str:
        asked.append(f"{repository}/{file}")
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    words = ["--recipe", "quickstart", "--model", "timm/test_convnext", "--data", image_folder, "data.kind=imagefolder"]
    words += ["model.pretrained=true", "model.in_chans=3", "data.image_size=32", "optim.lr=1e-12", *TINY]
    words += ["data.mean=[0.485,0.456,0.406]", "data.std=[0.229,0.224,0.225]"]
    words += ["schedule.warmup_lr=0", "schedule.min_lr=0", "checkpoint.every_steps=1", "checkpoint.keep=9"]
    ended = stvit("train", *words, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert asked == ["timm/test_convnext.r160_in1k/model.safetensors"]
    trained = load_file(tmp_path / "run" / "last.safetensors")
    assert (trained["stem.0.weight"] - theirs.state_dict()["stem.0.weight"]).abs().max() < 1e-6

    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("a resumed run downloads nothing"))
    assert stvit("train", "--resume", tmp_path / "run").code == 0


def test_without_a_network_the_refusal_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UserError, match=r"cannot be downloaded: no route to host\.\n.*weights=FILE"):
        timm_choices.download_pretrained("timm/test_convnext")
    with pytest.raises(UserError, match="there are no weights to download for timm/stvit_nano"):
        timm_choices.download_pretrained("timm/stvit_nano")
    with pytest.raises(UserError, match=r"model\.pretrained: found true, but stvit-nano has no weights"):
        recipe_io.load("quickstart", ["model.pretrained=true"])


def test_a_classifier_through_the_command_line(stvit: Any, image_folder: Path, tmp_path: Path) -> None:
    run, image = tmp_path / "run", image_folder / "val" / "red" / "0.png"
    words = [
        "--recipe",
        "quickstart",
        "--model",
        "timm/test_vit",
        "--data",
        image_folder,
        "data.kind=imagefolder",
        "model.in_chans=3",
    ]
    words += ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]", "data.image_size=64", *TINY]
    words += ["optim.layer_decay=0.7", "train.ema_decay=0.9", "finetune.freeze_norm=true", "model.drop_path_rate=0.1"]
    ended = stvit("train", *words, "--output", run)
    assert ended.code == 0, ended.err
    ended = stvit("predict", image, "--weights", run)
    assert ended.code == 0, ended.err
    assert "%" in ended.out
    ended = stvit("eval", run, "data.image_size=100")
    assert ended.code == 2
    assert "this timm/test_vit takes images of 64 pixels only" in ended.err
    ended = stvit("visualize-associations", image, "--weights", run, "--output", tmp_path / "maps")
    assert (ended.code, ended.err) == (2, "stvit: timm/test_vit has no super token attention.\n")
    ended = stvit("recipes", "check", "quickstart", "model.name=timm/test_vi")
    assert ended.code == 2
    assert "Did you mean 'test_vit'?" in ended.err


def test_papers_recipe_on_a_small_tree(stvit: Any, coco_tree: Path, tmp_path: Path) -> None:
    words = ["--recipe", "coco-mask-rcnn-1x", "--model", "timm/test_convnext", "--data", coco_tree]
    words += ["detection.short_sides=[64]", "detection.long_side=96", "detection.channels=16", "detection.fc_dim=16"]
    words += ["data.num_workers=0", "train.device=cpu", "train.global_batch_size=2"]
    ended = stvit("train", *words, "--dry-run", "--json", tmp_path / "dry.json")
    assert ended.code == 0, ended.err
    assert "model.drop_path_rate: 0 for timm/test_convnext, as for stvit-nano, the nearest in size." in ended.err
    assert json.loads((tmp_path / "dry.json").read_text())
    trained = stvit(
        "train", *words, "schedule.epochs=1", "schedule.milestones=[]", "schedule.kind=constant", "--output", tmp_path / "run"
    )
    assert trained.code == 0, trained.err
    assert stvit("eval", tmp_path / "run").code == 0
    assert recipe_io.load(tmp_path / "run" / "recipe.yaml").model.drop_path_rate == 0
