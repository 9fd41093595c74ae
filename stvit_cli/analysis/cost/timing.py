"""Time, memory and the machine's peak: what the throughput report is measured with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from stvit_cli.models.precision import DTYPES

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's messages on standard error


def measure_peak_flops(device: str, precision: str) -> float:
    """Measure the machine's peak in floating-point operations per second, with a large matmul and 1 x 1 convolution.

    On some processors the two use different libraries, one of which is twice as fast; the faster one counts.

    Args:
        device: ``cpu`` or ``cuda``.
        precision: fp32 or bf16.
    """
    num_tokens, width = (8192, 1024) if device == "cpu" else (65536, 4096)
    dtype = DTYPES[precision]
    tokens = torch.randn(num_tokens, width, device=device, dtype=dtype)
    weight = torch.randn(width, width, device=device, dtype=dtype)
    image = tokens.reshape(8, num_tokens // 256, 32, width).permute(0, 3, 1, 2)  # channels-last
    kernel = weight.reshape(width, width, 1, 1)
    products: list[Callable[[], Any]] = [lambda: tokens @ weight, lambda: F.conv2d(image, kernel)]
    with torch.inference_mode():
        return max(2 * num_tokens * width**2 / min(seconds_per_step(product, device) for _ in range(5)) for product in products)


def seconds_per_step(step: Callable[[], Any], device: str, at_least: float = 0.0) -> float:
    """Return the mean seconds per step, running steps for ``at_least`` seconds and at least once."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    start, steps, elapsed = time.perf_counter(), 0, -1.0
    while elapsed < at_least:
        step()
        if device != "cpu":
            torch.cuda.synchronize(device)
        steps, elapsed = steps + 1, time.perf_counter() - start
    return elapsed / steps


def peak_memory(step: Callable[[], object], device: str) -> int:
    """Return the peak of memory that PyTorch allocates during a step, in bytes beyond what was allocated before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        step()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    peak: int = max(accumulate((event.nbytes() for event in changes), initial=0))
    return peak
