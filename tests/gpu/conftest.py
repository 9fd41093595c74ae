"""What runs on a GPU: ``pytest -m gpu``. The same tests run without one, on a CPU or on `helpers.simulated_gpu`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.gpu_devices import REAL, require_gpus
from helpers.simulated_gpu import simulated_gpu

from stvit_cli.models import kernels


@pytest.fixture(params=["simulated", REAL])
def gpu(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """``cuda`` as the recipes' train.device, simulated or real; the user's cache is not touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "gpu cache"))
    if request.param == "simulated":
        monkeypatch.setattr(kernels, "is_available", lambda device_type: device_type == "cpu")  # Triton's need memory of a GPU
        with simulated_gpu():
            yield request.param
    else:
        require_gpus()
        yield request.param


@pytest.fixture(params=["cpu", REAL])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU with ``-m gpu``."""
    if request.param == "cuda":
        require_gpus()
    return torch.device(request.param)
