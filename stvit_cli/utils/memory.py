"""The memory that this process may still take: of the machine, of its control groups (containers, Slurm) and of its own limit."""

from __future__ import annotations

from pathlib import Path

from stvit_cli.utils.cpus import control_groups

FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use and the name of file cache of a control group, by version 2 and 1."""


def available_memory(proc: Path = Path("/proc")) -> int | None:
    """Return the number of bytes that can still be taken without swapping or reaching a limit; None where the system hides it.

    Args:
        proc: mount point of procfs.

    >>> available_memory(Path("/nowhere")) is None
    True
    """
    try:
        machine = numbers(proc / "meminfo")
        status = numbers(proc / "self" / "status")
    except OSError:
        return None
    room = [machine[key] * 1024 for key in ("MemAvailable",) if key in machine]
    groups = control_groups(proc / "self", "memory")
    room += [left for group in groups if (left := _room(group)) is not None]
    limit = process_limit("RLIMIT_AS")
    if limit is not None:
        room.append(limit - status.get("VmSize", 0) * 1024)
    return max(min(room), 0) if room else None


def numbers(path: Path) -> dict[str, int]:
    """Read lines such as ``VmSize:  1234 kB``."""
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) for name, _, rest in pairs if rest.split() and rest.split()[0].isdigit()}


def _room(group: Path) -> int | None:
    """Return the bytes that a control group still allows; None where it has no limit. File cache counts as free."""
    for limit, usage, cache in FILES:
        try:
            most, taken = (group / limit).read_text().strip(), int((group / usage).read_text())
            pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
            freed = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}.get(cache, 0)
            return int(most) - taken + freed
        except (OSError, ValueError):  # no such file; "max"
            continue
    return None


def process_limit(name: str) -> int | None:
    """Return a limit of this process (``ulimit``); None where there is none, as on Windows.

    Args:
        name: as the module ``resource`` has it, such as ``RLIMIT_NOFILE``.

    >>> process_limit("RLIMIT_UNKNOWN") is None
    True
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    if not hasattr(resource, name):
        return None
    limit = resource.getrlimit(getattr(resource, name))[0]
    return None if limit == resource.RLIM_INFINITY else limit
