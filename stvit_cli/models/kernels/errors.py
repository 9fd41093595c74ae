"""Why there are no custom kernels."""

from stvit_cli.utils.library_cache import LibraryUnavailableError as KernelsUnavailableError

__all__ = ["KernelsUnavailableError", "UnsupportedDeviceError"]


class UnsupportedDeviceError(KernelsUnavailableError):
    """There are no custom kernels for this type of device at all: nothing to warn about."""
