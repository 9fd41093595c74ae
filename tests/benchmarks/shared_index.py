"""Measure the start-up of many processes that share one index of shards.

python tests/benchmarks/shared_index.py [--processes 512] [--shards 64] [--images 500]

Forked processes stand for those of a cluster that share the cache folder; they have imported everything before. All open the
shards at once: first without an index, which one of them builds; then with it. Each reads one image. Printed are how many of them
read headers and how often each shard was read, how many failed, how many distinct indexes they saw, and times by the clock.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

from stvit_cli.data.shards import index_builder, open_shards

LABELS = 100


def write_shards(folder: Path, shards: int, images: int) -> None:
    """Write shards of samples without pixels: a header, 900 bytes, and a label."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"a-train-{shard:04d}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for number in range(images):
                for ending, content in (("jpg", bytes(900)), ("cls", b"%d" % (number % LABELS))):
                    member = tarfile.TarInfo(f"{shard:04d}{number:06d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def round_of(folder: Path, log: Path, processes: int) -> tuple[float, list[float], set[str], int]:
    """Start processes at once; return the time until the last has ended, that of each, their fingerprints and their failures."""
    ready, go = os.pipe(), os.pipe()
    reports = log.with_name("reports")
    reports.write_text("")
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            os.close(go[1])
            os.write(ready[1], b".")
            os.read(go[0], 1)  # ends when the parent closes its end
            began = time.perf_counter()
            index = open_shards(folder)
            index.read(rank * 7919 % len(index))
            with reports.open("a") as file:
                file.write(f"{time.perf_counter() - began:.3f} {index.fingerprint}\n")
            code = 0
        finally:
            os._exit(code)
    waiting = processes
    while waiting:
        waiting -= len(os.read(ready[0], waiting))
    began = time.perf_counter()
    os.close(go[1])
    failed = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in pids)
    seconds = time.perf_counter() - began
    found = [line.split() for line in reports.read_text().splitlines()]
    for handle in (*ready, go[0]):
        os.close(handle)
    return seconds, [float(each) for each, _ in found], {fingerprint for _, fingerprint in found}, failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=512)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--images", type=int, default=500, help="of each shard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        write_shards(root / "shards", options.shards, options.images)
        log, scan = root / "log", index_builder.scan

        def logged(file, **more):
            with log.open("a") as lines:
                lines.write(f"{os.getpid()} {file.name}\n")
            return scan(file, **more)

        index_builder.scan = logged
        log.touch()
        for name in ("without an index", "with an index"):
            log.write_text("")
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds, each, fingerprints, failed = round_of(root / "shards", log, options.processes)
            lines = [line.split() for line in log.read_text().splitlines()]
            counts = Counter(shard for _, shard in lines)
            readers = len({pid for pid, _ in lines})
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{options.processes} processes, {name}: {seconds:.2f} s until the last has ended, "
                f"each {statistics.median(each):.2f} s (median; at most {max(each):.2f}) and "
                f"{1000 * taken / options.processes:.0f} ms of processor time, {failed} failed; "
                f"{readers} read headers, each of {len(counts)} shards {max(counts.values(), default=0)} times; "
                f"{len(fingerprints)} distinct index",
                flush=True,
            )


if __name__ == "__main__":
    main()
