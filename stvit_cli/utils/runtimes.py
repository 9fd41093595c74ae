"""The runtimes that models run in beside PyTorch, and what installs them. Imports none of them before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from stvit_cli.errors import UserError
from stvit_cli.utils.environment import is_installed
from stvit_cli.utils.text import did_you_mean

EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
"""Each runtime, and the extra of this package that installs it."""
_EXPORT = ("onnx", "onnxscript", "onnxruntime")


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
        missing = [package for package in (name, *_EXPORT) if not is_installed(package)]
        if missing:
            needed = ", ".join(dict.fromkeys(missing))
            raise UserError(f"runtime {name} needs {needed}, not installed here: pip install 'stvit[{EXTRAS[name]}]'")


@cache
def openvino_core() -> Any:
    """Return the one core of this process, which is never freed.

    OpenVINO's CPU plugin sets the thread's alternate signal stack, and puts the one before back when its core is freed. Of two
    cores freed in the order in which they were made, the second puts back the stack of the first, which is unmapped by then: the
    next signal with a handler (Ctrl-C, SIGCHLD of a data loader) kills the process without a word.
    """
    import openvino

    return openvino.Core()
