"""A folder of images as shards: `data_shard`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stvit_cli.data.shards.write import WrittenSplit


@dataclass(frozen=True)
class ShardingResult:
    """What `data_shard` wrote.

    Attributes:
        output: the folder of the shards.
        splits: the shards of each split, with the number of images in each.
        num_images: in all.
    """

    output: Path
    splits: Sequence[WrittenSplit]
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `stvit data shard --json` writes them."""
        return {"output": str(self.output), "num_images": self.num_images, "splits": [asdict(split) for split in self.splits]}


def data_shard(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    size: int | str = "256MB",
    shuffle: bool = True,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> ShardingResult:
    """Write a folder of images by class into tar shards of WebDataset's layout; the bytes of the files stay as they are.

    A call that is interrupted is continued by the same call. Train on the result with ``data.kind=shards``.

    Args:
        folder: folders by class, in ``train/`` and ``val/`` or side by side.
        output: the folder of the shards: new, or of an earlier call with the same images.
        size: largest size of a shard, such as ``256MB``, or in bytes.
        shuffle: put the images of each split in a random order, always the same. False: class after class.
        threads: number of shards that are written at once; None: the number of usable CPUs.
        advance: called with the number of shards done, and of all.

    Raises:
        UserError: there is no such folder, an image cannot be read, or the output holds something else.
        WriteError: the output cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         _ = (Path(folder) / name / "1.jpg").write_bytes(b"bytes")
        ...     data_shard(folder, Path(folder) / ".shards", threads=1).splits
        [WrittenSplit(name='shard', files=('shard-0000.tar',), counts=(2,))]
    """
    from stvit_cli.data.loader import usable_workers
    from stvit_cli.data.shards.write import parse_size, write_shards

    limit = parse_size(size) if isinstance(size, str) else size
    number = threads if threads is not None else max(usable_workers(16), 1)
    splits = write_shards(folder, output, size=limit, shuffle=shuffle, threads=number, advance=advance)
    return ShardingResult(Path(output), splits, sum(sum(split.counts) for split in splits))
