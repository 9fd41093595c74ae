"""Sums in a fixed order on a GPU, so that a resumed run is bit-identical there too as far as PyTorch's operators allow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fixed_order(device: torch.device) -> Iterator[None]:
    """Within the block take PyTorch's deterministic algorithms on a GPU; on a CPU all are deterministic.

    Convolutions and the custom kernels have one. RoIAlign's backward pass and the resizing of feature maps, in detection and
    segmentation, have none or one that is much slower: they run as they are, so PyTorch may only warn. But as long as it only
    warns, its attention keeps to backward passes without an order: see `strict`. cuDNN's attention has no other, so it is left to
    the flash and the memory-efficient one (``attention_backward.cu`` in PyTorch 2.8 to 2.11).

    Args:
        device: where a run trains.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as the first product of matrices runs
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
            warnings.filterwarnings("ignore", ".*Deterministic behavior was enabled")
            warnings.filterwarnings("ignore", ".*[Aa]ttention defaults to a non-deterministic algorithm")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)


@contextmanager
def strict(enabled: bool = True) -> Iterator[None]:
    """Within the block PyTorch's attention takes its deterministic backward pass, and an operator that has none raises.

    Args:
        enabled: False leaves all as it is.

    Example:
        >>> with strict():
        ...     torch.is_deterministic_algorithms_warn_only_enabled()
        False
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
