"""Tables, IDX files and timm's data sets through the real command line: a few steps, an evaluation, a prediction."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from conftest import Stvit
from PIL import Image
from pyarrow import parquet

TINY = [
    *("data.image_size=32", "data.num_workers=0", "augment.crop_scale=[0.8,1]", "train.global_batch_size=8"),
    *("train.device=cpu", "train.kernels=false", "schedule.epochs=1", "schedule.warmup_epochs=0"),
]


def noise(*channels: int) -> Image.Image:
    pixels = np.random.default_rng(sum(channels)).integers(0, 120, (32, 32, 3), dtype=np.uint8)
    for channel in channels:
        pixels[..., channel] += 130
    return Image.fromarray(pixels)


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def make_csv(root: Path) -> list[str]:
    rows = [["file_name", "label"]]
    for number in range(16):
        noise(2 * (number % 2)).save(root / f"{number}.png")
        rows.append([f"{number}.png", ("red", "blue")[number % 2]])
    write_csv(root / "metadata.csv", rows)
    return ["data.kind=table"]


def make_parquet(root: Path) -> list[str]:
    images = []
    for number in range(16):
        buffer = io.BytesIO()
        noise(2 * (number % 2)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    (root / "data").mkdir()
    table = arrow.table({"image": images, "label": [number % 2 for number in range(16)]})
    parquet.write_table(table, root / "data" / "train-00000-of-00001.parquet")
    (root / "names.txt").write_text("red\nblue\n")
    return ["data.kind=table", "data.class_names_file=names.txt"]


def make_several(root: Path) -> list[str]:
    rows = [["path", "labels"]]
    for number in range(16):
        channels = [channel for channel in range(3) if number >> channel & 1]
        noise(*channels).save(root / f"{number}.png")
        rows.append([f"{number}.png", ";".join(("red", "green", "blue")[channel] for channel in channels)])
    write_csv(root / "labels.csv", rows)
    return ["data.kind=table", "data.multi_label=true", "augment.mixup=0.2"]


def make_idx(root: Path) -> list[str]:
    pixels = np.zeros((16, 28, 28), dtype=np.uint8)
    pixels[1::2, :14] = 255
    for what, array in (("images", pixels), ("labels", np.arange(16, dtype=np.uint8) % 2)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
        (root / f"train-{what}-idx{array.ndim}-ubyte").write_bytes(header + array.tobytes())
    (root / "names.txt").write_text("dark\nhalf\n")
    return ["data.kind=idx", "data.class_names_file=names.txt", "model.in_chans=1", "data.mean=[0.5]", "data.std=[0.5]"]


def make_timm(root: Path) -> list[str]:
    for number in range(16):
        folder = root / ("red", "blue")[number % 2]
        folder.mkdir(exist_ok=True)
        noise(2 * (number % 2)).save(folder / f"{number}.png")
    return ["data.kind=timm", "data.name=torch/image_folder"]


MAKERS = {"csv": make_csv, "parquet": make_parquet, "several": make_several, "idx": make_idx, "timm": make_timm}


@pytest.mark.parametrize("layout", MAKERS)
def test_a_layout_is_trained_evaluated_and_predicted(stvit: Stvit, tmp_path: Path, layout: str) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    words = MAKERS[layout](data)
    trained = stvit(
        "train", "--recipe", "quickstart", "--data", data, "--output", run, *words, *TINY, "--json", tmp_path / "t.json"
    )
    assert trained.code == 0, trained.err
    evaluated = stvit("eval", run, "--json", tmp_path / "e.json")
    assert evaluated.code == 0, evaluated.err
    metrics = json.loads((tmp_path / "e.json").read_text())
    assert metrics["num_images"] in range(2, 5)
    assert ("map" in metrics) == (layout == "several")
    noise(0).save(tmp_path / "some.png")
    predicted = stvit("predict", tmp_path / "some.png", "--weights", run, "--score-threshold", "0", "--json", tmp_path / "p.json")
    assert predicted.code == 0, predicted.err
    names = {score["name"] for score in json.loads((tmp_path / "p.json").read_text())[0]["classes"]}
    known = {"several": {"red", "green", "blue"}, "idx": {"dark", "half"}}.get(layout, {"red", "blue"})
    assert names == known if layout == "several" else names < known
    if layout == "csv":
        everything = stvit("eval", run, "--data", data / "metadata.csv", "--json", "-")
        assert json.loads(everything.out)["num_images"] == 16
        everything = stvit("eval", "--weights", run / "best.safetensors", "--data", data, "--json", "-")
        assert json.loads(everything.out)["num_images"] == 16
    if layout == "several":
        everything = stvit("eval", "--weights", run / "best.safetensors", "--data", data, "--json", "-")
        assert "f1_macro" in json.loads(everything.out)


def test_faults_are_refused_with_exit_code_2(stvit: Stvit, tmp_path: Path) -> None:
    make_csv(tmp_path)
    (tmp_path / "3.png").unlink()
    refused = stvit("train", "--recipe", "quickstart", "data.kind=table", "--data", tmp_path, *TINY)
    assert refused.code == 2
    assert "metadata.csv, line 5" in refused.err
    refused = stvit("train", "--recipe", "quickstart", "data.kind=imagefolder", "data.table=x.csv", "--data", tmp_path, *TINY)
    assert refused.code == 2
    assert "data.table: found x.csv, but data.kind is imagefolder; it belongs to table" in refused.err
