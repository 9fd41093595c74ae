"""The system's lock on an open file, which dies with its process, however that ends. Imports no torch."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_FAR = 1 << 30
"""Position of the byte that is locked on Windows, where others cannot read what is locked: beyond what the file holds."""


def lock(handle: int) -> bool:
    """Return True if the file is locked now, False if its file system has no locks. Raises BlockingIOError if another has it.

    By ``flock``; on Windows by ``LockFile``.
    """
    try:
        if sys.platform == "win32":
            _lock_on_windows(handle, msvcrt)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _lock_on_windows(handle: int, system: Any) -> None:
    """Lock a byte of the file by Windows' module ``msvcrt``. It is unlocked when the file is closed."""
    position = os.lseek(handle, 0, os.SEEK_CUR)
    os.lseek(handle, _FAR, os.SEEK_SET)
    try:
        system.locking(handle, system.LK_NBLCK, 1)
    except PermissionError as error:  # EACCES: what it answers where another process has the lock
        raise BlockingIOError(errno.EAGAIN, "the file is locked by another process") from error
    finally:
        os.lseek(handle, position, os.SEEK_SET)
