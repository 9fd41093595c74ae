"""Our own kernels: the memory-bound steps of STViT, each with one read of its tokens, where PyTorch takes many.

Three steps have one: super token sampling and upsampling (`super_token`), the position encoding x + depth-wise 3 x 3 of x, and
the middle of ConvFFN, GELU with that encoding after it (`layers`). `operators` says what they take and give, and their gradients;
on a CPU they are C++ that is compiled on first use (`cpu/`, `build`), on a GPU Triton (`gpu`). The modules hold the plain form
too, which runs wherever no kernel serves and is what the tests hold the kernels against.
"""

from __future__ import annotations

import sys
from typing import Literal

import torch
from torch import Tensor, nn

from stvit_cli.utils.environment import local_rank

_loaded: set[str] = set()
_unavailable: dict[str, KernelsUnavailableError] = {}


class KernelsUnavailableError(RuntimeError):
    """There are no kernels for this device on this machine; the message says why, in a line."""


class UnsupportedDeviceError(KernelsUnavailableError):
    """Nothing on this machine could make them available, so that nothing needs to be said."""


def load(device_type: str) -> None:
    """Make the kernels of ``cpu`` or ``cuda`` ready. The first time on a machine those of a CPU are compiled, in seconds.

    Raises:
        KernelsUnavailableError: no compiler, no Triton, or another device. It is not tried twice in a process.
    """
    if device_type in _unavailable:
        raise _unavailable[device_type]
    if device_type in _loaded:
        return
    try:
        _load(device_type)
    except KernelsUnavailableError as error:
        _unavailable[device_type] = error
        raise
    _loaded.add(device_type)


def _load(device_type: str) -> None:
    if device_type == "cpu":
        from stvit_cli.models.kernels import build, operators  # noqa: F401

        path = build.library()
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            raise KernelsUnavailableError(f"{path} cannot be loaded ({error.__cause__ or error})") from error
    elif device_type == "cuda":
        try:
            from stvit_cli.models.kernels.triton import library as gpu  # noqa: F401
        except ImportError as error:
            raise KernelsUnavailableError(f"the package {error.name} is missing") from error
    else:
        raise UnsupportedDeviceError(f"there are kernels for cpu and cuda, not for {device_type}")


def use_kernels(model: nn.Module, device_type: str, wanted: bool | Literal["auto"] = True) -> bool:
    """Let every part of ``model`` that has a kernel run it on devices of this type, and say whether there is such a part.

    Args:
        wanted: with ``auto``, on a CPU where they can be had; not on a GPU, where how fast they are was not measured.

    Raises:
        KernelsUnavailableError: they are wanted and cannot be had; see `load`.
    """
    parts = [module for module in model.modules() if hasattr(module, "kernels")]
    if wanted == "auto":
        wanted = device_type == "cpu" and bool(parts) and is_available(device_type)
    elif wanted and parts:
        load(device_type)
    for module in parts:
        module.kernels = wanted  # type: ignore[assignment]
    return wanted and bool(parts)


def is_available(device_type: str) -> bool:
    """Whether `load` succeeds. Says on standard error, once, why it does not, where something could be done about it."""
    known = device_type in _unavailable
    try:
        load(device_type)
    except KernelsUnavailableError as error:
        if not known and not isinstance(error, UnsupportedDeviceError) and local_rank() == 0:
            print(f"Warning: {error}. The plain form runs instead, slower.", file=sys.stderr)
        return False
    return True


def serve(x: Tensor, width: int | None = None) -> bool:
    """Whether the kernels take tokens (B, C, H, W) such as these, worked on so many channels at a time, or all.

    They do not in an exported graph and where FLOPs are counted, nor, on a CPU, in half precision or for a width that is no
    multiple of 16.
    """
    device_type = x.device.type
    if device_type not in _loaded or not x.numel() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    if not takes(device_type, x.dtype, autocast=device_type == "cpu" and torch.is_autocast_enabled("cpu")):
        return False
    return device_type != "cpu" or (width or x.shape[1]) % 16 == 0


def takes(device_type: str, dtype: torch.dtype, *, autocast: bool = False) -> bool:
    """Whether the kernels of this device type are for this precision: all of them on a GPU, float32 alone on a CPU."""
    return device_type != "cpu" or (dtype == torch.float32 and not autocast)
