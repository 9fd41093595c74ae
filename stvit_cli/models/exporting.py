"""Whether a graph is exported, told apart from a graph that is compiled."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Return whether `torch.export` traces this code.

    `torch.compiler.is_exporting` is not used: PyTorch 2.11 takes it for true in what `torch.compile` traces as well (2.14 does
    not). The flag behind it is right in both.

    Example:
        >>> is_exporting()
        False
    """
    return bool(torch.compiler._is_exporting_flag)
