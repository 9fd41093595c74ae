"""Without a C++ compiler and with nothing compiled before, all works by PyTorch and Pillow, and a command says so once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stvit_cli.data import pixels
from stvit_cli.models import kernels

IMAGE = Path(__file__).parents[1] / "images" / "digit-3.png"
SHORT = ["data.image_size=32", "data.num_workers=0", "schedule.steps=1", "schedule.warmup_epochs=0", "train.device=cpu"]
SAID = "no C++ compiler here (c++). The eager form runs instead, slower."


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a new container: no compiler in PATH, an empty cache, nothing loaded by an earlier test."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(kernels, "_loaded", set())
    monkeypatch.setattr(kernels, "_unavailable", {})
    monkeypatch.setattr(pixels, "_loaded", [])
    monkeypatch.setattr(pixels, "_reasons", [])
    assert shutil.which("c++") is None


def test_training_and_prediction_say_it_once(stvit, tmp_path: Path, image_folder: Path) -> None:
    run = tmp_path / "run"
    data = ["--data", image_folder, "data.kind=imagefolder", "train.report=false", "train.global_batch_size=4"]
    trained = stvit("train", "--recipe", "quickstart", "--output", run, *data, *SHORT)
    assert trained.code == 0, trained.err
    assert trained.err.count(SAID) == (1 if kernels.are_faster("cpu") else 0)
    assert trained.err.count("compiler") == trained.err.count(SAID)
    assert not list((tmp_path / "cache").rglob("*.so"))
    predicted = stvit("predict", IMAGE, "--weights", "stvit-nano.digits")
    assert predicted.code == 0
    assert "digit-3.png  3 " in predicted.out
    assert "compiler" not in predicted.err  # it was said in this process
