"""Shards of a few images for tests: tar files in WebDataset's layout, and Parquet files as the Hugging Face Hub has them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def jpeg(red: int, size: int = 8) -> bytes:
    """Return a small JPEG of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (red % 256, 40, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar file with these members; as WebDataset's own writer, with times that need an extended header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1.5
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(
    folder: Path, split: str = "train", shards: int = 3, images: int = 6, classes: int = 3, size: int = 8, first: int = 0
) -> list[Path]:
    """Write shards as timm names them; image i of all has class i % ``classes`` and a red that tells it apart."""
    paths = []
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for number in range(images):
            index = shard * images + number
            members[f"n{index % classes:04d}_{index}.cls"] = str(index % classes).encode()
            members[f"n{index % classes:04d}_{index}.jpg"] = jpeg(first + index * 7, size)
        paths.append(write_tar(folder / f"toy-{split}-{shard:04d}.tar", members))
    return paths


def write_info(folder: Path, splits: Mapping[str, list[Path]], **more: object) -> None:
    """Write timm's ``_info.json``."""
    content = {
        name: {"name": name, "num_samples": 0, "filenames": [path.name for path in paths], "shard_lengths": []}
        for name, paths in splits.items()
    }
    (folder / "_info.json").write_text(json.dumps({"splits": content, **more}))
