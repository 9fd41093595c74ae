"""Shards written from a folder: bytes untouched, resumable, read again as the folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.shards import jpeg
from helpers.toy import start

import stvit_cli
from stvit_cli.data.imagefolder import find_images
from stvit_cli.data.shards import write
from stvit_cli.data.shards.find import ShardOptions, find_shard_images
from stvit_cli.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for split, count in (("train", 9), ("val", 4)):
        for number in range(count):
            for name in ("cat", "sea lion é"):
                path = tmp_path / "images" / split / name / f"a.{number}.JPG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(number))
    (tmp_path / "images/train/cat/a_1.png").write_bytes(b"another with the same key")
    return tmp_path / "images"


def content(images) -> set[tuple[bytes, str]]:
    read = images.read if hasattr(images, "read") else lambda index: Path(images.path(index)).read_bytes()
    return {(read(index), images.class_names[images.target(index)]) for index in range(len(images))}


def test_the_shards_hold_the_folders_bytes_classes_and_split(folder: Path, tmp_path: Path) -> None:
    result = stvit_cli.data_shard(folder, tmp_path / "out", size=12_000, threads=3)
    assert len(result.splits[0].files) > 2
    assert all((tmp_path / "out" / name).stat().st_size <= 20480 for split in result.splits for name in split.files)
    for ours, theirs in zip(find_shard_images(ShardOptions(str(tmp_path / "out"))), find_images(folder), strict=True):
        assert content(ours) == content(theirs)
        assert (len(ours), ours.class_names) == (len(theirs), theirs.class_names)
        assert len({ours.relative_path(index) for index in range(len(ours))}) == len(ours)


def test_a_call_that_was_interrupted_goes_on_and_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stvit_cli.data_shard(folder, tmp_path / "whole", size=12_000, threads=1)
    written: list[str] = []
    one = write._write

    def until_third(path: Path, *rest) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        one(path, *rest)

    monkeypatch.setattr(write, "_write", until_third)
    with pytest.raises(KeyboardInterrupt):
        stvit_cli.data_shard(folder, tmp_path / "out", size=12_000, threads=1)
    with pytest.raises(UserError, match=r"was interrupted\. Give the same command again"):
        find_shard_images(ShardOptions(str(tmp_path / "out")))
    (tmp_path / "out" / ".train-0002.tar.0123abcd.part").write_bytes(b"of a killed process")
    first = set(written)
    written.clear()
    monkeypatch.setattr(write, "_write", lambda path, *rest: (written.append(path.name), one(path, *rest)))
    stvit_cli.data_shard(folder, tmp_path / "out", size=12_000)
    assert len(first) == 2
    assert not first & set(written)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    with pytest.raises(UserError, match="has shards of other images or of another --size"):
        stvit_cli.data_shard(folder, tmp_path / "out", size=50_000)
    with pytest.raises(UserError, match="is not empty"):
        stvit_cli.data_shard(folder, folder / "val")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_images_are_neither_missing_nor_doubled_after_a_signal_in_the_middle(
    folder: Path, tmp_path: Path, stvit, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    stvit_cli.data_shard(folder, tmp_path / "whole", size=6000)
    add, out, added = write._add, tmp_path / "out", []

    def killed_at_an_image(*member: Any) -> None:
        added.append(None)
        add(*member)
        if len(added) == 22:  # of 54: in the middle of the run, with threads in the middle of shards
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        monkeypatch.setattr(write, "_add", killed_at_an_image)
        os._exit(stvit("data", "shard", folder, out, "--size", "6000").code)

    assert start(work, tmp_path / "process")()[0].code == code
    assert 0 < len(list(out.glob("*.tar"))) < len(list((tmp_path / "whole").glob("*.tar")))
    ended = stvit("data", "shard", folder, out, "--size", "6000")
    assert ended.code == 0, ended.err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    train, val = find_shard_images(ShardOptions(str(out)))
    assert (len(train), len(val)) == (19, 8)
    names = [images.relative_path(index).partition("/")[2] for images in (train, val) for index in range(len(images))]
    assert len(set(names)) == 19 + 8 - 8, "val has the names of train"


def test_order_is_random_by_default_and_class_after_class_if_asked(folder: Path, tmp_path: Path) -> None:
    stvit_cli.data_shard(folder, tmp_path / "mixed", threads=1)
    stvit_cli.data_shard(folder, tmp_path / "sorted", threads=1, shuffle=False)
    mixed, in_order = (
        find_shard_images(ShardOptions(str(tmp_path / name)))[0].all_targets().tolist() for name in ("mixed", "sorted")
    )
    assert in_order == sorted(in_order)
    assert sorted(mixed) == in_order != mixed


@pytest.mark.parametrize("size", ["", "12", "1 parsec", "-5MB"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(UserError, match="expected a size such as 256MB or 1GB"):
        write.parse_size(size)
