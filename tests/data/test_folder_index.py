"""The cached index: used where nothing changed, rebuilt where anything did, never trusted when damaged."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from stvit_cli.data import folder_index
from stvit_cli.data.folder_index import FolderIndex, index_folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three classes, and a cache of its own for any number of images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "CACHED_FROM", 0)
    monkeypatch.setattr(folder_index, "SETTLED_S", 0.0)
    for name in ("a/1.jpg", "a/deep/er/2.jpg", "b/1.jpg", "c/1.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    time.sleep(0.02)  # beyond one tick of the file system's clock
    return tmp_path / "set"


def files(index: FolderIndex) -> list[str]:
    return [os.fsdecode(path) for path in index.paths.split(b"\0")[:-1]]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were listed and not taken from the cache."""
    scanned: list[Path] = []
    scan = folder_index._scan
    monkeypatch.setattr(folder_index, "_scan", lambda folder: (scanned.append(folder), scan(folder))[1])
    return scanned


def cache_file(root: Path) -> Path:
    (file,) = (root.parent / "cache" / "stvit").iterdir()
    return file


def test_the_second_time_comes_from_the_cache(root: Path, scans: list[Path]) -> None:
    first = index_folder(root)
    assert files(first) == ["a/1.jpg", "a/deep/er/2.jpg", "b/1.jpg", "c/1.jpg"]
    assert (first.class_names, first.counts) == (("a", "b", "c"), (2, 1, 1))
    assert index_folder(root) == first
    link = root.parent / "link"
    link.symlink_to(root)
    assert index_folder(link) == first
    assert len(scans) == 1


CHANGES = {
    "a file more": lambda root: (root / "a/3.jpg").touch(),
    "a file more, deep down": lambda root: (root / "a/deep/er/3.jpg").touch(),
    "a file less": lambda root: (root / "b/1.jpg").unlink(),
    "a file renamed": lambda root: (root / "b/1.jpg").rename(root / "b/2.jpg"),
    "a class more": lambda root: (root / "d").mkdir(),
    "a class renamed": lambda root: (root / "c").rename(root / "d"),
    "a class exchanged": lambda root: (
        (root / "c").rename(root / "x"),
        (root / "b").rename(root / "c"),
        (root / "x").rename(root / "b"),
    ),
    "a class gone": lambda root: ((root / "c/1.jpg").unlink(), (root / "c").rmdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_names_is_seen(root: Path, scans: list[Path], change: str) -> None:
    before = index_folder(root)
    CHANGES[change](root)
    after = index_folder(root)
    assert len(scans) == 2
    assert (after == before) == (change == "a class exchanged")
    assert sorted(files(after)) == sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))


def test_times_set_back_do_not_hide_a_change(root: Path, scans: list[Path]) -> None:
    """As an archive does that sets the times of the folders it unpacks."""
    stat = (root / "b").stat()
    index_folder(root)
    (root / "b/2.jpg").touch()
    os.utime(root / "b", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "b/2.jpg" in files(index_folder(root))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-3],
        lambda content: content[:200],
        lambda content: b"",
        lambda content: content.replace(b"b/1.jpg", b"b/9.jpg"),
        lambda content: os.urandom(len(content)),
    ],
)
def test_a_damaged_cache_is_not_trusted(root: Path, scans: list[Path], damage) -> None:
    first = index_folder(root)
    file = cache_file(root)
    file.write_bytes(damage(file.read_bytes()))
    assert index_folder(root) == first
    assert index_folder(root) == first
    assert len(scans) == 2


def test_an_older_format_is_made_anew(root: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    index_folder(root)
    monkeypatch.setattr(folder_index, "FORMAT", folder_index.FORMAT + 1)
    index_folder(root)
    assert len(scans) == 2


def test_a_folder_that_just_changed_is_not_cached_yet(root: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_index, "SETTLED_S", 60.0)
    index_folder(root)
    index_folder(root)
    assert len(scans) == 2


def test_without_a_place_for_the_cache_nothing_breaks(root: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "file"))
    assert index_folder(root) == index_folder(root)
    assert len(scans) == 2


def test_a_small_folder_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_index, "CACHED_FROM", 5)
    index_folder(root)
    assert not (root.parent / "cache").exists()


def rewritten(root: Path, change) -> None:
    """Change the cached index as somebody would who knows how it is made: its checksum holds."""
    file = cache_file(root)
    header, _, paths = file.read_bytes().partition(b"\n")[2].partition(b"\n")
    content = json.loads(header)
    paths = change(content, paths) or paths
    changed = json.dumps(content).encode() + b"\n" + paths
    file.write_bytes(folder_index._digest(changed) + b"\n" + changed)


@pytest.mark.parametrize(
    "path", [b"../../secret.jpg", b"/etc/secret.jpg", b"a/../../secret.jpg", b"a/..", b"..", b""], ids=lambda path: path.decode()
)
@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_cached_name_that_leaves_the_folder_is_refused(root: Path, scans: list[Path], path: bytes, position: int) -> None:
    first = index_folder(root)

    def change(content: dict, paths: bytes) -> bytes:
        names = paths.split(b"\0")[:-1]
        names[position] = path
        return b"".join(name + b"\0" for name in names)

    rewritten(root, change)
    assert index_folder(root) == first
    assert len(scans) == 2


@pytest.mark.parametrize("key", ["format", "endings", "root", "class_names", "counts", "times", "other_endings"])
@pytest.mark.parametrize("kind", ["missing", "of another type"])
def test_a_cached_index_with_keys_missing_is_read_again(root: Path, scans: list[Path], key: str, kind: str) -> None:
    first = index_folder(root)
    rewritten(root, lambda content, _: content.pop(key) and None if kind == "missing" else content.update({key: 7}))
    assert index_folder(root) == first
    assert len(scans) == 2


def test_cached_classes_that_lead_out_of_the_folder_are_refused(root: Path, scans: list[Path]) -> None:
    first = index_folder(root)
    rewritten(root, lambda content, _: content.update(class_names=["..", "b", "c"], times=content["times"] | {"..": [0, 0]}))
    assert index_folder(root) == first
    assert len(scans) == 2


def test_left_out_files_are_counted_from_the_cache_too(root: Path, scans: list[Path]) -> None:
    (root / "a/3.heic").touch()
    time.sleep(0.02)
    assert [index_folder(root).other_endings for _ in range(2)] == [((".heic", 1),)] * 2
    assert len(scans) == 1
