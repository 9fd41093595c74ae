"""Parquet files with images, as the Hugging Face Hub has them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.shards import jpeg

from stvit_cli.data.shards import open_shards
from stvit_cli.data.shards.find import ShardOptions, find_shard_images
from stvit_cli.errors import UserError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, labels: list[Any], column: str = "image", names: list[str] | None = None, first: int = 0) -> None:
    images = [{"bytes": jpeg(first + row), "path": f"{row}.jpg"} for row in range(len(labels))]
    table = arrow.table({column: images, "label": labels})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=4)


def test_rows_of_any_row_group_in_any_order(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"data/train-{number:05d}-of-00002.parquet", [0, 1, 2] * 3, names=["a", "b", "c"], first=9 * number)
    write(tmp_path / "data/validation-00000-of-00001.parquet", [2, 0], first=50)
    write(tmp_path / "data/test-00000-of-00001.parquet", [-1, -1])
    train, val = find_shard_images(ShardOptions(str(tmp_path)))
    assert (len(train), len(val), train.class_names, val.class_names) == (18, 2, ("a", "b", "c"), ("a", "b", "c"))
    assert [train.read(row) for row in (17, 0, 9, 5, 17)] == [jpeg(row) for row in (17, 0, 9, 5, 17)]
    assert train.relative_path(10) == "data/train-00001-of-00002.parquet:1"
    assert train.all_targets().tolist() == [0, 1, 2] * 6
    assert val.open(0).size == (8, 8)


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["dog", "cat", None], column="photo")
    index = open_shards(tmp_path / "a.parquet")
    assert (index.class_names, index.labels().tolist(), index.read(1)) == (("cat", "dog"), [1, 0, -1], jpeg(1))
    assert open_shards(tmp_path / "a.parquet", image_column="photo").read(2) == jpeg(2)
    with pytest.raises(UserError, match=r"data\.path_column: .* has no column nope of images; found photo"):
        open_shards(tmp_path / "a.parquet", image_column="nope")
    with pytest.raises(UserError, match=r"data\.label_column: .* has no column lable; found photo, label\. Did you mean 'label'"):
        open_shards(tmp_path / "a.parquet", label_column="lable")


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [0, 1])
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.parquet: it cannot be read as Parquet"):
        open_shards(tmp_path)


def test_files_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a/train-0.parquet", [0, 1], names=["cat", "dog"])
    write(tmp_path / "a/train-1.parquet", [0, 1], names=["cat", "emu"])
    with pytest.raises(UserError, match=r"Class 1 is dog in train-0\.parquet, but emu in train-1\.parquet"):
        open_shards(tmp_path / "a")
    write(tmp_path / "b/train-0.parquet", [0, 1], names=["cat", "dog"])
    write(tmp_path / "b/val-0.parquet", [0, 1], names=["dog", "cat"])
    with pytest.raises(UserError, match=r"Class 0 is cat in train-0\.parquet, but dog in val-0\.parquet"):
        find_shard_images(ShardOptions(str(tmp_path / "b")))
    write(tmp_path / "b/val-0.parquet", [0, 1], names=["cat"])
    with pytest.raises(UserError, match=r"Class 1 is dog in train-0\.parquet, but none in val-0"):
        find_shard_images(ShardOptions(str(tmp_path / "b")))


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [0, 1])
    before = open_shards(tmp_path)
    assert before.read(1) == jpeg(1)
    write(tmp_path / "new.parquet", [0, 1], first=50)
    (tmp_path / "new.parquet").replace(tmp_path / "a.parquet")
    assert open_shards(tmp_path).read(1) == jpeg(51)


def test_another_column_is_not_taken_from_the_rows_of_the_first(tmp_path: Path) -> None:
    images = {name: [{"bytes": jpeg(first), "path": ""}] for name, first in (("image", 1), ("small", 2))}
    parquet.write_table(arrow.table({**images, "label": [0]}), tmp_path / "a.parquet")
    assert [open_shards(tmp_path, image_column=name).read(0) for name in images] == [jpeg(1), jpeg(2)]


def test_a_failure_of_the_disk_is_not_kept_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [0, 1])

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetFile, "read_row_group", fails)
        with pytest.raises(UserError, match=r"a\.parquet cannot be read: .*Input/output error"):
            open_shards(tmp_path)
    assert len(open_shards(tmp_path)) == 2
