"""Building of an index: shards read in parallel, each noted as it is done, by one process of all that need it. Imports no torch.

The index is in the cache folder. Beside it lies a journal with the shards that are done, so that a build that is killed goes on
from there; an index of changed shards takes the unchanged ones from the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import BinaryIO

from stvit_cli.data.shards.build_lock import building
from stvit_cli.data.shards.index_file import FORMAT, Identity, IndexContent, identity_of, read_index, write_index
from stvit_cli.data.shards.part import Part
from stvit_cli.data.shards.reader import Reader
from stvit_cli.data.shards.storage import PARQUET, THREADS, ShardFile, is_remote
from stvit_cli.data.shards.tar_shard import scan_tar
from stvit_cli.errors import UserError, WriteError
from stvit_cli.utils.files import cache_dir, reason_of
from stvit_cli.utils.text import printable

_log = logging.getLogger(__name__)

REMOTE_BLOCK = 4 << 20
"""Bytes of one request for headers of a remote shard: a request takes longer than to send so much."""
LOCAL_BLOCK = 1 << 15

Advance = Callable[[int, int], None]
"""Called with the number of shards done, and of all."""


def index_path(files: Sequence[ShardFile], columns: tuple[str | None, str | None]) -> Path:
    """Return where the index of some shards is. Raises UserError where there is no cache folder."""
    digest = hashlib.blake2b(json.dumps([FORMAT, columns, [file.path for file in files]]).encode(), digest_size=10)
    try:
        return cache_dir() / f"shards-{digest.hexdigest()}.index"
    except OSError as error:
        raise UserError(f"There is no folder for the index of the shards: {reason_of(error)}.") from None


def load_or_build(
    files: Sequence[ShardFile],
    *,
    label_column: str | None = None,
    image_column: str | None = None,
    advance: Advance = lambda done, total: None,
) -> IndexContent:
    """Return the index of some shards: the one in the cache where the shards are unchanged, otherwise a new one.

    Of several processes, on any number of machines that share the cache folder, one builds and the others wait.

    Args:
        files: the shards.
        label_column: field of ``.json``, or Parquet's column, with the label.
        image_column: Parquet's column with the image.
        advance: called with the number of shards done, and of all.

    Raises:
        UserError: a shard cannot be read, or its labels are no labels.
        WriteError: the index cannot be written.
    """
    wanted = tuple(map(identity_of, files))
    path = index_path(files, (label_column, image_column))

    def current() -> IndexContent | None:
        found = read_index(path)
        return found if found is not None and found.shards == wanted else None

    found = current()
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(_log.info, "Another process is building the index of the shards; waiting for it: %s", path)
        with building(path, lambda: current() is not None, waiting) as is_mine:
            if is_mine:
                read = partial(scan, reader=Reader(), label_column=label_column, image_column=image_column)
                _build(path, files, read, advance)
    except OSError as error:
        raise WriteError(
            f"The index of the shards cannot be written to {printable(str(path))}: {reason_of(error)}.\n"
            "Make room there, or set XDG_CACHE_HOME to another folder."
        ) from error
    found = current()
    if found is None:
        raise UserError(f"The shards changed while their index was built: {printable(files[0].path)}.")
    return found


def scan(file: ShardFile, *, reader: Reader, label_column: str | None = None, image_column: str | None = None) -> Part:
    """Return the images of one shard. Raises UserError where it cannot be read, or a label is none."""
    if file.name.lower().endswith(PARQUET):
        from stvit_cli.data.shards.parquet_shard import scan_parquet

        return scan_parquet(file, label_column=label_column, image_column=image_column)
    block = REMOTE_BLOCK if is_remote(file.path) else LOCAL_BLOCK
    return scan_tar(partial(reader.read, file), file.size, file.path, label_column, block)


def _build(path: Path, files: Sequence[ShardFile], read: Callable[[ShardFile], Part], advance: Advance) -> None:
    journal = path.with_name(f"{path.name}.journal")
    parts = dict(_read_journal(journal))
    old = read_index(path)
    if old is not None:
        known = set(old.shards) & set(map(identity_of, files))
        parts |= {identity: part for identity, part in old.parts().items() if identity in known}
    missing = [file for file in files if identity_of(file) not in parts]
    done = len(files) - len(missing)
    advance(done, len(files))
    with journal.open("ab") as log, ThreadPoolExecutor(THREADS, thread_name_prefix="index") as pool:
        futures: dict[Future[Part], ShardFile] = {pool.submit(read, file): file for file in missing}
        try:
            for future in as_completed(futures):
                identity, part = identity_of(futures[future]), future.result()
                parts[identity] = part
                _append(log, identity, part)
                done += 1
                advance(done, len(files))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    write_index(path, [identity_of(file) for file in files], [parts[identity_of(file)] for file in files])
    with contextlib.suppress(OSError):
        journal.unlink()


def _append(log: BinaryIO, identity: Identity, part: Part) -> None:
    """Write a record: its length and digest, then the shard and what it holds."""
    content = json.dumps(identity).encode() + b"\n" + part.to_bytes()
    digest = hashlib.blake2b(content, digest_size=16).digest()
    log.write(len(content).to_bytes(8, "little") + digest + content)
    log.flush()


def _read_journal(journal: Path) -> Iterator[tuple[Identity, Part]]:
    """Yield the shards of a build that ended early, and cut off what it was just writing."""
    try:
        with journal.open("r+b") as log:
            good, size = 0, os.fstat(log.fileno()).st_size
            while True:
                head = log.read(24)
                length = int.from_bytes(head[:8], "little")
                content = log.read(length) if len(head) == 24 and length <= size - log.tell() else b""
                if not content or hashlib.blake2b(content, digest_size=16).digest() != head[8:]:
                    break
                line, _, rest = content.partition(b"\n")
                name, size, stamp = json.loads(line)
                yield (str(name), int(size), str(stamp)), Part.from_bytes(rest)
                good = log.tell()
            os.truncate(log.fileno(), good)
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # of another version
        journal.unlink(missing_ok=True)
