"""What a report of a fault needs to say: versions, system, processor, GPUs, memory, compiled code, caches.

Every part is found by itself, and what fails is said in its place: the report is made where something does not work. Paths below
the home directory begin with ``~``; of the environment only the variables of `VARIABLES` are shown.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from stvit_cli import __version__
from stvit_cli.utils import processor
from stvit_cli.utils.cpp import compiler
from stvit_cli.utils.cpus import cpus, num_threads, set_by_user
from stvit_cli.utils.files import cache_dir
from stvit_cli.utils.library_cache import LibraryUnavailableError
from stvit_cli.utils.memory import available_memory, numbers
from stvit_cli.utils.text import first_line

REQUIRED = ("torch", "torchvision", "timm", "numpy", "pillow")
OTHERS = (
    *("einops", "fvcore", "matplotlib", "pydantic", "rich", "safetensors", "scipy", "triton", "typer"),
    *("onnx", "onnxruntime", "onnxscript", "openvino", "pycocotools", "segmentation-models-pytorch", "supervision"),
    *("datasets", "fsspec", "huggingface-hub", "mlflow", "mlflow-skinny", "pyarrow", "simplejpeg", "tensorboard"),
    *("trackio", "wandb"),
)
"""Packages whose version is shown where they are installed."""
VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CXX", "HF_HOME", "HF_HUB_OFFLINE", "LOCAL_RANK", "MKL_NUM_THREADS", "NCCL_DEBUG"),
    *("OMP_NUM_THREADS", "PYTHONPATH", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "RANK", "SLURM_JOB_ID", "STVIT_ABLATION"),
    *("TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "WORLD_SIZE", "XDG_CACHE_HOME"),
)
"""Environment variables that change what a run does; none holds a secret."""


def collect_env() -> dict[str, Any]:
    """Return what `stvit_cli.collect_env` describes."""
    import_error = _import_error()
    parts: dict[str, Callable[[], Any]] = {
        "versions": _versions,
        "system": _system,
        "cpu": lambda: _cpu(has_torch=import_error is None),
        "memory": _memory,
        "devices": lambda: import_error or _devices(),
        "compiled": lambda: import_error or _compiled(),
        "caches": _caches,
        "variables": lambda: {name: _short(os.environ[name]) for name in VARIABLES if name in os.environ},
    }
    return {name: _tried(part) for name, part in parts.items()}


def _tried(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:  # the others are still of use
        return f"cannot be found out ({type(error).__name__}: {first_line(error)})"


def _import_error() -> str | None:
    """Return why torch cannot be used here; None where it can."""
    try:
        import torch  # noqa: F401
    except Exception as error:  # a library of another system, of another torch, or damaged
        return f"torch cannot be imported ({type(error).__name__}: {first_line(error)})"
    return None


def _versions() -> dict[str, str]:
    found = {"stvit": __version__, "python": platform.python_version()}
    for name in (*REQUIRED, *OTHERS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in REQUIRED:
                found[name] = "not installed as a package"
    return found


def _system() -> dict[str, str]:
    libc = " ".join(part for part in platform.libc_ver() if part)
    return {
        "platform": platform.platform(),
        "libc": libc or "unknown",
        "python": _short(sys.executable),
        "stvit": _short(str(Path(__file__).resolve().parents[1])),
    }


def _cpu(*, has_torch: bool) -> dict[str, Any]:
    own = cpus()
    found: dict[str, Any] = {
        "name": processor.processor() or platform.processor() or platform.machine(),
        "instruction_sets": processor.instruction_sets(),
        "cpus": own.total,
        "usable_cpus": own.usable,
        "cpu_quota": own.quota,
        "threads": num_threads(),
        "threads_set_by": set_by_user(),
    }
    if has_torch:
        import torch

        found["used_by_torch"] = torch.backends.cpu.get_cpu_capability()
    return found


def _memory() -> dict[str, int | None]:
    total: int | None = None
    with suppress(OSError, KeyError):
        total = 1024 * numbers(Path("/proc/meminfo"))["MemTotal"]
    shared = _disk(Path("/dev/shm"))
    return {
        "total": total,
        "available": available_memory(),
        "shared_total": shared and shared[0],
        "shared_free": shared and shared[1],
    }


def _disk(path: Path) -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return usage.total, usage.free


def _devices() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch_cuda": torch.version.cuda, "torch_hip": torch.version.hip, "cudnn": None, "gpus": []}
    if torch.cuda.is_available():
        found["cudnn"] = torch.backends.cudnn.version()
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            found["gpus"].append(
                {"name": gpu.name, "memory": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"},
            )
    found["mps"] = torch.backends.mps.is_available()
    return found


def _compiled() -> dict[str, bool | str]:
    """Return what is compiled or native, and works: True, or the reason why it does not."""
    import torch

    found: dict[str, bool | str] = {"compiler": _tried(_compiler), "cpu_kernels": _tried(lambda: _kernels("cpu"))}
    found["gpu_kernels"] = _tried(lambda: _kernels("cuda")) if torch.cuda.is_available() else "no CUDA device here"
    found["resizing"] = _tried(_resizing)
    found["jpeg"] = _tried(_jpeg)
    found["torchvision_operators"] = _tried(_torchvision)
    return found


def _compiler() -> bool | str:
    try:
        return _short(" ".join(compiler()))
    except LibraryUnavailableError as error:
        return str(error)


def _kernels(device_type: str) -> bool | str:
    from stvit_cli.models import kernels

    try:
        kernels.load(device_type)
    except kernels.KernelsUnavailableError as error:
        return str(error)
    return True


def _resizing() -> bool | str:
    from stvit_cli.data import pixels

    return pixels.why_not() or True


def _jpeg() -> bool | str:
    from stvit_cli.data import jpeg

    return jpeg.why_not() or True


def _torchvision() -> bool | str:
    import torch
    import torchvision  # noqa: F401 (registers its operators)

    has_operators = hasattr(torch.ops.torchvision, "nms")
    return has_operators or "not there: torch and torchvision are from different indexes; install them together"


def _caches() -> dict[str, dict[str, Any]]:
    own = cache_dir()
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    folders = {"stvit": own, "kernels": own / "kernels", "Hugging Face": Path(hub), "torch": Path(torch_home)}
    return {
        name: {"path": _short(str(path)), "bytes": sum(_sizes(path)) if path.is_dir() else None} for name, path in folders.items()
    }


def _sizes(folder: Path | str) -> Iterator[int]:
    """Yield the sizes of the files in a folder and below it, without what links lead to and what cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # such as a file that another process removes meanwhile
                if entry.is_dir(follow_symlinks=False):
                    yield from _sizes(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False).st_size


def _short(path: str) -> str:
    """Return a path or a list of them without the name of the user's home directory."""
    home = os.path.expanduser("~")  # noqa: PTH111  # Path.home raises where there is none
    return path if home in ("~", "/", "") else path.replace(home, "~")
