"""``stvit train --data FOLDER``: what is found is said, the recipe that fits is taken, and the run's recipe is concrete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.label_files import WRITERS
from helpers.own_data import write_boxes, write_photos
from PIL import Image

from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import read_info
from stvit_cli.recipe import io as recipe_io

Write = Callable[[Path], Path]

QUICK = [
    *("schedule.steps=1", "schedule.warmup_epochs=0", "data.num_workers=0", "train.device=cpu"),
    *("train.global_batch_size=2", "eval.batch_size=2"),
]
SMALL = {
    "classification": ["data.image_size=32"],
    "detection": [
        *("detection.short_sides=[64]", "detection.long_side=96", "detection.channels=16", "detection.fc_dim=16"),
        *("detection.num_proposals=32", "detection.num_samples=16"),
    ],
    "segmentation": [
        *("data.image_size=64", "segmentation.max_size=[64, 64]", "segmentation.channels=16", "segmentation.aux_channels=8"),
    ],
}


def photos(root: Path) -> Path:
    return write_photos(root, 3, side=(30, 40))


def masks(root: Path) -> Path:
    """Black-and-white masks beside images, without a split."""
    for index in range(4):
        pixels = np.full((40, 48, 3), 60, np.uint8)
        pixels[10:30, 5 + index : 30] = 200
        for folder, content in (("images", pixels), ("masks", np.where(pixels[..., 0] > 100, 255, 0).astype(np.uint8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(root / folder / f"{index}.png")
    return root


def test_folder_of_classes(stvit, tmp_path: Path) -> None:
    few = ["train.global_batch_size=16"]  # more than there are: reduced when the run starts
    data = ["--data", photos(tmp_path / "photos")]
    ended = stvit("train", *data, "--output", tmp_path / "run", *QUICK[:4], *QUICK[5:], *few, *SMALL["classification"])
    assert ended.code == 0, ended.err
    assert "folders by class, a part is held out (3 classes: astronaut, coffee, rocket); recipe own-images" in ended.err
    saved = recipe_io.load(tmp_path / "run" / "recipe.yaml")
    assert (saved.name, saved.model.name, saved.data.kind) == ("own-images", "stvit-nano", "imagefolder")
    assert (saved.data.auto_size, saved.schedule.min_steps, saved.data.drop_last) == (False, None, False)
    assert read_info(tmp_path / "run" / "last.safetensors").recipe_hash == recipe_io.recipe_hash(saved)
    assert stvit("train", "--resume", tmp_path / "run").code == 0
    again = [
        "train",
        "--resume",
        tmp_path / "run",
        "--recipe",
        "own-images",
        *QUICK[:4],
        *QUICK[5:],
        "train.global_batch_size=4",
        *SMALL["classification"],
    ]
    assert stvit(*again).code == 0
    assert "optim.lr: 0.001 -> 0.5" in stvit(*again, "optim.lr=0.5").err


def test_coco_with_masks(stvit, coco_tree: Path, tmp_path: Path) -> None:
    ended = stvit("train", "--data", coco_tree, "--output", tmp_path / "run", *QUICK, *SMALL["detection"])
    assert ended.code == 0, ended.err
    assert "with masks; recipe own-masks" in ended.err


def test_images_and_maps(stvit, ade20k_tree: Path, tmp_path: Path) -> None:
    ended = stvit("train", "--data", ade20k_tree, "--output", tmp_path / "run", *QUICK, *SMALL["segmentation"])
    assert ended.code == 0, ended.err
    assert "recipe own-maps" in ended.err
    assert recipe_io.load(tmp_path / "run" / "recipe.yaml").segmentation.class_names[0] == "class 1"


def csv_table(root: Path) -> Path:
    """Photos in one folder, and a table of their names and labels."""
    photos(root / "all")
    rows = [f"all/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(root.glob("all/*/*.jpg"))]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    return root / "labels.csv"


def idx_files(root: Path) -> Path:
    """MNIST's training files, of eight images and two digits."""
    root.mkdir()
    pixels, digits = np.zeros((8, 28, 28), np.uint8), np.arange(8, dtype=np.uint8) % 2
    for name, array, magic in (("images-idx3", pixels, 0x803), ("labels-idx1", digits, 0x801)):
        header = np.array([magic, *array.shape], ">i4").tobytes()
        (root / f"train-{name}-ubyte").write_bytes(header + array.tobytes())
    return root


@pytest.mark.parametrize(("kind", "write"), [("table", csv_table), ("idx", idx_files)])
def test_labels_that_are_no_folders(stvit, kind: str, write: Write, tmp_path: Path) -> None:
    ended = stvit("train", "--data", write(tmp_path / "data"), "--output", tmp_path / "run", *QUICK, *SMALL["classification"])
    assert ended.code == 0, ended.err
    saved = recipe_io.load(tmp_path / "run" / "recipe.yaml")
    assert (saved.name, saved.data.kind) == ("own-images", kind)


@pytest.mark.parametrize("kind", WRITERS)
def test_other_tools_annotations(stvit, kind: str, tmp_path: Path) -> None:
    ended = stvit("train", "--data", WRITERS[kind](tmp_path / "data"), "--output", tmp_path / "run", *QUICK, *SMALL["detection"])
    assert ended.code == 0, ended.err
    saved = recipe_io.load(tmp_path / "run" / "recipe.yaml")
    assert (saved.data.kind, saved.name in ("own-boxes", "own-masks")) == (kind, True)
    assert f"recipe {saved.name}" in ended.err


def test_dry_run_finds_what_a_run_finds(stvit, tmp_path: Path) -> None:
    words = ["--data", photos(tmp_path / "photos"), "--dry-run", "--json", "-", *QUICK[2:], "data.image_size=32"]
    ended = stvit("train", *words)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["global_batch_size"] == 2


def test_quickstart_with_a_folder_trains_on_the_folder(stvit, tmp_path: Path) -> None:
    words = ["--data", photos(tmp_path / "photos"), "--dry-run", *QUICK, *SMALL["classification"]]
    ended = stvit("train", "--recipe", "quickstart", *words)
    assert ended.code == 0, ended.err
    assert "recipe own-images" in ended.err
    earlier = stvit("train", "--recipe", "quickstart", "data.kind=imagefolder", *words)
    assert earlier.code == 0, earlier.err
    assert "own-images" not in earlier.err


@pytest.mark.parametrize(
    ("recipe", "write", "named"),
    [("own-images", write_boxes, "own-boxes"), ("deit300", write_boxes, "own-boxes"), ("own-boxes", photos, "own-images")],
)
def test_recipe_of_another_task_is_refused_by_the_one_that_fits(
    stvit, recipe: str, write: Write, named: str, tmp_path: Path
) -> None:
    ended = stvit("train", "--recipe", recipe, "--data", write(tmp_path / "data"), "--output", tmp_path / "run")
    assert ended.code == 2
    assert named in ended.err
    assert len(ended.err.strip().splitlines()) <= 6
    assert not (tmp_path / "run").exists()


def test_images_and_masks_taken_for_classes_are_doubted(stvit, tmp_path: Path) -> None:
    words = ["data.kind=imagefolder", "--data", masks(tmp_path / "masks"), "--dry-run", *QUICK, *SMALL["classification"]]
    ended = stvit("train", "--recipe", "quickstart", *words)
    assert ended.code == 0, ended.err
    assert "looks like images and label maps" in ended.err


def test_without_anything_the_folder_is_asked_for(stvit) -> None:
    ended = stvit("train")
    assert ended.code == 2
    assert "--data FOLDER" in ended.err


def test_coco_with_boxes_alone(stvit, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "boxes", 4, size=(96, 64))
    words = [word for word in SMALL["detection"] if "channels" not in word]
    ended = stvit("train", "--data", data, "--output", tmp_path / "run", *QUICK, *words)
    assert ended.code == 0, ended.err
    assert "annotations.json without a split, so a part is held out, boxes without masks; recipe own-boxes" in ended.err
    saved = recipe_io.load(tmp_path / "run" / "recipe.yaml")
    assert (saved.detection.head, saved.detection.channels, saved.detection.val_json) == ("faster-rcnn", 64, None)


def test_black_and_white_masks_without_a_split(stvit, tmp_path: Path) -> None:
    data = masks(tmp_path / "masks")
    ended = stvit("train", "--data", data, "--output", tmp_path / "run", *QUICK, *SMALL["segmentation"])
    assert ended.code == 0, ended.err
    assert "black-and-white masks: classes background (0) and foreground (255)" in ended.err
    saved = recipe_io.load(tmp_path / "run" / "recipe.yaml")
    assert (saved.segmentation.label_values, saved.segmentation.val_images) == ((0, 255), None)


@pytest.mark.slow
def test_sixty_photos_are_told_apart_without_a_key(stvit, tmp_path: Path) -> None:
    """The whole default run: three classes of twenty photos each, twelve of them held out."""
    pytest.importorskip("skimage")
    ended = stvit("train", "--data", write_photos(tmp_path / "photos"), "--output", tmp_path / "run", "--json", "-")
    assert ended.code == 0, ended.err
    metrics = json.loads(ended.out)
    assert metrics["num_images"] == 12
    assert metrics["last_top1"] >= 95


@pytest.mark.slow
def test_twenty_images_with_boxes_are_learnt_without_a_key(stvit, tmp_path: Path) -> None:
    """The whole default run; then the training images, which a detector of few images must at least find again."""
    data = write_boxes(tmp_path / "boxes")
    ended = stvit("train", "--data", data, "--output", tmp_path / "run")
    assert ended.code == 0, ended.err
    words = ["detection.val_json=annotations.json", "detection.val_images=images"]
    ended = stvit("eval", tmp_path / "run", *words, "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["box_ap50"] > 90


@pytest.mark.parametrize("processes", [1, 2])
def test_small_set_gets_the_same_recipe_in_several_processes(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stvit_cli.api import own_data, training

    recipe = own_data.new_recipe(None, [f"data.dir={photos(tmp_path / 'photos')}", "data.num_workers=0", "train.device=cpu"])
    monkeypatch.setattr(training, "world_size", lambda: processes)
    _, fitted = training._build_new(recipe, None, {})
    assert fitted.train.global_batch_size == 4  # of the six images that are not held out
    assert fitted.schedule.epochs * 2 >= 150


def test_a_shorter_run_has_a_shorter_warmup(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from stvit_cli.api import own_data

    words = [f"data.dir={photos(tmp_path / 'photos')}", "train.device=cpu", "schedule.epochs=1"]
    with caplog.at_level("INFO"):
        assert own_data.new_recipe(None, words).schedule.warmup_epochs == 0
    assert "schedule.warmup_epochs: 0, as schedule.epochs is 1 (warmup_epochs was 2)" in caplog.messages
    steps = own_data.new_recipe("own-images", [*words[:2], "schedule.steps=45"]).schedule
    assert (steps.warmup_epochs, steps.warmup_steps) == (0, 3)  # 2 of 30 epochs
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs: found 3"):
        own_data.new_recipe("own-images", [*words, "schedule.warmup_epochs=3"])
    assert own_data.new_recipe("own-images", [*words[:2], "schedule.epochs=4"]).schedule.warmup_epochs == 2
    assert own_data.new_recipe("quickstart", ["schedule.epochs=1"]).schedule.warmup_epochs == 0


@pytest.mark.parametrize(
    ("key", "warned"), [("freeze_backbone=true", True), ("unfreeze_epochs=1", True), ("freeze_norm=false", False)]
)
def test_a_backbone_frozen_without_weights_is_said(
    key: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from stvit_cli.api import training

    training.new_recipe("own-images", [f"data.dir={photos(tmp_path / 'photos')}", "train.device=cpu", f"finetune.{key}"])
    assert any("frozen at random initial values" in message for message in caplog.messages) == warned
