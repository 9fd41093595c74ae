"""Folders as users have them, through the real command line: what cannot serve is said before the first step."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SEGMENTER = [
    *("--recipe", "shapes-upernet", "data.kind=ade20k", "data.image_size=32", "data.num_workers=0", "train.device=cpu"),
    *("schedule.steps=1", "schedule.warmup_steps=0", "train.global_batch_size=2", "segmentation.channels=8"),
    *("segmentation.aux_channels=8", "segmentation.max_size=[32, 32]", "segmentation.class_names=[background, object]"),
]


def noise(path: Path, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path, "PNG")


def classifier(folder: Path, small: list[str], output: Path) -> list[str | Path]:
    return ["train", "--recipe", "quickstart", "--data", folder, "--output", output, *small, "schedule.epochs=2"]


def test_one_image_of_each_class_is_refused_before_the_training(stvit, small: list[str], tmp_path: Path) -> None:
    for name in "abcdefgh":
        noise(tmp_path / "data" / name / "1.png")
    ended = stvit(*classifier(tmp_path / "data", small, tmp_path / "run"))
    assert ended.code == 2
    assert "one image of each class, so none can be held out" in ended.err
    assert not (tmp_path / "run").exists()


def test_damaged_validation_image_is_named_before_the_first_step(
    stvit, small: list[str], image_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    (data / "val" / "red" / "1.png").write_bytes(b"none")
    ended = stvit(*classifier(data, small, tmp_path / "run"))
    assert ended.code == 2
    assert len(ended.err.splitlines()) <= 6
    assert "1 of the 6 validation images that were looked at before the first step" in ended.err
    assert "red/1.png" in ended.err
    assert not (tmp_path / "run").exists()


def test_damaged_validation_image_of_a_detector_is_named_before_the_first_step(stvit, coco_tree: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco_tree, tmp_path / "data"))
    next((data / "val2017").iterdir()).write_bytes(b"none")
    words = ["data.kind=coco", "data.num_workers=0", "train.device=cpu", "train.global_batch_size=2"]
    ended = stvit("train", "--recipe", "shapes-mask-rcnn", "--data", data, "--output", tmp_path / "run", *words)
    assert ended.code == 2
    assert "1 of the 2 validation images that were looked at before the first step" in ended.err
    assert "stvit data check" in ended.err
    assert not (tmp_path / "run").exists()


def test_files_left_out_are_said_by_train_eval_and_predict(
    stvit, small: list[str], short_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for split, name in (("train", "Train"), ("val", "Validation")):
        shutil.copytree(image_folder / split, data / name)
        (data / name / "red" / "a.heic").touch()
        (data / name / "__MACOSX" / "red").mkdir(parents=True)
    (data / "Validation" / "red" / "1.png").unlink()
    ended = stvit(*classifier(data, small, tmp_path / "run"))
    assert ended.code == 0, ended.err
    assert "left out for the ending: 1 .heic" in " ".join(ended.err.split())
    link = data / "Validation" / "blue" / "gone.jpg"
    link.symlink_to("nowhere")
    ended = stvit("predict", data / "Validation", "--weights", short_run)
    assert ended.code == 2
    assert ended.out.count("%") == 5
    assert "left out for the ending: 1 .heic" in ended.err
    assert f"{link}" in ended.err
    link.unlink()
    (data / "Validation" / "empty").mkdir()
    ended = stvit("eval", short_run, "--data", data)
    assert ended.code == 0, ended.err
    assert "left out for the ending: 1 .heic" in ended.err
    assert "no images of empty" in ended.err


def test_resume_notices_that_two_classes_were_exchanged(stvit, short_run: Path, image_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(short_run, tmp_path / "run"))
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    assert stvit("train", "--resume", run, "--data", data).code == 0
    (data / "train" / "red" / "0.png").rename(data / "train" / "red" / "00.png")
    ended = stvit("train", "--resume", run, "--data", data)
    assert ended.code == 2
    assert "files of the training set have other names" in ended.err


def masks(root: Path, *, foreground: int) -> Path:
    """Write images with masks, one half background, the other an object."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = foreground
    for split in ("training", "validation"):
        for number in range(2):
            noise(root / "images" / split / f"{number}.jpg")
            (root / "annotations" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "annotations" / split / f"{number}.png")
    return root


@pytest.mark.parametrize(("foreground", "words"), [(1, []), (255, ["segmentation.label_values=[0, 255]"])])
def test_masks_of_two_classes_train_to_the_numbers_they_have(stvit, tmp_path: Path, foreground: int, words: list[str]) -> None:
    data, run = masks(tmp_path / "data", foreground=foreground), tmp_path / "run"
    ended = stvit("train", "--data", data, "--output", run, *SEGMENTER, *words)
    assert ended.code == 0, ended.err
    assert "iou/object" in (run / "metrics.jsonl").read_text()
    assert "Warning: training" not in ended.err
    image = data / "images" / "validation" / "0.jpg"
    assert stvit("predict", image, "--weights", run, "--output", tmp_path / "drawn").code == 0
    with Image.open(tmp_path / "drawn" / "00000-0-labels.png") as label_map:
        assert set(np.unique(np.array(label_map)).tolist()) <= {0, foreground}
    if foreground == 1:
        ended = stvit("eval", run, "segmentation.reduce_zero_label=true")
        assert ended.code == 0
        assert "Warning: validation: the class object is in none of the 2 label maps" in ended.err


@pytest.mark.parametrize(
    ("foreground", "words", "key"),
    [
        (255, [], "segmentation.label_values=[0, 255]"),
        (1, ["segmentation.reduce_zero_label=true"], "segmentation.reduce_zero_label=false"),
        (2, [], "segmentation.reduce_zero_label=true"),
    ],
)
def test_masks_that_would_train_shifted_or_ignored_are_refused(
    stvit, tmp_path: Path, foreground: int, words: list[str], key: str
) -> None:
    data = masks(tmp_path / "data", foreground=foreground)
    ended = stvit("train", "--data", data, "--output", tmp_path / "run", *SEGMENTER, *words)
    assert ended.code == 2
    assert key in ended.err
    assert len(ended.err.splitlines()) <= 6
    assert not (tmp_path / "run").exists()
