"""What a command will write is tried before the work begins: nothing is computed for a file that cannot be."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from stvit_cli import create_model
from stvit_cli.models.weights.file import WeightsInfo, save_weights
from stvit_cli.utils import files
from stvit_cli.utils.files import require_writable_folder, try_file

LONG = "x" * 300


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Image.new("RGB", (40, 40)).save("a.png")


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["predict", "a.png", "--weights", "none", "--output", "file"], "file cannot be written: Not a directory"),
        (["predict", "a.png", "--weights", "none", "--output", "file/out"], "file/out cannot be written: Not a directory"),
        (["predict", "a.png", "--weights", "none", "--output", "/proc/out"], "/proc/out cannot be written: "),
        (["predict", "a.png", "--weights", "none", "--output", LONG], "cannot be written: File name too long"),
        (["predict", "a.png", "--weights", "none", "--json", f"{LONG}.json"], "cannot be written: File name too long"),
        (["predict", "a.png", "--weights", "none", "--json", "/proc/x.json"], "--json /proc/x.json: cannot be written: "),
        (["export", "none", "/proc/x.onnx"], "/proc/x.onnx cannot be written: "),
        (["export", "none", f"{LONG}.onnx"], "cannot be written: File name too long"),
        (["convert", "none", "/proc/x.safetensors"], "/proc/x.safetensors cannot be written: "),
        (["train", "--recipe", "quickstart", "--output", LONG], "cannot be written: File name too long"),
        (["train", "--recipe", "quickstart", "--output", f"new/{LONG}"], "cannot be written: File name too long"),
        (["visualize-associations", "a.png", "--output", "file"], "file cannot be written: Not a directory"),
        (["visualize-associations", "a.png", "--arrays", "/proc/x.npz"], "/proc/x.npz cannot be written: "),
        (["isotropic-ablation", "--output", "file/out"], "file/out cannot be written: Not a directory"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(stvit, words: list[str], reason: str) -> None:
    before = sorted(Path().rglob("*"))
    ended = stvit(*words)
    assert ended.code == 2, ended.err
    assert reason in ended.err, ended.err
    assert len(ended.err.splitlines()) <= 6, ended.err
    assert sorted(Path().rglob("*")) == before
    assert Path("file").read_text() == "mine"


def test_a_full_disk_is_found_by_the_trial(stvit) -> None:
    with disk_of(100):
        for words in (["--output", "out"], ["--json", "x.json"]):
            ended = stvit("predict", "a.png", "--weights", "none", *words)
            assert ended.code == 2
            assert "cannot be written: File too large" in ended.err
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "file"]


def test_a_trial_leaves_everything_as_it_was(tmp_path: Path) -> None:
    try_file(Path("file"))
    try_file(Path("new"))
    Path("link").symlink_to("target")
    try_file(Path("link"))
    require_writable_folder(Path("deep/deeper"))
    require_writable_folder(tmp_path)
    os.mkfifo("pipe")
    try_file(Path("pipe"))  # would wait for a reader
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "file", "link", "pipe"]
    assert Path("file").read_text() == "mine"


def test_a_read_only_folder_is_found(stvit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated where files are made: to root no permission is refused."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    ended = stvit("predict", "a.png", "--weights", "none", "--output", "out")
    assert ended.code == 2
    assert "out cannot be written: Read-only file system" in ended.err
    assert not Path("out").exists()


@pytest.mark.parametrize("words", [["convert", "w.safetensors"], ["export", "w.safetensors"]])
def test_a_disk_that_is_full_in_the_end_leaves_no_half_file(stvit, words: list[str]) -> None:
    torch.manual_seed(0)
    save_weights("w.safetensors", create_model("stvit-nano", 3), WeightsInfo("stvit-nano", num_classes=3))
    with disk_of(100_000):
        ended = stvit(*words, "new.safetensors")
    assert ended.code == 2, ended.err
    assert "new.safetensors cannot be written: " in ended.err, ended.err
    assert len([line for line in ended.err.splitlines() if line.startswith("stvit: ")]) == 1
    assert len(ended.err.splitlines()) <= 2  # export says what it is doing
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "file", "w.safetensors"]


def test_a_report_is_whole_or_not_there(stvit) -> None:
    Path("report.json").write_text("the last one")
    with disk_of(500):
        ended = stvit("recipes", "list", "--json", "report.json")
    assert ended.code == 2
    assert "--json report.json: cannot be written: File too large" in ended.err
    assert Path("report.json").read_text() == "the last one"
    assert stvit("recipes", "list", "--json", "report.json").code == 0
    assert json.loads(Path("report.json").read_text())


def test_images_that_cannot_be_drawn_are_named_and_all_are_answered(
    stvit, short_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: Image.Image, target: Path) -> None:
        with files.writing(target, advice=""):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("stvit_cli.tasks.classification.predict.save_png", fail)
    ended = stvit("predict", "a.png", "a.png", "--weights", short_run, "--output", "out", "--json", "found.json")
    assert ended.code == 2
    assert ended.err.startswith("stvit: 2 of 2 images could not be drawn:\nout/00000-a.png cannot be written: No space left")
    assert len(json.loads(Path("found.json").read_text())) == 2
    assert len(ended.out.splitlines()) == 2
