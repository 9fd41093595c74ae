"""How the process keeps freed memory on a CPU."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from stvit_cli.utils.troubleshooting import see

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Keep freed memory in the process, and ask for large pages. To be called before torch allocates.

    glibc gives every large tensor back to the system when it is freed, which then clears it page by page for the next one. That
    takes more time than many operators do: on two cores a forward pass of stvit-s varies by a third with it. Nothing is changed
    where another C library runs, or where the user has set malloc up.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's: pages of 2 MiB for tensors of that size
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


_OUT_OF_MEMORY = (
    "stvit: Out of memory.\nFree memory, or raise the limit of this process (ulimit -v, or the container's).\n"
    f"{see('out-of-memory')}\n"
).encode()

_reserve = mmap.mmap(-1, 4 << 20)
"""Of address space alone: its pages are never touched. Not of malloc, whose ways are set above."""


@contextmanager
def last_memory() -> Iterator[None]:
    """Give a message the memory that was kept for it; where that does not suffice either, say it without any and continue.

    From then on nothing is said of a MemoryError that Python ignores: libraries such as torch's compiler tidy up at the end.
    """
    _reserve.close()
    former = sys.unraisablehook
    sys.unraisablehook = lambda found: None if issubclass(found.exc_type, MemoryError) else former(found)
    try:
        yield
    except MemoryError:
        os.write(2, _OUT_OF_MEMORY)
