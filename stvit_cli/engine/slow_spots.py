"""Notes on a run that is slower than its machine allows: GPUs that no process uses, a loader that the GPU waits for."""

from __future__ import annotations

import torch

from stvit_cli.engine.distributed import World
from stvit_cli.utils.troubleshooting import see

WAITING = 0.3
"""Fraction of the time that a GPU may wait for data before it is said."""


def unused_gpus(world: World) -> list[str]:
    """Return a note where one process runs on a machine of several GPUs: nothing but torchrun starts more."""
    count = torch.cuda.device_count() if world.device.type == "cuda" else 1
    if world.size > 1 or count < 2:
        return []
    command = f"torchrun --nproc-per-node {count} -m stvit_cli train ..."
    return [f"One of {count} GPUs is used. All of them, with the same global batch: {command}\n{see('one-gpu')}"]


def slow_loader(waited: float, seconds: float, device: torch.device, num_workers: int) -> str | None:
    """Return a note where a GPU waits for data; None where it does not.

    Args:
        waited: seconds of waiting.
        seconds: all seconds of the same steps.
        device: of the model. On a CPU the loader and the model share the cores, so that waiting says little.
        num_workers: of the loader.

    Example:
        >>> print(slow_loader(6.0, 10.0, torch.device("cuda"), 8))
        The GPU waits for data 60% of the time (data.num_workers=8).
        More: docs/troubleshooting.md#slow-loader of the repository
        >>> slow_loader(1.0, 10.0, torch.device("cuda"), 8)
    """
    if device.type != "cuda" or waited < WAITING * seconds:
        return None
    return f"The GPU waits for data {waited / seconds:.0%} of the time (data.num_workers={num_workers}).\n{see('slow-loader')}"
