"""`stvit weights`, and the tool that puts a run's weights into the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.scripts import load_script

from stvit_cli import UserError
from stvit_cli.models.weights.file import read_info
from stvit_cli.tasks.loading import open_trained
from stvit_cli.utils import packaged_weights
from stvit_cli.utils.views import Views

NANO = "stvit-nano.digits"


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_script("tools/package_weights.py")


def test_commands_list_and_show_them(stvit, tmp_path: Path) -> None:
    ended = stvit("weights", "list", "--json", tmp_path / "list.json")
    assert ended.code == 0
    assert NANO in ended.out
    assert NANO in (tmp_path / "list.json").read_text()
    shown = stvit("weights", "show", NANO)
    assert shown.out.startswith("---\nlicense: mit\n")
    refused = stvit("weights", "show", "stvit-nano.dgits")
    assert refused.code == 2
    assert "Did you mean 'stvit-nano.digits'?\nPackaged weights: " in refused.err


def test_a_run_is_packaged(tmp_path: Path, short_run: Path, tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tool.package(short_run, "stvit-nano.shapes-toy", tmp_path)
    assert path == tmp_path / "stvit-nano.shapes-toy.safetensors"
    listed = packaged_weights._read("stvit-nano.shapes-toy", path)
    assert (listed.images, listed.metric, listed.data_licence) == ("validation", "top1", "MIT")
    assert read_info(path).licence == "mit"
    for name, said in (("stvit-s.shapes", "expected stvit-nano.DATA"), ("stvit-nano.photos", "DATA begins with one of")):
        with pytest.raises(UserError, match=said):
            tool.package(short_run, name, tmp_path)
    monkeypatch.setattr(tool, "LIMIT", 3_000_000)
    assert tool.package(short_run, "stvit-nano.shapes-toy", tmp_path).stat().st_size < 3_000_000
    assert "stored in fp16" in (tmp_path / "stvit-nano.shapes-toy.md").read_text()
    assert open_trained(path).info.num_classes == 2
    monkeypatch.setattr(tool, "LIMIT", 1_000_000)
    with pytest.raises(UserError, match="at most 1, in fp16"):
        tool.package(short_run, "stvit-nano.shapes-toy", tmp_path)


def test_the_test_set_counts_where_there_was_one(tmp_path: Path, short_run: Path, tool: Any) -> None:
    run, name = tmp_path / "run", "stvit-nano.fashion-mnist"
    shutil.copytree(short_run, run)
    row = {"kind": "test", "step": 16, "split": "t10k", "weights": "ema", "weights_step": 16, "hflip": True, "translate": 1}
    row |= {"num_images": 10000, "top1": 95.25, "top5": 99.9, "loss": 0.2, "seconds": 1.5}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    listed = packaged_weights._read(name, tool.package(run, name, tmp_path))
    assert (listed.images, listed.num_images, listed.value, listed.views) == ("test", 10000, 95.25, Views(True, 1))
    card = listed.card.read_text()
    assert "On the 10000 test images, evaluated once" in card
    assert "averaged with mirror images and images moved by 1 pixel" in card
    assert "seconds" not in card
    results = packaged_weights.read_card_head(listed.card)["model-index"][0]["results"]
    assert [result["dataset"]["name"] for result in results] == ["Fashion-MNIST, validation", "Fashion-MNIST, test"]
