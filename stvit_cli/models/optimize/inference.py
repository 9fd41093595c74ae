"""The fastest copy of a model for a device."""

from __future__ import annotations

import torch
from torch import nn

from stvit_cli.models.kernels import use_kernels
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.mkldnn import pack


def for_inference(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a fused copy (`fuse`) on a device, in channels-last memory.

    On a CPU it also has packed weights and, where they are faster, the custom kernels. Such a copy cannot be copied, compiled or
    exported.

    Args:
        model: any model with STViT layers, left unchanged.
        device: where the copy runs.

    Example:
        >>> from stvit_cli import create_model
        >>> fast = for_inference(create_model("stvit-nano", num_classes=2), torch.device("cpu"))
        >>> with torch.inference_mode():
        ...     fast(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 2])
    """
    fast = fuse(model).to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        use_kernels(fast, device.type, "auto")
        pack(fast)
    return fast
