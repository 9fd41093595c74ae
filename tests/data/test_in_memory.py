"""Images in memory: batches are those of single items to the last bit, and what cannot be opened or kept is as without."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from stvit_cli.data import in_memory, loader
from stvit_cli.data.byte_images import without_bytes
from stvit_cli.data.classification import ClassificationData, EvalSet, TrainSet
from stvit_cli.data.in_memory import decode_all, image_bytes, keep_in_memory, without_colour
from stvit_cli.data.loader import build_eval_loader, build_train_loader, useful_workers
from stvit_cli.data.sampling import SampleKey, TrainBatches
from stvit_cli.data.transforms import eval_transform, train_transform
from stvit_cli.errors import UserError
from stvit_cli.utils import memory
from stvit_cli.utils.memory import available_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(28, 28), (40, 24), (17, 63), (64, 64), (32, 32)]


class Images:
    """Random images of several sizes, in colour or grey; some cannot be opened."""

    notes = ()

    def __init__(self, grey: bool = False, count: int = 10, damaged: tuple[int, ...] = (), multi_label: bool = False) -> None:
        self.class_names = ("a", "b", "c")
        self.damaged, self.multi_label, self.opened = damaged, multi_label, 0
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (*SIZES[i % 5][::-1], 3), dtype=np.uint8) for i in range(count)]
        if grey:
            self.pixels = [np.repeat(array[..., :1], 3, axis=2) for array in self.pixels]

    def __len__(self) -> int:
        return len(self.pixels)

    def path(self, index: int) -> str:
        return f"image {index}"

    relative_path = path

    def fingerprint(self) -> str:
        return ""

    def target(self, index: int) -> Any:
        return np.eye(3, dtype=np.float32)[index % 3] if self.multi_label else index % 3

    def open(self, index: int) -> Image.Image:
        self.opened += 1
        if index in self.damaged:
            from stvit_cli.data.images import UnreadableImageError

            raise UnreadableImageError(f"image {index}: damaged.")
        return Image.fromarray(self.pixels[index])


def train_set(images: Images, unreadable: Any = "stop", **augment: Any) -> TrainSet:
    channels = augment.pop("in_chans", 3)
    transform = train_transform(32, MEAN[:channels], STD[:channels], in_chans=channels, **augment)
    return TrainSet(images, transform, seed=3, unreadable=unreadable)


def kept(dataset: Any) -> Any:
    keep_in_memory([dataset], True)
    assert dataset.is_in_memory
    return dataset


def items(dataset: Any, keys: list[Any]) -> dict[str, Any]:
    samples = [dataset[key] for key in keys]
    skipped = [path for sample in samples for path in sample.get("skipped", [])]
    return default_collate([{key: sample[key] for key in ("image", "target", "index")} for sample in samples]) | {
        "skipped": skipped
    }


def equal(batch: dict[str, Any], expected: dict[str, Any]) -> bool:
    batch = without_bytes(batch, torch.device("cpu"))
    same = [
        torch.equal(batch[key], expected[key]) and batch[key].dtype == expected[key].dtype for key in ("image", "target", "index")
    ]
    return all(same) and batch["skipped"] == expected["skipped"]


KEYS = [SampleKey(index, epoch, view) for epoch, view in ((0, 0), (3, 1)) for index in range(10)]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(
    "augment",
    [
        {"hflip": 0.0},
        {"hflip": 0.5, "vflip": 0.4, "crop_scale": (0.5, 1.0), "interpolation": "bilinear"},
        {"hflip": 0.5, "random_erasing": 0.7, "crop_ratio": (0.4, 0.5), "interpolation": "nearest"},
        {"hflip": 0.0, "random_erasing": 0.7, "random_erasing_mode": "rand"},
        {"hflip": 0.5, "in_chans": 1, "random_erasing": 0.5, "random_erasing_mode": "const"},
        {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5},
        {"color_jitter": 0.4, "grayscale_prob": 0.3, "gaussian_blur_prob": 0.3},
        {"auto_augment": "3a", "in_chans": 1},
    ],
    ids=lambda augment: "-".join(augment),
)
def test_a_training_batch_from_memory_is_that_of_the_items_to_the_last_bit(augment: dict[str, Any], grey: bool) -> None:
    dataset = train_set(Images(grey), **augment)
    expected = items(dataset, KEYS)
    assert equal(dataset.batch(KEYS), expected)  # from files
    assert equal(kept(dataset).batch(KEYS), expected)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("grey", [False, True])
def test_an_evaluation_batch_from_memory_is_that_of_the_items_to_the_last_bit(in_chans: int, grey: bool) -> None:
    images = Images(grey, multi_label=True)
    dataset = EvalSet(images, eval_transform(32, MEAN[:in_chans], STD[:in_chans], in_chans=in_chans))
    expected = items(dataset, [7, 0, 2])
    assert equal(dataset.batch([7, 0, 2]), expected)  # from files
    kept(dataset)
    opened = images.opened
    assert equal(dataset.batch([7, 0, 2]), expected)
    assert images.opened == opened  # decoded once


def test_a_kept_set_changes_neither_the_loader_s_batches_nor_the_global_generators() -> None:
    sizes = {"global_batch_size": 4, "micro_batch_size": 2, "rank": 0, "world_size": 1}
    batches = TrainBatches(10, seed=3, repeats=1, start_step=0, num_steps=4, **sizes)

    def batch_of(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return default_collate(samples) | {"skipped": []}

    dataset = train_set(Images())
    expected = list(build_train_loader(dataset, batches, batch_of, 0, pin_memory=False))
    kept(dataset)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found = list(build_train_loader(dataset, batches, batch_of, 2, pin_memory=False))
    assert all(equal(one, other) for one, other in zip(found, expected, strict=True))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    val_set = EvalSet(Images(), eval_transform(32, MEAN, STD))
    shares = [items(val_set, list(range(rank, 10, 3))) for rank in range(3)]
    kept(val_set)
    for rank, share in enumerate(shares):
        (batch,) = build_eval_loader(val_set, batch_of, 4, 2, rank, world_size=3)
        assert equal(batch, share)


def test_workers_are_started_for_costly_augmentations_and_where_cores_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "threads_of_process", lambda: 2)
    assert useful_workers(train_set(Images()), 1) == 1
    assert useful_workers(kept(train_set(Images())), 1) == 0
    assert useful_workers(kept(train_set(Images())), 1, on_gpu=True) == 1
    assert useful_workers(kept(train_set(Images(), auto_augment="rand-m9")), 1) == 1
    monkeypatch.setattr(loader, "threads_of_process", lambda: 16)
    assert useful_workers(kept(train_set(Images())), 1) == 1
    assert useful_workers(kept(EvalSet(Images(), eval_transform(32, MEAN, STD))), 1) == 0


def test_a_damaged_image_is_replaced_or_refused_as_without() -> None:
    skipping = train_set(Images(damaged=(1, 4)), "skip")
    expected = items(skipping, KEYS)
    assert expected["skipped"]
    assert equal(kept(skipping).batch(KEYS), expected)
    stopping, val_set = train_set(Images(damaged=(4,))), EvalSet(Images(damaged=(4,)), eval_transform(32, MEAN, STD))
    with pytest.raises(UserError, match=r"image 4: damaged.\ndata.unreadable=skip"):
        kept(stopping).batch(KEYS)
    with pytest.raises(UserError, match=r"image 4: damaged."):
        kept(val_set).batch([3, 4])
    assert kept(val_set).batch([3, 5])["index"].tolist() == [3, 5]


@pytest.mark.parametrize("limit", ["pixels", "memory", "stopped", "false"])
def test_images_are_not_kept_where_they_are_large_or_memory_is_short(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "available_memory", lambda: 20_000 if limit == "memory" else 1 << 30)
    monkeypatch.setattr(in_memory, "MAX_PIXELS", 100 if limit == "pixels" else 10_000)
    data = ClassificationData(train_set(Images()), EvalSet(Images(), eval_transform(32, MEAN, STD)), ("a", "b", "c"))
    sets = [data.train_set, data.val_set]
    line = keep_in_memory(sets, False if limit == "false" else "auto", stopped=lambda: limit == "stopped")
    assert line is None
    assert not any(dataset.is_in_memory for dataset in sets)
    if limit == "memory":
        with pytest.raises(UserError, match=r"data.in_memory is true, but 20 images take about [\s\S]*data.in_memory=auto"):
            keep_in_memory(sets, True)


def test_small_images_are_kept_by_default_and_it_is_said() -> None:
    data = ClassificationData(train_set(Images()), EvalSet(Images(), eval_transform(32, MEAN, STD)), ("a", "b", "c"))
    seen: list[tuple[int, int]] = []
    line = keep_in_memory([data.train_set, data.val_set], "auto", advance=lambda done, total: seen.append((done, total)))
    assert line == "All 20 images are decoded once and kept in memory: 0.1 MB (data.in_memory)."
    assert seen == [(10, 20), (20, 20)]


def test_grey_images_take_a_quarter_of_the_memory() -> None:
    grey, colour = Image.new("RGB", (256, 256), (9, 9, 9)), Image.new("RGB", (256, 256), (9, 9, 8))
    assert without_colour(colour) is colour
    assert image_bytes(without_colour(grey)) < 0.3 * image_bytes(colour)


def test_files_are_decoded_by_threads_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "usable_workers", lambda most: 2)
    for number in range(6):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")

    class Files(Images):
        path: Callable[[Any, int], str] = lambda self, index: str(tmp_path / f"{index}.png")

        def open(self, index: int) -> Image.Image:
            return Image.open(self.path(index))

    found, taken = decode_all(Files(count=6), lambda image: image.getpixel((0, 0))[0], lambda value: 1, 100)
    assert found == list(range(6))
    assert taken == 6


V2, V1 = "31 23 0:28 / @ rw - cgroup2 cgroup2 rw", "33 31 0:30 / @/memory rw - cgroup cgroup rw,memory"


@pytest.mark.parametrize(
    ("groups", "mount", "files", "expected"),
    [
        ("0::/a/b", V2, {"a/memory.max": "3000", "a/memory.current": "1000", "a/b/memory.max": "max"}, 2000),
        ("0::/", V2, {"memory.max": "5000", "memory.current": "4500", "memory.stat": "inactive_file 300\nanon 9"}, 800),
        ("5:memory:/x", V1, {"memory/x/memory.limit_in_bytes": "4000", "memory/x/memory.usage_in_bytes": "4500"}, 0),
        ("5:cpu:/x", V1, {}, 8192),
    ],
)
def test_available_memory_is_that_of_the_container(
    groups: str, mount: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "process_limit", lambda name: None)
    stats = {str(Path(name).parent / "memory.stat"): "" for name in files}
    proc = {"meminfo": "MemTotal: 16 kB\nMemAvailable: 8 kB", "self/status": "VmSize: 4 kB", "self/cgroup": groups}
    proc["self/mountinfo"] = mount.replace("@", str(tmp_path / "cgroup"))
    for folder, texts in (("cgroup", stats | files), ("proc", proc)):
        for name, text in texts.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(text)
    assert available_memory(tmp_path / "proc") == expected


def test_the_limit_of_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_memory()
    monkeypatch.setattr(memory, "process_limit", lambda name: 1 << 20)
    assert available_memory() == 0 != free
