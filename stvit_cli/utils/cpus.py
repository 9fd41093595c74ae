"""How many CPUs this process may use, by its affinity and the CPU quota of its container; and the threads PyTorch takes for them.

PyTorch takes all cores of the machine. In a container with a quota of two CPUs on a machine with 64, its 64 threads use up the
quota of a period within milliseconds, and then wait for the next period, most of them for each other. On two cores of an AMD EPYC
with a quota of one CPU, stvit-s predicts 3.7 images per second with two threads, 5.1 with one; with a quota of 1.5 CPUs, 5.6 with
two and 4.7 with one: a part of a CPU is worth a thread. Imports no torch.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from stvit_cli.utils.after_import import call_after_import
from stvit_cli.utils.environment import local_world_size

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user sets the number of threads."""


@dataclass(frozen=True)
class CPUs:
    """The CPUs of a machine and what this process may use of them.

    Attributes:
        total: logical CPUs of the machine.
        allowed: those that the process may run on (its affinity).
        quota: CPU seconds per second that its control groups allow, as a container's ``--cpus`` sets; None: no limit.
    """

    total: int
    allowed: int
    quota: float | None

    @property
    def usable(self) -> int:
        """The number of threads that can run at once; a part of a CPU counts as one, as in Go and Java."""
        return self.allowed if self.quota is None else max(1, min(self.allowed, math.ceil(self.quota)))


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1."""
    return cpus().usable


def cpus() -> CPUs:
    """Return the CPUs of this machine and what this process may use of them."""
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    return CPUs(total, allowed, _own_quota())


@cache
def _own_quota() -> float | None:
    return cpu_quota()


def cpu_quota(proc: Path = Path("/proc/self")) -> float | None:
    """Return the CPU quota of a process in CPUs: the smallest of its control groups (cgroup v1 and v2) and all above them.

    Args:
        proc: the folder of the process in procfs, with the files ``cgroup`` and ``mountinfo``.

    Returns:
        Such as 2.5; None where there is no limit, as on a system without control groups.
    """
    return min((quota for folder in control_groups(proc, "cpu") if (quota := _quota(folder)) is not None), default=None)


def control_groups(proc: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that a process is in and of those above them, as far as they are mounted here.

    Args:
        proc: the folder of the process in procfs, with the files ``cgroup`` and ``mountinfo``.
        controller: of version 1: cpu, memory, ...
    """
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    for fields in mounts:  # man 5 proc: id, parent, device, root, mount point, options, ... "-", type, source, super options
        if "-" not in fields or (kind := fields[fields.index("-") + 1]) not in ("cgroup", "cgroup2"):
            continue
        if kind == "cgroup" and controller not in fields[-1].split(","):
            continue
        for _, controllers, path in (group for group in groups if len(group) == 3):
            if controllers == "" if kind == "cgroup2" else controller in controllers.split(","):
                root, mount_point = PurePosixPath(_unescaped(fields[3])), Path(_unescaped(fields[4]))
                # In a container the path may be the host's, of which only the own group is mounted.
                below = PurePosixPath(path)
                is_below = below.is_relative_to(root) and ".." not in below.parts
                folder = mount_point / below.relative_to(root) if is_below else mount_point
                yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(mount_point)))


def _quota(folder: Path) -> float | None:
    """Return the quota of one control group in CPUs; None where it has none."""
    try:
        if (folder / "cpu.max").is_file():  # cgroup v2: "max 100000" or "150000 100000", microseconds
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"
        return None


def _unescaped(text: str) -> str:
    """Return a path of mountinfo, in which a space is written as a backslash and its octal number, 040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def threads_of_process() -> int:
    """Return this process's part of the usable CPUs: the processes that torchrun started on this machine share them."""
    return max(1, usable_cpus() // max(1, local_world_size()))


@cache
def limit_threads() -> None:
    """Have PyTorch compute with as many threads as there are usable CPUs for this process, now or once it is imported.

    The number is lowered once in a process, and never raised. It stays as it is where the user has set it: by one of
    `THREAD_VARIABLES`, or by ``torch.set_num_threads`` before, if to another number than PyTorch takes by itself.
    """
    if set_by_user() is None:
        was_imported = "torch" in sys.modules
        call_after_import("torch", lambda: _limit(was_imported=was_imported))


def _limit(*, was_imported: bool) -> None:
    torch = sys.modules["torch"]
    if not hasattr(torch, "set_num_threads"):  # its import is not finished
        return
    found, machine = torch.get_num_threads(), cpus()
    # One thread for each CPU, or for each core of two CPUs, as MKL counts.
    is_default = not was_imported or found in {machine.total, machine.allowed, machine.total // 2, machine.allowed // 2}
    if is_default and found > threads_of_process():
        torch.set_num_threads(threads_of_process())


def set_by_user() -> str | None:
    """Return what the user has set the number of threads by, such as ``OMP_NUM_THREADS=4``; None: nothing."""
    return next((f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if os.environ.get(name)), None)


def num_threads() -> int | None:
    """Return the number of threads that PyTorch computes with on a CPU; None where it is not imported."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def threads_note() -> str | None:
    """Return a line for the user where the number of threads is not what PyTorch takes by itself, or is a bad choice."""
    machine, threads, given, processes = cpus(), num_threads(), set_by_user(), local_world_size()
    if threads is None:
        return None
    of = f"{threads} thread{'s' * (threads != 1)}"
    quota = "" if machine.quota is None else f"CPU quota of {machine.quota:g}"
    limit = quota if machine.quota is not None and machine.quota < machine.allowed else f"affinity to {machine.allowed} CPUs"
    if given is not None and processes > 1 and threads < threads_of_process():
        return (
            f"Note: {of} for each of {processes} processes ({given}; torchrun sets 1 where it is not set). "
            f"There are CPUs for {threads_of_process()}: set OMP_NUM_THREADS={threads_of_process()}."
        )
    if threads * processes > machine.usable and machine.usable < machine.total:
        return (
            f"Note: {of} ({given or 'torch.set_num_threads'}) for a {limit}: slower than OMP_NUM_THREADS={threads_of_process()}."
        )
    if given is None and machine.usable < machine.total:
        return f"Note: {of}, by the {limit}, on a machine with {machine.total} CPUs."
    return None
