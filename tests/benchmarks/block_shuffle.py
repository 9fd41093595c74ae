"""Final accuracy of block shuffling beside global shuffling, on a part of Fashion-MNIST in shards.

python tests/benchmarks/block_shuffle.py OUTPUT [--data /usr/share/datasets/fashion-mnist] [--seeds 3] [--only-shards]

6 000 training images and 2 000 others, in shards of 1 MB (432 images): mixed, as `stvit data shard` writes them, and class after
class (--keep-order). AdamW in fp32 at 32 pixels, 3 epochs, a window of 256 images (4 batches). Runs that are there are
kept. Printed is top-1 at the end, without the moving average, which is far behind after 280 steps.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

import stvit_cli

TRAIN, VAL = range(6000), range(58_000, 60_000)
SETTINGS = [
    *("data.kind=shards", "data.test_split=null", "data.class_names=[]", "data.image_size=32", "data.num_workers=0"),
    *("schedule.epochs=3", "train.device=cpu"),
    # What fashion-mnist had before it was tuned for its full length; the figures were measured by it.
    *("model.layer_scale=null", "optim.name=adamw", "optim.lr=3e-3", "train.global_batch_size=64", "train.precision=fp32"),
    *("train.ema_decay=0.999", "train.eval_every_epochs=1", "eval.hflip=false", "eval.translate=0"),
    *("augment.crop_scale=[0.8,1.0]", "augment.random_erasing=0.1", "augment.mixup=0", "augment.mix_prob=1"),
]
WINDOW = ["data.shuffle=block", "data.shuffle_window=256"]


def write_shards(source: Path, output: Path) -> None:
    """Write the images into folders by class, and these into shards."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((source / f"train-{name}-ubyte.gz").read_bytes()), np.uint8, offset=offset)
        for name, offset in (("images-idx3", 16), ("labels-idx1", 8))
    )
    for split, rows in (("train", TRAIN), ("val", VAL)):
        for row in rows:
            folder = output / "images" / split / str(labels[row])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.reshape(-1, 28, 28)[row]).save(folder / f"{row}.png")
    for name, shuffle in (("mixed", True), ("by-class", False)):
        stvit_cli.data_shard(output / "images", output / name, size="1MB", threads=1, shuffle=shuffle)


def top1(run: Path) -> float:
    """Return the accuracy of the last evaluation of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([row for row in rows if row["kind"] == "eval"][-1]["top1"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-shards", action="store_true")
    options = parser.parse_args()
    if not (options.output / "by-class").is_dir():
        write_shards(options.data, options.output)
    if options.only_shards:
        return
    for name, shards, words in (("global", "mixed", []), ("block", "mixed", WINDOW), ("block, by class", "by-class", WINDOW)):
        found = []
        for seed in range(options.seeds):
            run = options.output / "runs" / f"{name}-{seed}".replace(", ", "-").replace(" ", "-")
            if not (run / "evaluation.json").exists():
                more = [f"data.dir={options.output / shards}", f"train.seed={seed}", *words]
                stvit_cli.train("fashion-mnist", [*SETTINGS, *more], output=run)
            found.append(top1(run))
        print(f"{name}: {', '.join(f'{value:.2f}' for value in found)}, mean {np.mean(found):.2f}", flush=True)


if __name__ == "__main__":
    main()
