"""The memory that a run takes."""

from __future__ import annotations

import resource

import torch


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were held: on the GPU by tensors, or by this process (the system counts in KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
