"""What version 0.1.0 saved is resumed, evaluated and used for prediction by the code of today. See tests/golden/README.md."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stvit_cli import open_trained, tasks
from stvit_cli.models.weights.info import parse

SAVED = Path(__file__).parents[1] / "golden" / "saved_by_0_1"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with tarfile.open(SAVED / "run.tar.xz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def evaluations(run_dir: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if row["kind"] == "eval"}


def test_old_run_resumes_to_the_weights_it_had_reached(stvit, run_dir: Path) -> None:
    names = ("last.safetensors", "last_ema.safetensors", "best.safetensors")
    reached, before = {name: load_file(run_dir / name) for name in names}, evaluations(run_dir)
    started = load_file(run_dir / "checkpoints" / "step_00000004" / "model.safetensors")
    ended = stvit("train", "--resume", run_dir)
    assert ended.code == 0, ended.err
    assert "Resumed after step 4" in ended.err
    assert "Warning" not in ended.err
    for name in names:
        tensors = load_file(run_dir / name)
        assert tensors.keys() == reached[name].keys()
        # Another machine may round otherwise.
        assert all(torch.allclose(tensors[key].float(), reached[name][key].float(), atol=1e-5) for key in tensors)
    assert (load_file(run_dir / "last.safetensors")["head.weight"] - started["head.weight"]).abs().max() > 1e-3
    for key in ("top1", "loss", "ema_top1", "ema_loss"):
        assert evaluations(run_dir)[8][key] == pytest.approx(before[8][key], rel=1e-4)


def test_old_run_evaluates_to_what_it_had_recorded(stvit, run_dir: Path) -> None:
    ended = stvit("eval", run_dir, "--json", "-")
    assert ended.code == 0, ended.err
    figures, recorded = json.loads(ended.out), evaluations(run_dir)[4]  # the best of it was the moving average after step 4
    for key in ("num_images", "top1", "loss"):
        assert figures[key] == pytest.approx(recorded["num_images" if key == "num_images" else f"ema_{key}"], rel=1e-4)


def test_old_run_with_channel_means_in_bytes_evaluates(stvit, run_dir: Path) -> None:
    """Version 0.1.0 accepted means on the scale of 0 to 255, which a new recipe may not have."""
    file = run_dir / "recipe.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.strip().startswith(("mean:", "std:"))]
    lines.insert(lines.index("data:") + 1, "  mean: [123.0, 117.0, 104.0]\n  std: [58.0, 57.0, 57.0]")
    file.write_text("\n".join(lines) + "\n")
    ended = stvit("eval", run_dir)
    assert ended.code == 0, ended.err
    refused = stvit("recipes", "check", file.rename(run_dir / "copy.yaml"))
    assert refused.code == 2
    assert "on the scale of 0 to 255" in refused.err


def test_old_run_predicts(stvit, run_dir: Path) -> None:
    ended = stvit("predict", run_dir / "samples" / "digit-3.png", "--weights", run_dir, "--json", "-")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)[0]["classes"][0]["name"] == "3"


@pytest.mark.parametrize("name", ["shapes-upernet", "shapes-mask-rcnn", "shapes-cascade-mask-rcnn"])
def test_old_metadata_of_segmenters_and_detectors_is_read(stvit, tmp_path: Path, name: str) -> None:
    text = (SAVED / f"{name}.json").read_text().strip()
    info = parse(text)
    save_file(tasks.create_from(info).state_dict(), tmp_path / "old.safetensors", metadata={"stvit": text})
    assert open_trained(tmp_path / "old.safetensors").info == info
    written = json.loads(info.to_json())
    assert all(written[key] == value for key, value in json.loads(text).items())
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "grey.png")
    ended = stvit("predict", tmp_path / "grey.png", "--weights", tmp_path / "old.safetensors", "--json", "-")
    assert ended.code == 0, ended.err
    (result,) = json.loads(ended.out)
    assert result["task"] == info.task
    assert (result["width"], result["height"]) == (64, 64)
