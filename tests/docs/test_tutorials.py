"""The tutorials: their scripts run on made data and on a user's, and what the pages say of them holds."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import toy
from helpers.label_files import WRITERS
from PIL import Image

import stvit_cli
from stvit_cli.models.weights.file import read_info

ROOT = Path(__file__).parents[2]
EXAMPLES, PAGES = ROOT / "docs" / "examples", ROOT / "docs" / "tutorials"
NAMES = ("classifier", "detector", "segmenter", "backbone", "super-tokens", "many-gpus", "imagenet21k")
SNIPPET = re.compile(r'^--8<-- "(.+?)(?::([\w-]+))?"$', re.MULTILINE)

QUICK = (
    *("schedule.steps=1", "schedule.warmup_epochs=0", "data.num_workers=0", "train.device=cpu", "train.precise_bn_steps=0"),
    *("train.global_batch_size=2", "eval.batch_size=2"),
)
SMALL = {
    "classifier": ("data.image_size=32",),
    "detector": ("detection.short_sides=[64]", "detection.long_side=96"),
    "segmenter": ("data.image_size=64", "segmentation.max_size=[64, 64]"),
}

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script of docs/examples in this process, in an empty folder, and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_script(name: str, *words: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def commands(page: str) -> list[list[str]]:
    """Return the words of each command that a page's ``bash`` blocks give, without the scripts that it shows."""
    blocks = re.findall(r"```bash\n(.*?)```", (PAGES / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [shlex.split(line, comments=True) for line in lines if line and not line.startswith("--8<--")]


def follow(stvit: Any, page: str) -> None:
    """Run the commands of a page that read data and runs: on the run of its script, which has trained as they do."""
    followed = [words for words in commands(page) if words[:2] in (["stvit", "data"], ["stvit", "eval"], ["stvit", "predict"])]
    assert len(followed) >= 3
    for words in followed:
        words = [re.sub(r"/again(?=$|-)", "/run", word) for word in words[1:]]
        ended = stvit(*words)
        assert ended.code == 0, f"{words}: {ended.err}"


def test_classifier(run: Run, stvit: Any, tmp_path: Path) -> None:
    said = run("classifier.py", "--skip-export", *QUICK, *SMALL["classifier"])
    assert names_in(tmp_path / "classifier" / "photos") == ["circle", "square", "star", "triangle"]
    info = read_info(tmp_path / "classifier" / "run" / "best.safetensors")
    assert info.class_names == ("circle", "square", "star", "triangle")
    held_out = int(re.search(r"of (\d+) held-out photos", said)[1])  # type: ignore[index]
    assert 0 < len(names_in(tmp_path / "classifier" / "mistakes")) <= min(held_out, 50)
    mistakes = re.findall(r"^(\w+)/\d{3}-\d\.jpg: (\w+) \(\d+%\), in the folder of (\w+)$", said, re.MULTILINE)
    assert len(mistakes) > 3  # after one step
    assert all(folder == true != guess for folder, guess, true in mistakes)
    follow(stvit, "classifier")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo of an odd size that a camera took upright, as its EXIF orientation says."""
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).resize((171, 93)).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def require_same(run: Run, exported: Path, model: stvit_cli.TrainedModel, photo: Path) -> None:
    name, probability = run("onnx_classifier.py", exported, photo).split()
    (expected,) = model.predict(photo).classes
    assert name == expected.name
    assert float(probability) == pytest.approx(expected.probability, abs=1e-4)


def test_twelve_lines_of_onnxruntime(run: Run, photo: Path, tmp_path: Path) -> None:
    """On a small model of timm, whose export takes less time than an STViT's."""
    pytest.importorskip("onnxruntime")
    info = stvit_cli.WeightsInfo(
        "timm/test_resnet",
        num_classes=3,
        class_names=("ant", "bee", "cat"),
        in_chans=1,
        mean=(0.4,),
        std=(0.2,),
        image_size=64,
        interpolation="bilinear",
    )
    stvit_cli.save_weights(tmp_path / "small.safetensors", stvit_cli.create_model("timm/test_resnet", 3, 1), info)
    model = stvit_cli.load(tmp_path / "small.safetensors", device="cpu")
    model.export(tmp_path / "small.onnx")
    require_same(run, tmp_path / "small.onnx", model, photo)


def test_the_lines_are_twelve_and_import_three_packages() -> None:
    (shown,) = re.findall(r"\[start:lines\]\n(.*?)# --8<--", (EXAMPLES / "onnx_classifier.py").read_text(), re.DOTALL)
    imports = [node for node in ast.walk(ast.parse(shown)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert names == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    assert len(ast.parse(shown).body) - len(imports) == 12


@pytest.mark.slow
def test_classifier_with_its_onnx_file(run: Run, photo: Path, tmp_path: Path) -> None:
    run("classifier.py", *QUICK, *SMALL["classifier"])
    model = stvit_cli.load(tmp_path / "classifier" / "run", device="cpu")
    require_same(run, tmp_path / "classifier" / "model.onnx", model, photo)


def test_detector_on_coco_boxes(run: Run, stvit: Any, tmp_path: Path) -> None:
    said = run("detector.py", *QUICK, *SMALL["detector"])
    assert "boxes without masks" in said
    assert re.search(r"box AP50 [\d.]+ % on 8 held-out images", said)
    assert "objects {'circle': 5, 'square': 8, 'triangle': 7, 'star': 9}" in said
    assert re.search(r"^(circle|square|triangle|star) \d+% at x \d+ to \d+, y \d+ to \d+$", said, re.MULTILINE)
    assert len(names_in(tmp_path / "detector" / "mistakes")) == 8
    with Image.open(tmp_path / "detector" / "prediction.png") as drawn:
        assert max(drawn.size) >= 200
    follow(stvit, "detector")
    assert (tmp_path / "detector" / "detections.csv").read_text().count("\n") > 1


def test_detector_on_a_yolo_folder(run: Run, tmp_path: Path) -> None:
    said = run("detector.py", "--data", WRITERS["yolo"](tmp_path / "mine"), *QUICK, *SMALL["detector"])
    assert "YOLO" in said
    assert read_info(tmp_path / "detector" / "run" / "best.safetensors").class_names == ("cat", "dog")


def test_segmenter(run: Run, stvit: Any, tmp_path: Path) -> None:
    said = run("segmenter.py", *QUICK, *SMALL["segmenter"])
    assert re.search(r"^train: background \d", said, re.MULTILINE)
    assert re.search(r"mIoU [\d.]+ % on \d+ held-out images", said)
    with Image.open(tmp_path / "segmenter" / "mask.png") as mask:
        assert max(mask.size) == 150
        assert mask.getextrema()[1] <= 4
    assert {"prediction.png", "prediction-labels.png"} <= set(names_in(tmp_path / "segmenter"))
    follow(stvit, "segmenter")


def test_backbone(run: Run) -> None:
    said = run("backbone.py")
    assert "missing: none" in said
    assert [f"stride {stride}:" in said for stride in (4, 8, 16, 32)] == [True] * 4
    assert "'loss_classifier'" in said
    assert "Unet (2, 2, 96, 128)" in said
    pytest.importorskip("transformers")
    assert "TimmBackbone [(2, " in said


def test_super_tokens(run: Run, tmp_path: Path) -> None:
    said = run("super_tokens.py")
    layer = re.search(r"layers with super tokens: (\S+)", said)[1]  # type: ignore[index]
    with np.load(tmp_path / "super-tokens" / "arrays.npz") as arrays:
        np.testing.assert_allclose(arrays[f"{layer}.association"].sum(axis=2), 1, atol=1e-5)
        shown = set(re.findall(r"`LAYER\.(\w+)`", (PAGES / "super-tokens.md").read_text()))
        assert shown <= {key.rpartition(".")[2] for key in arrays}
    assert (tmp_path / "super-tokens" / "super-tokens.png").stat().st_size > 10_000


def test_imagenet21k(run: Run, tmp_path: Path) -> None:
    said = run("imagenet21k.py")
    root = tmp_path / "imagenet21k"
    assert re.search(r"40 images in \d+ shards; problems: none", said)
    assert read_info(root / "run" / "best.safetensors").num_classes == 21841
    assert read_info(root / "run-1k" / "best.safetensors").class_names == ("n01440764", "n02123045")


def torchrun_words(folder: Path, *words: str, **variables: str) -> list[str]:
    """Return the words with which many_gpus.sh calls torchrun."""
    (folder / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "torchrun").chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    command = ["bash", str(EXAMPLES / "many_gpus.sh"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["--recipe", "quickstart", "--output", "runs/many-gpus"]),
        (
            {"DATA": "my images"},
            ["--recipe", "deit300", "--data", "my images", "--model", "stvit-s", "--output", "runs/many-gpus"],
        ),
        ({"DATA": "D", "MODEL": "stvit-b", "RUN": "there", "GPUS": "2"}, ["--resume", "there"]),
    ],
)
def test_many_gpus_starts_and_resumes(given: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "recipe.yaml").touch()
    start = ["--standalone", "--nproc-per-node", given.get("GPUS", "8"), "-m", "stvit_cli", "train"]
    assert torchrun_words(tmp_path, "a=b c", **given) == [*start, *expected, "a=b c"]


TWO = {"GPUS": "2", "RECIPE": "quickstart", "MODEL": "stvit-nano"}
OF_TWO = (*QUICK, "data.image_size=32", "train.report=false")


def test_many_gpus_trains_by_two_processes(image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Forked ones, joined as torchrun joins them: it would import torch three times."""
    from stvit_cli.cli import main

    words = torchrun_words(tmp_path, *OF_TWO, **TWO, DATA=str(image_folder), RUN=str(tmp_path / "run"))
    ended = toy.start(lambda: sys.exit(main(words[words.index("train") :])), tmp_path / "processes", int(words[2]))()
    assert [process.code for process in ended] == [0, 0]
    assert "2 processes" in capfd.readouterr().err
    assert (tmp_path / "run" / "best.safetensors").is_file()


@pytest.mark.slow
def test_many_gpus_by_torchrun(image_folder: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | TWO | {"DATA": str(image_folder), "RUN": "runs/two", "PYTHONPATH": str(ROOT), "PATH": path}
    command = ["bash", str(EXAMPLES / "many_gpus.sh"), *OF_TWO]
    logged = []
    for _ in range(2):  # the second call resumes what is finished
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        logged.append((tmp_path / "runs" / "two" / "metrics.jsonl").read_bytes())
    assert logged[0] == logged[1]


@pytest.mark.parametrize("page", NAMES)
def test_pages_show_all_of_their_scripts(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    shown = SNIPPET.findall(text)
    assert text.count("--8<--") == len(shown) > 0
    for file, section in shown:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not section or source.count(f"[start:{section}]") == source.count(f"[end:{section}]") == 1
    for file in {file for file, section in shown if section}:
        sections = set(re.findall(r"\[start:([\w-]+)\]", (ROOT / file).read_text(encoding="utf-8")))
        assert sections == {section for other, section in shown if other == file}, "a part of the script is not shown"
