"""Why there are no custom kernels."""


class KernelsUnavailableError(RuntimeError):
    """There are no custom kernels for this device on this machine; the message gives the reason in one line."""


class UnsupportedDeviceError(KernelsUnavailableError):
    """There are no custom kernels for this type of device at all: nothing to warn about."""
