"""What this process runs in: the processes that torchrun started, from the variables that it sets, and installed packages."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from stvit_cli.errors import UserError


def rank() -> int:
    """Return the rank of this process among all, 0 without torchrun."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Return the rank of this process among those of its machine, 0 without torchrun."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """Return the number of processes, 1 without torchrun."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Return the number of processes on this machine, 1 without torchrun."""
    return _number("LOCAL_WORLD_SIZE", 1)


def restart_count() -> int:
    """Return how often torchrun has restarted these processes after one of them failed (elastic restart)."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def require_group() -> None:
    """Check that the processes can find each other.

    Raises:
        UserError: there are several, but a variable that torchrun sets is missing or makes no sense.
    """
    size, own = world_size(), rank()
    if size < 1:
        raise UserError(f"The environment variable WORLD_SIZE is {size}, expected 1 or more.")
    if not 0 <= own < size:
        raise UserError(f"The environment variable RANK is {own}, expected 0 to {size - 1}: WORLD_SIZE is {size}.\n{_HOW}")
    if size == 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"The environment variable WORLD_SIZE is {size}, but {' and '.join(missing)} {are} not set.\n{_HOW}")
    port = _number("MASTER_PORT", 0)
    if not 0 < port < 65536:
        raise UserError(f"The environment variable MASTER_PORT is {port}, expected a port from 1 to 65535.\n{_HOW}")


_HOW = "torchrun sets these; for a single process, unset WORLD_SIZE and RANK."


@contextmanager
def single_process() -> Iterator[None]:
    """Take this process for the only one within a ``with`` block: for work of the main process when the others have ended."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def is_main_process() -> bool:
    """Return whether this is the process that prints and writes: rank 0."""
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise UserError(f"The environment variable {name} is {text!r}, expected a whole number, as torchrun sets it.") from None


def is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None
