"""Apple GPUs, as far as a machine without one can tell: the device is chosen or refused, and nothing there is in float64."""

from __future__ import annotations

import pytest
import torch

from stvit_cli.engine.distributed import pick_device
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks.base import in_float64


def test_mps_is_chosen_where_it_is_there_and_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_io.from_text("name: x", ["train.device=mps"]).train.device == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="PyTorch finds no Apple GPU here"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == torch.device("mps")
    assert pick_device("auto").type != "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="for one process"):
        pick_device("mps")


def test_sums_in_float64_come_to_the_cpu_from_mps() -> None:
    class OnMps:
        """Refuses float64, as a tensor on an Apple GPU does."""

        device = torch.device("mps")

        def cpu(self) -> torch.Tensor:
            return torch.ones(3)

        def double(self) -> torch.Tensor:
            raise TypeError("the MPS framework doesn't support float64")

    assert in_float64(OnMps()).dtype == torch.float64  # type: ignore[arg-type]
    assert in_float64(torch.ones(2)).dtype == torch.float64
