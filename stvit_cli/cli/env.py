"""``stvit env``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stvit_cli.cli import app
from stvit_cli.cli.options import Json
from stvit_cli.cli.output import echo, reporting


@app.command()
def env(json_file: Json = None) -> None:
    """Describe this installation: versions, machine, GPUs, compiled code and caches, as text to paste into a report of a fault.

    Kernels that were never compiled on this machine are compiled, to say whether they work.

    \b
    stvit env
    stvit env --json env.json
    """
    from stvit_cli.api import collect_env

    with reporting(json_file) as report:
        found = collect_env()
        echo(*as_text(found).split("\n"))
        report(found)


def as_text(env: dict[str, Any]) -> str:
    """Return what `collect_env` found as plain text, a line each.

    Example:
        >>> print(as_text({"versions": {"stvit": "0.2.0", "python": "3.12.1"}, "devices": "torch cannot be imported"}))
        stvit    0.2.0
        python   3.12.1
        devices  torch cannot be imported
    """
    lines: list[tuple[str, str]] = []
    for part, found in env.items():
        if not isinstance(found, dict):
            lines.append((part, str(found)))
        elif part in _PARTS:
            lines += _PARTS[part](found)
        else:
            lines += [(name, str(value)) for name, value in found.items()]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines)


def _cpu_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    quota = "" if found["cpu_quota"] is None else f", quota {found['cpu_quota']:g}"
    by = f" ({found['threads_set_by']})" if found["threads_set_by"] else ""
    sets = ", ".join(found["instruction_sets"]) or "unknown instruction sets"
    used = f"; torch uses {found['used_by_torch']}" if "used_by_torch" in found else ""
    return [
        ("cpu", f"{found['name']}: {sets}{used}"),
        ("cpus", f"{found['cpus']}, usable {found['usable_cpus']}{quota}; threads of torch: {found['threads']}{by}"),
    ]


def _memory_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    names = {key: _gigabytes(value) for key, value in found.items()}
    return [
        ("memory", f"{names['total']}, available {names['available']}"),
        ("/dev/shm", f"{names['shared_total']}, free {names['shared_free']}" if found["shared_total"] else "not there"),
    ]


def _device_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    built = f"CUDA {found['torch_cuda']}" if found["torch_cuda"] else f"ROCm {found['torch_hip']}" if found["torch_hip"] else ""
    gpus = [
        (f"gpu {index}", f"{gpu['name']}, {_gigabytes(gpu['memory'])}, compute capability {gpu['capability']}")
        for index, gpu in enumerate(found["gpus"])
    ]
    cudnn = f", cuDNN {found['cudnn']}" if found["cudnn"] else ""
    return [
        ("torch built for", f"{built or 'CPU'}{cudnn}{', MPS is available' if found['mps'] else ''}"),
        *(gpus or [("gpu", "none that torch can use")]),
    ]


_COMPILED = {
    "compiler": "C++ compiler",
    "cpu_kernels": "CPU kernels",
    "gpu_kernels": "GPU kernels",
    "resizing": "native resizing",
    "jpeg": "native JPEG",
    "torchvision_operators": "torchvision's ops",
}


def _compiled_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(_COMPILED[name], "work" if value is True else str(value)) for name, value in found.items()]


def _cache_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"cache of {name}", "none" if cache["bytes"] is None else f"{cache['bytes'] / 1e6:.1f} MB in {cache['path']}")
        for name, cache in found.items()
    ]


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"


_PARTS: dict[str, Callable[[dict[str, Any]], list[tuple[str, str]]]] = {
    "system": lambda found: [("system", found["platform"]), ("libc", found["libc"]), ("stvit in", found["stvit"])],
    "cpu": _cpu_lines,
    "memory": _memory_lines,
    "devices": _device_lines,
    "compiled": _compiled_lines,
    "caches": _cache_lines,
}
