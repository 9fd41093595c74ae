"""The processes that torchrun started, read from the environment that it sets."""

from __future__ import annotations

import os

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


def is_main_process() -> bool:
    """Whether this is the process that prints and writes: the only one, or the first of those that torchrun started."""
    return rank() == 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise UserError(f"The environment variable {name} is {text!r}, expected a whole number, as torchrun sets it.") from None
