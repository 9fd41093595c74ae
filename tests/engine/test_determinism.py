"""Sums in a fixed order on a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from stvit_cli.engine.determinism import fixed_order


def flags() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def test_a_gpu_takes_deterministic_algorithms_within_a_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    assert before[0] is False
    with fixed_order(torch.device("cpu")):
        assert flags() == before
    with fixed_order(torch.device("cuda", 0)):
        assert flags() == (True, True, False)
        warnings.warn("roi_align_backward_kernel does not have a deterministic implementation", UserWarning, stacklevel=1)
    assert flags() == before
