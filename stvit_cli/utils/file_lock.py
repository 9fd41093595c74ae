"""The system's lock on an open file (``flock``), which dies with its process, however that ends. Imports no torch."""

from __future__ import annotations

import errno
import fcntl

# What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(handle: int) -> bool:
    """Return True if the file is locked now, False if its file system has no locks. Raises BlockingIOError if another has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True
