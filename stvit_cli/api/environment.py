"""What a report of a fault needs to say."""

from __future__ import annotations

from typing import Any


def collect_env() -> dict[str, Any]:
    """Return versions, machine, GPUs, memory, compiled code and caches of this installation, for a report of a fault.

    Kernels are compiled where they have not been yet, which takes a minute: whether they work is found by using them.

    Returns:
        ``versions`` (of stvit, Python and packages), ``system``, ``cpu``, ``memory`` (bytes), ``devices``, ``compiled`` (what is
        compiled for this machine: True, or why it is not), ``caches`` (path and bytes), ``variables`` (of the environment). A
        part that cannot be found out is a string that says why.

    Example:
        >>> collect_env()["versions"]["torch"] != ""
        True
    """
    from stvit_cli.analysis import collect_env as module

    return module.collect_env()
