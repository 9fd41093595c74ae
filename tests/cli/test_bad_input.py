"""What a person can get wrong, through the real command line: exit code 2, a few lines, nothing written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import bad_files
from PIL import Image

from stvit_cli.data import images


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(stvit) -> Callable[..., str]:
    """Run a command that must be refused, and return what it says; it must leave the working directory as it was."""

    def run(*words: str | Path) -> str:
        before = sorted(Path().rglob("*"))
        ended = stvit(*words)
        assert ended.code == 2, ended
        assert 1 <= len(ended.err.splitlines()) <= 6, ended.err
        assert "Traceback" not in ended.err
        assert sorted(Path().rglob("*")) == before
        return ended.err

    return run


def images_in(folder: Path, count: int = 4) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((32, 32, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Which data? Give --data FOLDER, whose kind is found out, or --resume RUN_DIR"),
        (["--recipe", "quikstart"], "There is no recipe named 'quikstart'. Did you mean 'quickstart'?"),
        (["--recipe", "ours.yaml"], "There is no recipe file ours.yaml"),
        (["--recipe", "list.yaml"], "found a list, expected a recipe"),
        (["--recipe", "empty.yaml"], "found nothing, expected a recipe"),
        (["--recipe", "typed.yaml"], "line 2, schedule.epochs: found many (text), expected a whole number"),
        (["--recipe", "unknown.yaml"], "schedule.epoch: there is no such key. Did you mean 'schedule.epochs'?"),
        (["--recipe", "doubled.yaml"], "line 3, column 3: the key schedule.epochs is there twice"),
        (["--recipe", "folder.yaml"], "is a folder"),
    ],
)
def test_unusable_recipe_is_refused(refused: Callable[..., str], words: list[str], said: str) -> None:
    bad_files.write_recipes()
    assert said in refused("train", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lrr=1"], "There is no key 'optim.lrr'"),
        (["optim.lr=fast"], "optim.lr: found fast (text)"),
        (["--model", "stvit-x"], "no model 'stvit-x'"),
        (["--data", "a", "data.dir=b"], "data.dir is given twice"),
        (["--data", "a"], "a: there is no such folder or file"),
        (["--data", "a", "data.kind=digits"], "data.kind is digits, which needs no folder"),
    ],
)
def test_wrong_override_is_refused(refused: Callable[..., str], words: list[str], said: str) -> None:
    assert said in refused("train", "--recipe", "quickstart", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "data.dir is not set"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "empty"], "empty"),
        (["--data", "file"], "file"),
        (["--data", "hollow"], "dog"),
        (["--data", "differing"], "dgo"),
    ],
)
def test_unusable_image_folder_is_refused(refused: Callable[..., str], words: list[str], said: str) -> None:
    bad_files.write_image_folders()
    assert said in refused("train", "--recipe", "quickstart", "data.kind=imagefolder", *words)


def test_unusable_output_directory_is_refused(refused: Callable[..., str], short_run: Path) -> None:
    train = ["train", "--recipe", "quickstart", "--output"]
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    assert "full is not empty; expected a new or empty directory" in refused(*train, "full")
    assert "file is a file; expected a directory" in refused(*train, "file")
    assert "cannot be written" in refused(*train, "/proc/run")
    assert "cannot be written" in refused(*train, "file/run")
    assert f"To resume the run in it: stvit train --resume {shlex.quote(str(short_run))}" in refused(*train, short_run)
    assert Path("full/notes.txt").read_text() == "mine"


def test_output_cannot_be_left_to_chance_with_several_processes(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert "must be named" in refused("train", "--recipe", "quickstart")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "nowhere"], "there is no such directory"),
        (["eval", "bare"], "it holds no recipe.yaml"),
        (["train", "--resume", "nowhere"], "there is no such directory"),
        (["train", "--resume", "bare"], "it holds no recipe.yaml"),
        (["train", "--resume", "RUN", "--output", "x"], "leave --output out"),
        (["eval", "broken"], "a folder without weights"),
        (["eval"], "Give either the directory of a run"),
        (["eval", "RUN", "--weights", "x"], "Give either the directory of a run"),
        (["eval", "--weights", "RUN/best.safetensors"], "--data DIR"),
    ],
)
def test_unusable_run_is_refused(refused: Callable[..., str], short_run: Path, words: list[str], said: str) -> None:
    Path("bare").mkdir()
    shutil.copytree(short_run, "broken")
    for path in Path("broken").glob("*.safetensors"):
        path.unlink()
    assert said in refused(*(word.replace("RUN", str(short_run)) for word in words))


def test_unusable_weights_are_refused(refused: Callable[..., str], short_run: Path, image_folder: Path) -> None:
    image = image_folder / "val" / "red" / "0.png"
    good = (short_run / "best.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(good[: len(good) // 2])
    Path("zero.safetensors").write_bytes(b"")
    Path("zero.pth").write_bytes(b"")
    Path("text.pth").write_text("these are no weights")
    for name in ("cut.safetensors", "zero.safetensors", "zero.pth", "text.pth", "missing.safetensors"):
        assert name in refused("predict", image, "--weights", name)
    assert "a folder without weights" in refused("predict", image, "--weights", image_folder)
    assert "holds weights of stvit-nano, but stvit-s was asked for" in refused(
        *("eval", "--weights", short_run / "best.safetensors", "--model", "stvit-s", "--data", image_folder)
    )
    finetune = ["finetune", "--recipe", "quickstart", "--weights"]
    assert "missing.pth" in refused(*finetune, "missing.pth")
    assert "not the weights of this model" in refused(*finetune, short_run, "--model", "stvit-s")


def test_unknown_classes_are_refused(refused: Callable[..., str], short_run: Path) -> None:
    images_in(Path("other/red"))
    images_in(Path("other/green"))
    assert "green" in refused("eval", short_run, "--data", "other")


def test_unreadable_images_are_named(refused: Callable[..., str], stvit, short_run: Path) -> None:
    images_in(Path("good"), count=1)
    content = Path("good/0.png").read_bytes()
    Path("text.jpg").write_text("this is text")
    Path("zero.png").write_bytes(b"")
    Path("cut.png").write_bytes(content[:-40])
    Path("bare").mkdir()
    predict = ["predict", "--weights", short_run]
    assert "missing.png: there is no such file" in refused(*predict, "missing.png")
    assert "no image in this folder" in refused(*predict, "bare")
    for name in ("text.jpg", "zero.png", "cut.png"):
        assert f"1 of 1 images could not be read:\n{name}: " in refused(*predict, name)
    mixed = stvit(*predict, "text.jpg", "good/0.png")
    assert mixed.code == 2
    assert mixed.out.startswith("good/0.png  ")
    assert "1 of 2 images could not be read:\ntext.jpg" in mixed.err


def test_one_bad_image_never_ends_the_others(stvit, short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "all kinds"
    folder.mkdir()
    Image.new("RGB", (1, 20_000)).save(folder / "thin.png")
    failures = {b"large": MemoryError(), b"odd": KeyError("of a decoder")}
    for name in failures:  # what follows the end of a PNG is not read
        (folder / f"{name.decode()}.png").write_bytes((folder / "thin.png").read_bytes() + name)
    os.mkfifo(folder / "pipe.png")
    as_it_is = images._decode

    def decode(content: bytes) -> Image.Image:
        for name, failure in failures.items():
            if content.endswith(name):
                raise failure
        return as_it_is(content)

    monkeypatch.setattr(images, "_decode", decode)
    names = ("large", "odd", "pipe", "thin")
    words = [folder / f"{name}.png" for name in names]
    ended = stvit("predict", *words, "--weights", short_run, "--json", "found.json", "--output", "drawn")
    assert ended.code == 2
    assert ended.out.startswith(f"{folder / 'thin.png'}  ")
    assert ended.err.startswith("stvit: 3 of 4 images could not be read:\n")
    assert len(ended.err.splitlines()) == 4
    for name, reason in (("large", "not enough memory"), ("odd", "of a decoder"), ("pipe", "a named pipe")):
        assert any(f"{name}.png: " in line and reason in line for line in ended.err.splitlines()), ended.err
    found = json.loads(Path("found.json").read_text())
    assert [("error" in row, Path(row["file"]).stem) for row in found] == [(name != "thin", name) for name in names]
    assert [path.name for path in Path("drawn").iterdir()] == ["00003-thin.png"]


def test_unusual_image_modes_are_read(stvit, short_run: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.convert("CMYK").save("cmyk.jpg")
    image.convert("P").save("palette.png")
    image.convert("L").save("grey.png")
    image.convert("RGBA").save("transparent.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save("deep.png")
    ended = stvit("predict", "cmyk.jpg", "palette.png", "grey.png", "transparent.png", "deep.png", "--weights", short_run)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 5


def test_a_report_that_cannot_be_written_is_told_before_the_work(refused: Callable[..., str]) -> None:
    Path("folder").mkdir()
    assert "--json folder: cannot be written" in refused("train", "--recipe", "quickstart", "--json", "folder")
    assert "--json no/figures.json: cannot be written" in refused("train", "--recipe", "quickstart", "--json", "no/figures.json")
