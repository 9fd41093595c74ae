"""Whether a graph is exported, told apart from a graph that is compiled or traced for its cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_in_onnx_export = False


def is_exporting() -> bool:
    """Return whether this code is traced into a graph that must hold for every size: by `torch.export`, or `exporting_onnx`.

    `torch.compiler.is_exporting` is not used: PyTorch 2.11 takes it for true in what `torch.compile` traces as well (2.14 does
    not). The flag behind it is right in both.

    Example:
        >>> is_exporting()
        False
    """
    return _in_onnx_export or bool(torch.compiler._is_exporting_flag)


@contextmanager
def exporting_onnx() -> Iterator[None]:
    """Tell `is_exporting` that the models called inside are traced for an ONNX file.

    Example:
        >>> with exporting_onnx():
        ...     is_exporting()
        True
    """
    global _in_onnx_export
    before, _in_onnx_export = _in_onnx_export, True
    try:
        yield
    finally:
        _in_onnx_export = before
