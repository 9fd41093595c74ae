"""An index of as many images as ImageNet-21K has, made without them: every entry points to one of a few real images.

Not a test; a test and a benchmark import it.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from helpers.shards import write_tar
from stvit_cli.data.shards.index_builder import index_path
from stvit_cli.data.shards.index_file import identity_of, write_index
from stvit_cli.data.shards.part import Part
from stvit_cli.data.shards.storage import list_shards
from stvit_cli.data.shards.tar_shard import BLOCK

TRAIN, VAL = "train", "validation"


def make_index(folder: Path, jpegs: list[bytes], *, images: int, shards: int, classes: int, val_images: int) -> Path:
    """Write shards that are links to one tar file, and their index into the cache folder; return the path of the index.

    Args:
        folder: of the shards.
        jpegs: the real images.
        images: in the training shards, all of them together.
        shards: of training; one more is for validation.
        classes: whose numbers are the labels.
        val_images: in that one.
    """
    real = write_tar(folder.with_name(f"{folder.name}-images.tar"), {f"{n}.jpg": jpeg for n, jpeg in enumerate(jpegs)})
    folder.mkdir(parents=True)
    for number in range(shards):
        os.link(real, folder / f"made-{TRAIN}-{number:04d}.tar")
    os.link(real, folder / f"made-{VAL}-0000.tar")
    content = real.read_bytes()
    places = np.array([content.index(jpeg) // BLOCK for jpeg in jpegs], dtype=np.uint32)
    sizes = np.array([len(jpeg) for jpeg in jpegs], dtype=np.uint32)
    generator = np.random.default_rng(0)

    def part(count: int, first: int) -> Part:
        labels = (np.arange(first, first + count) * 7919) % classes
        unique, codes = np.unique(labels, return_inverse=True)
        which = generator.integers(0, len(jpegs), count)
        texts = tuple(("label", str(label)) for label in unique.tolist())
        return Part(places[which], sizes[which], codes.astype(np.int32), texts)

    files = list_shards(folder)
    train = [file for file in files if TRAIN in file.name]
    held_out = [file for file in files if VAL in file.name]
    bounds = np.linspace(0, images, len(train) + 1).astype(int).tolist()
    path = index_path(train, (None, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [part(last - first, first) for first, last in pairwise(bounds)]
    write_index(path, [identity_of(file) for file in train], parts)
    write_index(index_path(held_out, (None, None)), [identity_of(file) for file in held_out], [part(val_images, 0)])
    return path
