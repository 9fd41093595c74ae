"""What holds for 14.2 million entries, on 20 000: opened from the cache without reading a shard, planned by a dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.made_index import make_index
from helpers.shards import jpeg

from stvit_cli.data.shards import index_builder
from stvit_cli.data.shards.index import open_shards
from stvit_cli.data.shards.storage import list_shards


def test_a_dry_run_plans_imagenet_21k_from_a_made_index(stvit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes = {"images": 20_000, "shards": 4, "classes": 21_841, "val_images": 50}
    path = make_index(tmp_path / "made", [jpeg(0, 40), jpeg(9, 48)], **sizes)
    assert path.stat().st_size < 20_000 * 12 + 1_000_000
    monkeypatch.setattr(index_builder, "scan", None)  # no shard is read
    index = open_shards([file for file in list_shards(tmp_path / "made") if "train" in file.name])
    assert len(index) == 20_000
    assert index.read(12_345)[:2] == b"\xff\xd8"
    words = ["model.name=stvit-nano", "data.kind=shards", "data.image_size=32", "data.num_workers=0", "train.kernels=false"]
    words += ["train.precision=fp32", "train.global_batch_size=8", "train.device=cpu"]
    ended = stvit(
        "train", "--recipe", "imagenet21k90", "--data", tmp_path / "made", "--dry-run", "--json", tmp_path / "j", *words
    )
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "j").read_text())
    assert (found["steps_per_epoch"], found["steps"]) == (2500, 90 * 2500)
    assert found["head"]["classes"] == 21_841
    assert found["head"]["params"] == (found["head"]["params"] // 21_841) * 21_841
    assert found["notes"][0] == "20000 images to train on, 50 to evaluate, 21841 classes."
