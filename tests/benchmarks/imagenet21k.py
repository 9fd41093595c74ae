"""ImageNet-21K without its images: an index of 14.2 million entries, opened, and `stvit train --dry-run` on it.

    python tests/benchmarks/imagenet21k.py [--images 14197122] [--model stvit-s] [train.precision=fp32]

Every entry points to one of four real images, so that what is read is read from a file. Prints the size of the index, the
time to open it, the memory that opening takes, and the dry run with its time.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.made_index import make_index

from stvit_cli.utils.files import cache_dir

ROOT = Path(__file__).parents[2]


def real_images() -> list[bytes]:
    """Return four JPEGs of ImageNet's usual size, 500 x 375."""
    picture = Image.open(ROOT / "tests" / "images" / "coffee.jpg").convert("RGB")
    found = []
    for number in range(4):
        buffer = io.BytesIO()
        picture.rotate(3 * number).resize((500, 375)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def main() -> None:
    """Make the index, open it, run the dry run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=14_197_122)
    parser.add_argument("--model", default="stvit-s")
    options, words = parser.parse_known_args()
    kernels = cache_dir() / "kernels"  # compiled already; the index goes into a cache of its own
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "imagenet22k"
        (Path(temporary) / "cache" / "stvit").mkdir(parents=True)
        (Path(temporary) / "cache" / "stvit" / "kernels").symlink_to(kernels)
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        began = time.monotonic()
        path = make_index(folder, real_images(), images=options.images, shards=2048, classes=21_841, val_images=50_000)
        print(f"made in {time.monotonic() - began:.1f} s; {path.stat().st_size / 1e6:.0f} MB", flush=True)
        print(opened(folder), flush=True)
        began = time.monotonic()
        command = ["-m", "stvit_cli", "train", "--recipe", "imagenet21k90", "--data", str(folder), "--model", options.model]
        ended = subprocess.run([sys.executable, *command, "--dry-run", "data.kind=shards", *words], cwd=temporary, check=False)
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"dry run: {time.monotonic() - began:.1f} s, exit code {ended.returncode}, {children:.2f} GiB at most", flush=True)


def opened(folder: Path) -> str:
    """Return what opening the index takes."""
    from stvit_cli.data.shards.index import open_shards
    from stvit_cli.data.shards.storage import list_shards

    files = [file for file in list_shards(folder) if "train" in file.name]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = open_shards(files)
    seconds = time.monotonic() - began
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    began = time.monotonic()
    for number in range(0, len(index), len(index) // 2000):
        index.read(number)
    reads = 2000 / (time.monotonic() - began)
    return (
        f"opened in {seconds:.2f} s: {len(index)} images, {len(index.class_names)} classes, {taken:.0f} MB; {reads:.0f} reads/s"
    )


if __name__ == "__main__":
    main()
