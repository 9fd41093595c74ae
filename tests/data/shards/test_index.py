"""Random access to shards, against Python's tarfile and WebDataset's own rules for names."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import jpeg, write_info, write_shards, write_tar

from stvit_cli.data.shards import ShardFile, ShardImages, open_shards
from stvit_cli.data.shards import index as index_module
from stvit_cli.data.shards.find import ShardOptions, find_shard_eval_images, find_shard_images, find_shard_test_images
from stvit_cli.data.shards.storage import common_root, is_pattern
from stvit_cli.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_bytes_names_and_labels_are_those_of_tarfile(tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile.TarFile, "format", kind)
    names = ["0", "1", "é" if kind != tarfile.USTAR_FORMAT else "e", "a/" * 40 + "b" * 90, "x" * 90]
    members = {
        f"{name}.{end}": content for i, name in enumerate(names) for end, content in (("jpg", jpeg(i)), ("cls", b"%d" % i))
    }
    path = write_tar(tmp_path / "a.tar", members)
    index = open_shards(path)
    assert [index.key(i) for i in range(len(index))] == names
    assert [index.label(i) for i in range(len(index))] == [0, 1, 2, 3, 4]
    assert [index.read(i) for i in range(len(index))] == [members[f"{name}.jpg"] for name in names]
    assert index.name(3) == f"a.tar/{names[3]}.jpg"


def test_a_sample_is_webdatasets(tmp_path: Path) -> None:
    members = {
        "._0.jpg": b"of macOS",
        "0.json": json.dumps({"label": 2, "other": 1, "caption": "x"}).encode(),
        "0.seg.png": b"mask",
        "0.jpg": b"image",
        "1.txt": b"no image",
        "d.e/2.PNG": b"image 2",
        "d.e/2.cls": b"1\n",
        "README": b"",
    }
    write_tar(tmp_path / "a.tar", members)
    index = open_shards(tmp_path)
    found = [(index.key(i), index.read(i), index.label(i)) for i in range(len(index))]
    assert found == [("0", b"image", 2), ("d.e/2", b"image 2", 1)]
    assert any("1 samples without an image" in note for note in index.notes)
    write_tar(tmp_path / "a.tar", {name: content for name, content in members.items() if name.startswith("0")})
    assert open_shards(tmp_path, label_column="other").labels().tolist() == [1]
    with pytest.raises(UserError, match=r"data\.label_column: .*0\.json has no field nope; it has label, other"):
        open_shards(tmp_path, label_column="nope")


def test_names_as_labels_are_sorted_or_in_the_order_of_a_list(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-train-0.tar", {"0.jpg": b"", "0.cls": b"dog", "1.jpg": b"", "1.cls": b"cat"})
    write_tar(tmp_path / "a-val-0.tar", {"0.jpg": b"", "0.cls": b"dog"})
    train, val = find_shard_images(ShardOptions(str(tmp_path)))
    assert (train.class_names, train.all_targets().tolist(), val.all_targets().tolist()) == (("cat", "dog"), [1, 0], [1])
    (tmp_path / "classes.txt").write_text("dog\nbird\ncat\n")
    train, val = find_shard_images(ShardOptions(str(tmp_path)))
    assert (train.class_names, train.all_targets().tolist(), val.all_targets().tolist()) == (("dog", "bird", "cat"), [0, 2], [0])
    with pytest.raises(UserError, match="labels that are no class: dog"):
        find_shard_images(ShardOptions(str(tmp_path), class_names=("cat", "bird")))


def test_folders_in_the_tar_are_classes_without_label_files(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"train/dog/0.jpg": b"", "train/cat/0.jpg": b"", "train/cat/1.jpg": b""})
    index = open_shards(tmp_path)
    assert (index.class_names, index.labels().tolist()) == (("cat", "dog"), [1, 0, 0])


def test_splits_are_timms(tmp_path: Path) -> None:
    train, val, test = (write_shards(tmp_path, split, shards) for split, shards in (("train", 2), ("validation", 1), ("test", 1)))
    images = find_shard_images(ShardOptions(str(tmp_path)))
    assert [len(each) for each in images] == [12, 6]
    assert any("1 shards of test are left out" in note for note in images[0].notes)
    assert images[0].relative_path(7) == "toy-train-0001.tar/n0001_7.jpg"
    assert images[0].path(7) == f"{tmp_path}/toy-train-0001.tar/n0001_7.jpg"
    assert images[0].blocks().tolist() == [0, 6, 12]
    options = ShardOptions(str(tmp_path), train_split="toy-train-{0000..0000}.tar", val_split="toy-train-0001.tar")
    assert [len(each) for each in find_shard_images(options)] == [6, 6]
    assert len(find_shard_test_images(ShardOptions(str(tmp_path), test_split="test"), images[0].class_names, images)) == 6
    with pytest.raises(UserError, match="trained on or chosen by"):
        find_shard_test_images(ShardOptions(str(tmp_path), test_split="validation"), images[0].class_names, images)
    write_info(tmp_path, {"first": train[:1], "second": [*train[1:], *val, *test]}, class_names=["a", "b", "c"])
    first, second = find_shard_images(ShardOptions(str(tmp_path), train_split="first", val_split="second"))
    assert (len(first), len(second), first.class_names) == (6, 18, ("a", "b", "c"))
    train[0].rename(tmp_path / "elsewhere")
    write_info(tmp_path, {"first": train})
    with pytest.raises(UserError, match=r"_info.json names 2 shards of first, but 1 are not there: toy-train-0000\.tar"):
        find_shard_images(ShardOptions(str(tmp_path), train_split="first"))


def test_the_field_of_the_label_is_that_of_the_split_by_any_of_its_names(tmp_path: Path) -> None:
    shards = {}
    for split in ("train", "validation"):
        members = {f"{i}.{end}": c for i in range(4) for end, c in (("jpg", b"x"), ("json", b'{"label": 0, "fine": %d}' % i))}
        shards[split] = [write_tar(tmp_path / f"x-{split}-0000.tar", members)]
    content = {name: {"filenames": [path.name for path in paths], "alt_label": "fine"} for name, paths in shards.items()}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": content}))
    for options in (ShardOptions(str(tmp_path)), ShardOptions(str(tmp_path), val_split="x-validation-0000.tar")):
        for images in find_shard_images(options):
            assert images.all_targets().tolist() == [0, 1, 2, 3]


def test_a_pattern_keeps_the_folders_that_tell_the_splits(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 50), ("test", 90)):
        for number, path in enumerate(write_shards(tmp_path / "s", "x", shards=2, images=3, first=first)):
            path.rename((tmp_path / split).mkdir(exist_ok=True) or tmp_path / split / f"000{number}.tar")
    train, val = find_shard_images(ShardOptions(f"{tmp_path}/{{train,val,test}}/000{{0..1}}.tar"))
    assert [images.relative_path(0).split("/")[0] for images in (train, val)] == ["train", "val"]
    assert (len(train), len(val)) == (6, 6)
    assert train.read(0) != val.read(0)  # though their shards have the same name and size
    with pytest.raises(UserError, match=r"names the shard .* 2 times"):
        open_shards(f"{tmp_path}/{{train,train}}/0000.tar")


def test_a_part_of_each_class_is_held_out_by_shard_and_position(tmp_path: Path) -> None:
    for name in ("here", "there"):
        write_shards(tmp_path / name, "all", shards=4, images=15)
    sets = [find_shard_images(ShardOptions(str(tmp_path / name), val_fraction=0.25)) for name in ("here", "there")]
    for train, val in sets:
        assert np.bincount(val.all_targets()).tolist() == [5, 5, 5]
        names = [images.relative_path(i) for images in (train, val) for i in range(len(images))]
        assert len(set(names)) == 60
    assert [each.fingerprint() for each in sets[0]] == [each.fingerprint() for each in sets[1]]
    held_out = find_shard_eval_images(ShardOptions(str(tmp_path / "here"), val_fraction=0.25))
    assert held_out.fingerprint() == sets[0][1].fingerprint()
    grouped = find_shard_images(ShardOptions(str(tmp_path / "here"), group_by=r"(all-\d+)"))
    shards = [{images.relative_path(i).partition("/")[0] for i in range(len(images))} for images in grouped]
    assert not shards[0] & shards[1]


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{i}.{end}": c for i in range(6) for end, c in (("jpg", b""), ("cls", b"%d" % (i % 3 - 1)))})
    index = open_shards(tmp_path)
    assert index.labels().tolist() == [-1, 0, 1, -1, 0, 1]
    images = ShardImages(index)
    assert (len(images), images.all_targets().tolist(), images.blocks().tolist()) == (4, [0, 1, 0, 1], [0, 4])
    write_tar(tmp_path / "a.tar", {"0.jpg": b"", "1.jpg": b""})
    with pytest.raises(UserError, match="none of 2 images has a label"):
        find_shard_images(ShardOptions(str(tmp_path)))


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _without_end(content: bytes) -> bytes:
    return content.rstrip(b"\0").ljust(-(-len(content.rstrip(b"\0")) // 512) * 512, b"\0")


def _garbled(content: bytes) -> bytes:
    middle = content.index(b"n0000_9.jpg") if b"n0000_9.jpg" in content else len(content) // 2 // 512 * 512
    return content[:middle] + b"\x7f" * 512 + content[middle + 512 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, "cut short"),
        (_without_end, "without the end mark"),
        (_garbled, "there is no header of a tar file"),
        (lambda content: content + content, "bytes after its end mark"),
        (lambda content: b"", "without the end mark of a tar file, after 0 bytes"),
    ],
)
def test_a_damaged_shard_is_named_and_can_be_used_up_to_the_damage(tmp_path: Path, damage, words: str) -> None:
    paths = write_shards(tmp_path)
    paths[1].write_bytes(damage(paths[1].read_bytes()))
    with pytest.raises(UserError, match=f"1 of 3 shards are damaged(?s:.*)toy-train-0001.tar: .*{words}"):
        open_shards(tmp_path)
    index = open_shards(tmp_path, damaged="skip")
    assert 12 <= len(index) <= 18
    assert any("toy-train-0001.tar" in note for note in index.notes)
    assert [index.read(i) for i in range(len(index))]


def test_a_changed_shard_is_read_again_and_only_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path)
    before = open_shards(tmp_path)
    scanned = []
    from stvit_cli.data.shards import index_builder

    scan = index_builder.scan
    monkeypatch.setattr(index_builder, "scan", lambda file, **more: (scanned.append(file.name), scan(file, **more))[1])
    write_tar(paths[2], {"0.jpg": b"new", "0.cls": b"1"})
    after = open_shards(tmp_path)
    assert scanned == ["toy-train-0002.tar"]
    assert (len(before), len(after), after.read(12)) == (18, 13, b"new")
    assert before.fingerprint != after.fingerprint


def test_labels_of_shards_that_are_gone_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, labels in (("a", ("cat", "bee")), ("b", ("ant",))):
        members = {f"{i}.{end}": c for i, label in enumerate(labels) for end, c in (("jpg", b"x"), ("cls", label.encode()))}
        write_tar(tmp_path / "d" / f"{name}.tar", members)
    assert open_shards(tmp_path / "d").class_names == ("ant", "bee", "cat")
    write_tar(tmp_path / "d" / "b.tar", {"0.jpg": b"yy", "0.cls": b"bee"})
    again = open_shards(tmp_path / "d")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    fresh = open_shards(tmp_path / "d")
    assert again.class_names == fresh.class_names == ("bee", "cat")
    assert again.fingerprint == fresh.fingerprint


def test_a_shard_that_shrinks_under_a_reader_is_an_error(tmp_path: Path) -> None:
    path = write_shards(tmp_path, shards=1)[0]
    index = open_shards(tmp_path)
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match="was changed or replaced since its index was made"):
        index.read(5)


def test_a_shard_that_is_replaced_is_never_read_by_the_positions_of_the_earlier_one(tmp_path: Path) -> None:
    path = write_shards(tmp_path, shards=1)[0]
    before = open_shards(tmp_path)
    first = before.read(1)
    write_tar(
        tmp_path / "new",
        {"0.txt": b"x" * 5000, **{f"{i}.{e}": c for i in range(3) for e, c in (("jpg", b"%d" % i), ("cls", b"0"))}},
    )
    (tmp_path / "new").replace(path)
    after = open_shards(tmp_path)
    assert [after.read(i) for i in range(3)] == [b"0", b"1", b"2"]
    assert before.read(1) == first  # its handle is still open
    unread = pickle.loads(pickle.dumps(before))
    index_module._READER.__init__()
    with pytest.raises(UserError, match="was changed or replaced"):
        unread.read(1)


def test_names_beside_the_shards_count_alike_for_training_and_evaluation(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_tar(tmp_path / f"a-{split}-0.tar", {"0.jpg": b"", "0.cls": b"dog", "1.jpg": b"", "1.cls": b"cat"})
    for content, names in (("dog\nbird\ncat\n", ("dog", "bird", "cat")), ("ant\nbee\nfly\n", ("cat", "dog"))):
        (tmp_path / "class_names.txt").write_text(content)
        train, val = find_shard_images(ShardOptions(str(tmp_path)))
        alone = find_shard_eval_images(ShardOptions(str(tmp_path)))
        assert train.class_names == val.class_names == alone.class_names == names
        assert train.all_targets().tolist() == val.all_targets().tolist() == alone.all_targets().tolist()


def test_a_query_of_an_address_is_no_pattern() -> None:
    url = "https://host/data/a-train-0.tar?signature=a/b*"
    assert not is_pattern(url)
    assert is_pattern("https://host/data/a-{0..3}.tar?signature=a")
    assert is_pattern("s3://bucket/a-?.tar")
    file = ShardFile(url, "a-train-0.tar", 1, "")
    assert common_root([file]) == "https://host/data"


@pytest.mark.parametrize(
    ("name", "words"), [("a.tar.gz", "is compressed"), ("a.zip", "has no shards; expected files that end in .tar")]
)
def test_what_is_no_shard_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=words):
        open_shards(tmp_path)
    with pytest.raises(UserError, match="there is no such shard"):
        open_shards(f"{tmp_path}/b-{{0..3}}.tar")
