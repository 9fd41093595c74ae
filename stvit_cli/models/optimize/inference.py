"""A copy of a model that runs as fast as it can where it is to run."""

from __future__ import annotations

import torch
from torch import nn

from stvit_cli.models.kernels import use_kernels
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.mkldnn import pack


def for_inference(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a fused copy (`fuse`) on ``device``, channels-last.

    On a CPU its weights are packed, and it runs by our kernels where they can be had. Such a model is for running, not for
    copying, compiling or exporting.
    """
    fast = fuse(model).to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        use_kernels(fast, device.type, "auto")
        pack(fast)
    return fast
