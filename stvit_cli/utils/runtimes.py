"""The runtimes that models run in beside PyTorch, and what installs them. Imports none of them before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.text import did_you_mean

EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""Each runtime, and the extra of this package that installs it."""
ONNX = ("onnx", "onnxruntime")
"""The packages that an ONNX file is written and checked with."""


def require_runtimes(runtimes: Sequence[str]) -> None:
    """Check that runtimes are known and installed, and what exports models for them.

    Args:
        runtimes: names in `EXTRAS`.

    Raises:
        UserError: one is unknown or not installed; the message names the extra.
    """
    for name in runtimes:
        if name not in EXTRAS:
            raise UserError(f"runtime: found '{name}', expected {' or '.join(EXTRAS)}.{did_you_mean(name, list(EXTRAS))}")
        # onnxscript: models of timm and torchvision are exported by PyTorch's newer exporter (`analysis.cost.runtimes`).
        require_installed(f"runtime {name}", (name, *ONNX, "onnxscript"), EXTRAS[name])


def require_onnx() -> None:
    """Raise UserError where a package is missing that ONNX files are written and checked with."""
    require_installed("ONNX", ONNX, EXTRAS["onnxruntime"])


def require_runtime(path: Path, runtime: str) -> None:
    """Raise UserError where the runtime of an exported file is not installed."""
    require_installed(str(path), [runtime], EXTRAS[runtime])


def require_installed(what: str, packages: Iterable[str], extra: str) -> None:
    """Check that packages are installed.

    Args:
        what: what needs them.
        packages: their names; each is named once.
        extra: the extra of this package that installs them.

    Raises:
        UserError: one is missing; the message names the extra.
    """
    missing = [name for name in dict.fromkeys(packages) if not is_installed(name)]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}, not installed here: pip install 'stvit[{extra}]'")


@cache
def openvino_core() -> Any:
    """Return the one core of this process, which is never freed.

    OpenVINO's CPU plugin sets the thread's alternate signal stack, and puts the one before back when its core is freed. Of two
    cores freed in the order in which they were made, the second puts back the stack of the first, which is unmapped by then: the
    next signal with a handler (Ctrl-C, SIGCHLD of a data loader) kills the process without a word.
    """
    import openvino

    return openvino.Core()
