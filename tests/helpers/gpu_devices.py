"""Which devices a test of `tests/gpu` runs on. Not a test."""

from __future__ import annotations

import pytest
import torch

REAL = pytest.param("cuda", marks=pytest.mark.gpu)


def require_gpus(number: int = 1) -> None:
    """Skip the test where there are fewer GPUs."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < number:
        pytest.skip(f"needs {number} CUDA device{'s' * (number > 1)}, there {'is' if there == 1 else 'are'} {there}")
