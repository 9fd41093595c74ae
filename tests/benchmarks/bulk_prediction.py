"""Measure `stvit predict --parquet` on many small images beside the bare model.

python tests/benchmarks/bulk_prediction.py [--images 50000] [--rounds 3] [--size 64] [--model stvit-nano]

JPEG files of 72 x 72, cropped from the photograph in tests/images. In turn, round after round, on other files each time: the bare
model, which is given batches in memory, and the prediction of a folder by one loader process. Processor times are those of the
training thread's process and of the loader process, and by the clock; the largest memory of the process after each round shows
whether it grows. Without the model: the steps of one image.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from stvit_cli import WeightsInfo, create_model, save_weights
from stvit_cli.analysis.cost.throughput import machine
from stvit_cli.analysis.prediction import BulkOptions, predict_all
from stvit_cli.analysis.prediction.predict_all import _predictor
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.data import pixels
from stvit_cli.data.byte_images import new_block
from stvit_cli.data.images import decode_image
from stvit_cli.data.pixels import library
from stvit_cli.tasks.loading import open_trained

SIDE, CLASSES = 72, 1000


def write_images(root: Path, rounds: int, count: int) -> None:
    """Write the files of each round into a folder of its own."""
    with Image.open(Path(__file__).parents[1] / "images" / "coffee.jpg") as opened:
        photograph = opened.convert("RGB")
    generator = np.random.default_rng(0)
    for turn in range(rounds):
        for number in range(count):
            left, top = (int(generator.integers(0, length - SIDE)) for length in photograph.size)
            folder = root / str(turn) / f"{number // 1000:03}"
            folder.mkdir(parents=True, exist_ok=True)
            photograph.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{number:06}.jpg", quality=90)


def times() -> tuple[float, float, float]:
    """Return the processor time of this process and of its children, and the clock."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime, time.perf_counter()


def per_image(run: Callable[[], Any], count: int) -> tuple[float, float, float]:
    """Return milliseconds an image of this process, of its children, and of the clock."""
    before = times()
    run()
    return tuple(1000 * (after - was) / count for was, after in zip(before, times(), strict=True))  # type: ignore[return-value]


def steps(predictor: Any, paths: list[Path]) -> None:
    """Print the processor time of each step of an image."""
    contents = [path.read_bytes() for path in paths]
    images = [decode_image(content, "") for content in contents]
    samples = [predictor.sample(image) for image in images]
    batch = predictor.collate(samples[: predictor.batch_size])
    outputs = predictor.start(batch)
    block = new_block(batch.pixels.shape)
    forms: dict[str, Callable[[], Any]] = {
        "read": lambda: [path.read_bytes() for path in paths],
        "decode": lambda: [decode_image(content, "") for content in contents],
        "resize, crop": lambda: [predictor.sample(image) for image in images],
    }
    of_batch: dict[str, Callable[[], Any]] = {
        "collate": lambda: torch.stack(samples[: len(block)], out=block),
        "normalize": lambda: batch.on(torch.device("cpu")),
        "model, with normalization": lambda: predictor.start(batch),
        "classes": lambda: predictor.finish(outputs, str),
    }
    rows = []
    for name, run in (forms | of_batch).items():
        number, taken = len(paths) if name in forms else len(block), []
        for functions in (pixels._loaded[0], None):
            with patch.object(pixels, "_loaded", [functions]):
                run()
                taken.append(statistics.median(per_image(run, number)[0] for _ in range(7)))
        rows.append([name, *(f"{value:.4f}" for value in taken)])
    print_table(["ms of processor time an image", "compiled transforms", "Pillow and PyTorch"], rows, machine("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--model", default="stvit-nano")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    count = options.images // options.rounds
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_images(root / "images", options.rounds, count)
        names = tuple(map(str, range(CLASSES)))
        info = WeightsInfo(options.model, num_classes=CLASSES, class_names=names, image_size=options.size)
        save_weights(root / "model.safetensors", create_model(options.model, CLASSES), info)
        trained = open_trained(root / "model.safetensors")
        library()
        predictor: Any = _predictor(trained, BulkOptions(), torch.device("cpu"))
        files = sorted((root / "images" / "0").rglob("*.jpg"))[:512]
        steps(predictor, files)
        batch = predictor.collate(
            [predictor.sample(decode_image(path.read_bytes(), "")) for path in files[: predictor.batch_size]]
        )
        floats = batch.on(torch.device("cpu"))

        @torch.inference_mode()
        def bare() -> None:
            for _ in range(count // len(floats)):
                predictor.model(floats)

        rows, ratios = [], []
        for turn in range(options.rounds):
            model = per_image(bare, count // len(floats) * len(floats))
            source, output = str(root / "images" / str(turn)), root / "out" / str(turn)
            output.mkdir(parents=True)
            predict = partial(predict_all, trained, [source], output, BulkOptions(num_workers=1), device="cpu")
            whole = per_image(predict, count)
            ratios.append((model[0] / max(whole[0], whole[1]), model[0] / (whole[0] + whole[1])))
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append([str(turn), *(f"{value:.3f}" for value in (*model[::2], *whole, *ratios[-1])), f"{memory:.0f}"])
            print(*rows[-1], flush=True)
        rows.append(["median", *[""] * 5, *(f"{statistics.median(column):.2f}" for column in zip(*ratios, strict=True)), ""])
        head = ["round", "model", "by the clock", "predict", "its loader", "by the clock", "model / slower", "model / both", "MB"]
        title = f"ms an image; {count} images a round, {options.model} at {options.size} pixels, {machine('cpu')}"
        print_table(head, rows, title)


if __name__ == "__main__":
    main()
