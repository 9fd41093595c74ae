"""A segmenter through the real command line: trained for two steps, evaluated again, and asked for label maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stvit_cli.data.palette import class_colour
from stvit_cli.data.shapes import write_ade20k_tree
from stvit_cli.tasks.segmentation.predict import ClassShare, SegmentationPrediction

WORDS = [
    *("data.kind=ade20k", "data.image_size=64", "data.num_workers=0", "schedule.steps=2", "schedule.warmup_steps=0"),
    *("train.global_batch_size=4", "train.batch_size_per_device=2", "train.eval_every_steps=2", "train.device=cpu"),
    *("segmentation.channels=16", "segmentation.aux_channels=8", "segmentation.max_size=[64, 64]"),
    "segmentation.reduce_zero_label=true",  # the maps that are written here count from 1
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade")
    write_ade20k_tree(root, (6, 3), 64, seed=3)
    return root


@pytest.fixture
def run(stvit, scenes: Path, tmp_path: Path) -> Path:
    ended = stvit("train", "--recipe", "shapes-upernet", "--data", scenes, "--output", tmp_path / "run", *WORDS)
    assert ended.code == 0, ended.err
    return tmp_path / "run"


def figures(stvit, *words: str | Path) -> dict[str, float]:
    ended = stvit("eval", *words, "--json", "-")
    assert ended.code == 0, ended.err
    found: dict[str, float] = json.loads(ended.out)
    return found


def test_from_training_to_label_maps(stvit, run: Path, scenes: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = next(row for row in rows if row["kind"] == "eval")
    again = figures(stvit, run)
    assert again["task"] == "segmentation"
    assert again["num_images"] == 3
    # The run was measured with its own model, this with the fused copy: a pixel on the edge between two classes may change sides.
    assert again["miou"] == pytest.approx(seen["miou"], abs=0.1)
    assert again["pixel_accuracy"] == pytest.approx(seen["pixel_accuracy"], abs=0.1)
    assert {name for name in again if name.startswith("iou/")} >= {"iou/background", "iou/circle"}
    words = ("train.device=cpu", "data.num_workers=0")
    assert figures(stvit, "--weights", run / "best.safetensors", "--data", scenes, *words) == again
    assert figures(stvit, run, "--data", scenes, "segmentation.window=48", "segmentation.eval_flip=true") != again

    assert stvit("eval", run, "--output", tmp_path / "worst", "--max-images", "2", *words).code == 0
    assert len(list((tmp_path / "worst").iterdir())) == 2  # truth, prediction, legend

    image = scenes / "images" / "validation" / "000001.png"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    ended = stvit("predict", image, broken, "--weights", run, "--output", tmp_path / "drawn", "--json", tmp_path / "p.json")
    assert ended.code == 2
    assert "broken.png" in ended.err
    assert "%" in ended.out
    found, error = json.loads((tmp_path / "p.json").read_text())
    assert error == {"file": str(broken), "task": "segmentation", "error": error["error"]}
    with Image.open(image) as opened:
        size = opened.size
    assert (found["task"], found["width"], found["height"]) == ("segmentation", *size)
    shares = [row["share"] for row in found["classes"]]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    with Image.open(tmp_path / "drawn" / "00000-000001-labels.png") as label_map:
        assert label_map.mode == "P"
        assert label_map.size == size
        numbers = np.array(label_map)
        palette = label_map.getpalette()
    assert {row["number"]: row["pixels"] for row in found["classes"]} == dict(
        zip(*np.unique(numbers, return_counts=True), strict=True)
    )
    assert palette is not None
    assert tuple(palette[3:6]) == class_colour(0)  # reduce_zero_label: 1 is the first class
    with Image.open(tmp_path / "drawn" / "00000-000001.png") as overlay:
        assert overlay.width > overlay.height * size[0] / size[1]  # the legend
        assert overlay.height >= size[1]


def test_weights_of_another_task(stvit, run: Path, image_folder: Path) -> None:
    words = ("--weights", run, "data.num_workers=0", "train.device=cpu", "--dry-run")
    ended = stvit("finetune", "--recipe", "quickstart", *words)
    assert ended.code == 0, ended.err
    assert "best.safetensors; the layers after it are new" in ended.out
    ended = stvit("eval", run, "--data", image_folder)
    assert ended.code == 2
    assert "which has no folder images/validation" in ended.err


def test_a_run_taken_up_again_ends_with_the_same_bits(stvit, scenes: Path, tmp_path: Path) -> None:
    words = [word for word in WORDS if "steps" not in word]
    lengths = (
        "schedule.steps=4",
        "schedule.warmup_steps=1",
        "train.eval_every_steps=4",
        "checkpoint.every_steps=2",
        "checkpoint.keep=9",
    )
    ended = stvit("train", "--recipe", "shapes-upernet", "--data", scenes, "--output", tmp_path / "run", *words, *lengths)
    assert ended.code == 0, ended.err
    whole = (tmp_path / "run" / "last.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    (tmp_path / "run" / "last.safetensors").unlink()
    ended = stvit("train", "--resume", tmp_path / "run")
    assert ended.code == 0
    assert "Resumed after step 2" in ended.err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == whole


def test_numbers_beyond_a_palette(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "white").save(tmp_path / "white.png")
    numbers = np.full((3, 4), 300, dtype=np.uint16)
    numbers[0, 0] = 0
    shares = (ClassShare("many", 300, 11, 11 / 12), ClassShare("void", 0, 1, 1 / 12))
    SegmentationPrediction(tmp_path / "white.png", numbers, shares).draw(tmp_path / "new" / "drawn.png")
    with Image.open(tmp_path / "new" / "drawn-labels.png") as label_map:
        assert np.array_equal(np.array(label_map), numbers)
    with Image.open(tmp_path / "new" / "drawn.png") as overlay:  # enlarged 80 times
        assert overlay.getpixel((0, 0)) == tuple((255 + channel) // 2 for channel in class_colour(0))
        assert overlay.getpixel((300, 200)) == tuple((255 + channel) // 2 for channel in class_colour(300))
