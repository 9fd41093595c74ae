"""What a measurement ran on: processor, instruction sets, CPUs, threads and versions."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import Any

import torch

from stvit_cli import __version__
from stvit_cli.utils import processor as cpuinfo
from stvit_cli.utils.cpus import cpus, set_by_user

PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "openvino")


def describe_machine(device: str) -> dict[str, Any]:
    """Describe the machine for the JSON of a measurement.

    Args:
        device: ``cpu`` or ``cuda``.

    Returns:
        processor, instruction_sets, cpus (logical ones of the machine), usable_cpus and cpu_quota (of this process, see
        `utils.cpus`), threads (that PyTorch computes with), threads_set_by (a variable such as ``OMP_NUM_THREADS=4``, or None),
        gpu (or None), and versions (None: not installed; ``onednn`` is the library in PyTorch).

    Example:
        >>> describe_machine("cpu")["threads"] >= 1
        True
    """
    own = cpus()
    return {
        "processor": processor(),
        "instruction_sets": instruction_sets(),
        "cpus": own.total,
        "usable_cpus": own.usable,
        "cpu_quota": own.quota,
        "threads": torch.get_num_threads(),
        "threads_set_by": set_by_user(),
        "gpu": None if device == "cpu" else torch.cuda.get_device_name(device),
        "versions": versions(),
    }


def machine(device: str) -> str:
    """Return the name of the processor and its number of threads, or of the GPU."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads != 1)}"


def processor() -> str:
    """Return the name of the processor; CPU where the system does not say it."""
    return cpuinfo.processor() or "CPU"


def instruction_sets() -> list[str]:
    """Return the names in `INSTRUCTION_SETS` that the processor has, whatever PyTorch uses of them."""
    return cpuinfo.instruction_sets() or [torch.backends.cpu.get_cpu_capability()]


def versions() -> dict[str, str | None]:
    """Return the versions of stvit, Python and what computes; None where a package is not installed."""
    found: dict[str, str | None] = {"stvit": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    onednn = re.search(r"(?:MKL-DNN|oneDNN) v([\d.]+)", torch.__config__.show())
    return found | {"onednn": onednn[1] if onednn and torch.backends.mkldnn.is_available() else None}
