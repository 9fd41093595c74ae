"""Measure shards beside the folder that they are made of, and a made index of 14.2 million images.

python tests/benchmarks/shards.py [--images 200000] [--folder DIR] [--only-shards]

An epoch is every image read and decoded in random order; folder and shards alternate in parts, and the files are in the page
cache for both. Times are wall-clock times.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from stvit_cli import data_shard
from stvit_cli.data.folder_index import index_folder
from stvit_cli.data.imagefolder import FolderImages
from stvit_cli.data.sampling import ShuffleBlocks
from stvit_cli.data.shards import ShardImages, ShardIndex, open_shards
from stvit_cli.data.shards.index_file import read_index, write_index
from stvit_cli.data.shards.part import Part
from stvit_cli.data.shards.storage import ShardFile

CLASSES, PART = 100, 10_000


def timed(name: str, started: float) -> None:
    print(f"{name}: {time.perf_counter() - started:.2f} s", flush=True)


def make_folder(root: Path, count: int) -> None:
    generator, contents = np.random.default_rng(0), []
    for _ in range(64):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(buffer, "JPEG")
        contents.append(buffer.getvalue())
    for label in range(CLASSES):
        (root / f"class{label:03d}").mkdir(parents=True)
    for number in range(count):
        with (root / f"class{number % CLASSES:03d}" / f"{number}.jpg").open("wb", buffering=0) as file:
            file.write(contents[number % 64])


def measure(root: Path, count: int) -> None:
    started = time.perf_counter()
    make_folder(root / "images", count)
    timed(f"{count} JPEG files written", started)
    started = time.perf_counter()
    folder = index_folder(root / "images")
    timed("folder listed", started)
    started = time.perf_counter()
    result = data_shard(root / "images", root / "shards", size="16MB", threads=2)
    timed(f"stvit data shard, {len(result.splits[0].files)} shards", started)
    started = time.perf_counter()
    index = open_shards(root / "shards")
    timed("index of the shards built", started)
    started = time.perf_counter()
    index = open_shards(root / "shards")
    timed("index opened again", started)
    order = np.random.default_rng(1).permutation(count)
    reads = order[:50_000].tolist()
    started = time.perf_counter()
    for position in reads:
        index.read(position)
    print(f"random reads: {len(reads) / (time.perf_counter() - started):.0f} a second", flush=True)
    sets = {"folder": FolderImages(folder, folder.class_names), "shards": ShardImages(index)}
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    for first in range(0, count, PART):
        part = order[first : first + PART].tolist()
        for name in sorted(sets, reverse=(first // PART) % 2 == 1):
            started = time.perf_counter()
            for position in part:
                sets[name].open(position)
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"epoch, {name}: {sum(times):.1f} s, median {PART / statistics.median(times):.0f} images a second", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(seconds["shards"], seconds["folder"], strict=True)]
    print(
        f"shards / folder: {sum(seconds['shards']) / sum(seconds['folder']):.2f}, median of parts {statistics.median(ratios):.2f}"
    )


def label_entropy() -> None:
    """Print the label entropy of a batch of 1024 of 1000 classes, for shards in random order and shards by class."""
    count, shards = 1_281_167 // 8, 128
    generator = np.random.RandomState(0)
    starts = np.linspace(0, count, shards + 1).astype(np.int64)
    by_class = np.sort(np.arange(count) % 1000)
    mixed = generator.permutation(by_class)
    orders = {"global": generator.permutation(count)}
    for window in (1024, 8192, 32768):
        orders[f"block, window {window}"] = ShuffleBlocks(starts, window).order(np.random.RandomState(1))
    for name, order in orders.items():
        for what, labels in (("mixed shards", mixed), ("shards by class", by_class)):
            print(f"label entropy of a batch of 1024, {name}, {what}: {entropy(labels[order]):.2f} bits")


def entropy(labels: np.ndarray, batch: int = 1024) -> float:
    found = []
    for first in range(0, len(labels) - batch, batch):
        shares = np.bincount(labels[first : first + batch]) / batch
        found.append(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    return float(np.mean(found))


def made_index(root: Path, count: int = 14_197_122, shards: int = 4608) -> None:
    """Print size, time to open and memory of an index of as many images as ImageNet-21K has."""
    bounds = np.linspace(0, count, shards + 1).astype(np.int64)
    labels = tuple(("label", str(number)) for number in range(21_841))
    parts = []
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        rows = np.arange(last - first, dtype=np.uint32)
        parts.append(Part(rows * 200, rows % 7 + 90_000, np.arange(first, last, dtype=np.int32) % 21_841, labels))
    files = [
        ShardFile(f"/data/imagenet22k-train-{n:04d}.tar", f"imagenet22k-train-{n:04d}.tar", 10**8, "1") for n in range(shards)
    ]
    write_index(root / "made.index", [(file.name, file.size, file.stamp) for file in files], parts)
    print(f"made index of {count} images: {(root / 'made.index').stat().st_size / 1e6:.0f} MB")
    del parts
    if os.fork() == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.perf_counter()
        content = read_index(root / "made.index")
        assert content is not None
        index = ShardIndex(files, content)
        labels_of = [index.label(position) for position in (0, count // 2, count - 1)]
        print(
            f"opened in {time.perf_counter() - started:.2f} s, labels {labels_of}, faults "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before} pages",
            flush=True,
        )
        os._exit(0)
    os.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--only-shards", action="store_true", help="without the made index and the label entropy")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        if not given.only_shards:
            made_index(Path(temporary))
            label_entropy()
        measure(Path(temporary), given.images)
