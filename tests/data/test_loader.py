"""Loaders: what comes out never depends on the workers, and what goes wrong in one comes out in words."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate
from torch.utils.data._utils import worker

from stvit_cli.data.loader import TrainBatches, build_eval_loader, build_train_loader, seeded, usable_workers
from stvit_cli.errors import UserError
from stvit_cli.recipe import AugmentSection, DataSection, EvalSection
from stvit_cli.tasks.classification.data import build_classification

AUGMENT = AugmentSection(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, repeats=2)
DIGITS = DataSection(kind="digits", image_size=32)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr("stvit_cli.utils.cpus._own_quota", lambda: None)  # that of the container which the tests run in
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def train_batches(num_samples: int, num_steps: int = 3, start_step: int = 0) -> TrainBatches:
    sizes = {"global_batch_size": 8, "micro_batch_size": 4, "rank": 0, "world_size": 1}
    return TrainBatches(num_samples, seed=5, repeats=2, start_step=start_step, num_steps=num_steps, **sizes)


class Numbers(Dataset[int]):
    def __init__(self, size: int, act: Callable[[int], object] = int) -> None:
        self.size, self.act = size, act

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        self.act(index)
        return index


class Items(Dataset[Any]):
    """The items of a set that makes batches by itself."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        return self.dataset[key]


def numbers(size: int, act: Callable[[int], object] = int, num_workers: int = 2, batch_size: int = 2) -> Any:
    return build_eval_loader(Numbers(size, act), default_collate, batch_size, num_workers)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_training_samples_are_the_same_for_any_number_of_workers(num_workers: int) -> None:
    train_set = build_classification(DIGITS, AUGMENT, EvalSection(), seed=1).train_set

    def run(workers: int, start_step: int = 0) -> list[dict[str, Any]]:
        batches = train_batches(len(train_set), start_step=start_step)
        return list(build_train_loader(train_set, batches, default_collate, workers, pin_memory=False))

    alone, with_workers, resumed = run(0), run(num_workers), run(num_workers, start_step=1)
    assert len(alone) == len(with_workers) == 6
    for a, b in zip(alone + alone[2:], with_workers + resumed, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["target"], b["target"])
        assert torch.equal(a["index"], b["index"])


def test_samples_differ_by_seed_epoch_and_view_and_are_repeatable() -> None:
    first = build_classification(DIGITS, AUGMENT, EvalSection(), seed=1).train_set
    other = build_classification(DIGITS, AUGMENT, EvalSection(), seed=2).train_set
    key = next(iter(train_batches(len(first))))[0]
    image = first[key]["image"]
    assert torch.equal(image, first[key]["image"])
    for different in (first[key._replace(epoch=1)], first[key._replace(view=7)], other[key]):
        assert different["index"] == key.index
        assert not torch.equal(image, different["image"])


def test_a_loader_without_workers_leaves_the_global_generators_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    train_set = build_classification(DIGITS, AUGMENT, EvalSection(), seed=1).train_set
    with seeded(9):
        expected = draw()
    with seeded(9):
        list(build_train_loader(train_set, train_batches(len(train_set)), default_collate, 0, pin_memory=False))
        assert draw() == expected


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_an_evaluation_sees_everything_once(world_size: int, batch_size: int) -> None:
    shares = [
        [
            int(number)
            for batch in build_eval_loader(Numbers(113), default_collate, batch_size, 0, rank, world_size)
            for number in batch
        ]
        for rank in range(world_size)
    ]
    assert sorted(number for share in shares for number in share) == list(range(113))
    assert [share[:2] for share in shares] == [[rank, rank + world_size] for rank in range(world_size)]


def test_a_share_may_be_empty() -> None:
    assert list(build_eval_loader(Numbers(2), default_collate, 4, 0, rank=2, world_size=3)) == []


def image_folder(root: Path, num_images: int = 12) -> DataSection:
    for part in ("train", "val"):
        for number in range(num_images):
            path = root / part / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (number * 20, 0, 0)).save(path)
    return DataSection(dir=str(root), image_size=32)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("part", ["train", "val"])
def test_an_unreadable_image_stops_by_name_and_without_a_trail(tmp_path: Path, part: str, num_workers: int) -> None:
    data = image_folder(tmp_path)
    bad = tmp_path / part / "class1" / "3.png"
    bad.write_text("hello")
    built = build_classification(data, AugmentSection(), EvalSection(), seed=0)
    train = build_train_loader(built.train_set, train_batches(12, num_steps=6), default_collate, num_workers, False)
    val = build_eval_loader(built.val_set, default_collate, 5, num_workers)
    with pytest.raises(UserError, match=f"^{re.escape(str(bad))}: not an image") as caught:
        list(train if part == "train" else val)
    assert str(caught.value).count("\n") <= 1
    assert ("unreadable=skip" in str(caught.value)) == (part == "train")


def test_skipped_images_are_replaced_by_a_function_of_the_key_and_named(tmp_path: Path) -> None:
    data = image_folder(tmp_path).model_copy(update={"unreadable": "skip"})
    bad = [tmp_path / "train" / "class1" / name for name in ("3.png", "5.png")]
    for path in bad:
        path.write_text("hello")
    train_set = build_classification(data, AugmentSection(), EvalSection(), seed=0).train_set

    def run(num_workers: int) -> list[dict[str, Any]]:
        batches = train_batches(12, num_steps=6)
        loader = build_train_loader(Items(train_set), batches, list, num_workers, pin_memory=False)
        return [sample for batch in loader for sample in batch]

    alone, with_workers = run(0), run(2)
    skipped = [sample for sample in alone if "skipped" in sample]
    assert 0 < len(skipped) < len(alone)
    assert {path for sample in skipped for path in sample["skipped"]} == {str(path) for path in bad}
    for a, b in zip(alone, with_workers, strict=True):
        assert (a["index"], a["target"], a.get("skipped")) == (b["index"], b["target"], b.get("skipped"))
        assert torch.equal(a["image"], b["image"])
        assert train_set.path(a["index"]) not in {str(path) for path in bad}
        assert a["target"] == int(Path(train_set.path(a["index"])).parent.name[-1])


def test_in_evaluation_nothing_is_skipped(tmp_path: Path) -> None:
    data = image_folder(tmp_path).model_copy(update={"unreadable": "skip"})
    (tmp_path / "val" / "class0" / "0.png").write_bytes(b"")
    val_set = build_classification(data, AugmentSection(), EvalSection(), seed=0).val_set
    with pytest.raises(UserError, match=r"0.png.*empty"):
        list(build_eval_loader(val_set, default_collate, 4, 0))


def test_missing_files_stop_even_where_unreadable_images_are_skipped(tmp_path: Path) -> None:
    data = image_folder(tmp_path).model_copy(update={"unreadable": "skip"})
    train_set = build_classification(data, AugmentSection(), EvalSection(), seed=0).train_set
    (tmp_path / "train" / "class0" / "0.png").unlink()
    with pytest.raises(UserError, match=r"0.png: there is no such file"):
        list(build_train_loader(train_set, train_batches(12, num_steps=6), default_collate, 0, pin_memory=False))


def test_where_nothing_can_be_decoded_skipping_ends(tmp_path: Path) -> None:
    data = image_folder(tmp_path).model_copy(update={"unreadable": "skip"})
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    train_set = build_classification(data, AugmentSection(), EvalSection(), seed=0).train_set
    with pytest.raises(UserError, match="21 images in a row"):
        list(build_train_loader(train_set, train_batches(12), default_collate, 0, pin_memory=False))


def test_a_killed_worker_is_named_with_what_helps() -> None:
    def die(index: int) -> None:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"(?s)worker \(pid.*num_workers") as caught:
        list(numbers(20, die))
    assert len(str(caught.value).splitlines()) == 4
    assert "#shared-memory" in str(caught.value).splitlines()[-1]


def test_workers_leave_signals_to_their_parent() -> None:
    def receive(index: int) -> None:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        if index in (0, 2):  # once in each of the two workers; a second SIGTERM ends one
            os.kill(os.getpid(), signal.SIGTERM)

    assert [int(number) for batch in numbers(20, receive) for number in batch] == list(range(20))


def test_signals_wait_until_a_worker_has_its_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    set_handlers = worker.signal_handling._set_worker_signal_handlers

    def receive() -> None:
        set_handlers()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(worker.signal_handling, "_set_worker_signal_handlers", receive)
    assert [int(number) for batch in numbers(8) for number in batch] == list(range(8))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_faults_of_ours_keep_their_trail() -> None:
    with pytest.raises(ZeroDivisionError, match="act"):
        list(numbers(4, lambda index: 1 // index))


class Niceness(Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: object) -> int:
        return os.nice(0)


def test_workers_beside_a_step_on_a_cpu_are_nice() -> None:
    before = os.nice(0)
    (train, *_) = build_train_loader(Niceness(), train_batches(8), list, 1, pin_memory=False)
    (other, *_) = build_eval_loader(Niceness(), list, 4, 1)
    assert train == [19] * 4
    assert other == [before] * 4
    assert os.nice(0) == before


def test_no_more_workers_than_a_process_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [usable_workers(number) for number in (0, 3, 4, 10)] == [0, 3, 4, 4]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [usable_workers(number) for number in (0, 1, 10)] == [0, 1, 2]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert usable_workers(10) == 1


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_a_data_set_survives_the_way_to_a_spawned_worker(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows start a worker as a new interpreter, which gets the data set and its start pickled."""
    monkeypatch.setattr("stvit_cli.data.loader.sys.platform", "darwin")
    data = DIGITS if kind == "digits" else image_folder(tmp_path)
    train_set = build_classification(data, AUGMENT, EvalSection(), seed=1).train_set
    loader = build_train_loader(train_set, train_batches(12), default_collate, 1, pin_memory=False).loader
    there = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))[0]
    key = next(iter(train_batches(12)))[0]
    assert torch.equal(train_set[key]["image"], there.dataset[key]["image"])
