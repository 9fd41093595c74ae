"""Sums in a fixed order on a GPU."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from helpers import toy
from helpers.simulated_gpu import simulated_gpu
from torch import Tensor, nn

from stvit_cli.data.loader import SampleKey
from stvit_cli.engine.determinism import fixed_order, strict
from stvit_cli.engine.distributed import World
from stvit_cli.engine.session import Session, build_session
from stvit_cli.engine.step import TrainStep


def flags() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


def test_a_gpu_takes_deterministic_algorithms_within_a_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    assert before[0] is False
    assert before[3] is True
    with fixed_order(torch.device("cpu")):
        assert flags() == before
    with fixed_order(torch.device("cuda", 0)):
        assert flags() == (True, True, False, False)  # cuDNN's attention has no deterministic backward pass
        warnings.warn("roi_align_backward_kernel does not have a deterministic implementation", UserWarning, stacklevel=1)
        warnings.warn("Flash Attention defaults to a non-deterministic algorithm.", UserWarning, stacklevel=1)
        with strict():  # only so has PyTorch's attention a deterministic one
            assert flags() == (True, False, False, False)
        with strict(enabled=False):
            assert flags()[1]
        assert flags() == (True, True, False, False)
    assert flags() == before


class Watched(torch.autograd.Function):
    """Notes whether operators without a fixed order are allowed; one of timm's models may have one, as ``unordered`` says."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, seen: list[bool], unordered: bool) -> Tensor:
        ctx.seen, ctx.unordered = seen, unordered
        seen.append(torch.is_deterministic_algorithms_warn_only_enabled())
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.seen.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if ctx.unordered and not ctx.seen[-1]:
            raise RuntimeError("pool_backward_cuda does not have a deterministic implementation, but you set ...")
        return gradient, None, None


class WatchedTask(toy.ToyTask):
    is_deterministic = True
    unordered = False
    seen: list[bool]

    def training_loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        losses = super().training_loss(model, batch)
        return {name: Watched.apply(loss, self.seen, self.unordered) for name, loss in losses.items()}


@pytest.mark.parametrize(("is_deterministic", "unordered"), [(True, False), (True, True), (False, False)])
def test_a_training_step_is_strict_where_all_operators_have_a_fixed_order(
    is_deterministic: bool, unordered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def stepped() -> Session:
        session = build_session(task, toy.recipe("train.device=cuda"), World(device))
        assert all(parameter.grad is None for parameter in session.model.parameters())
        seen.append(list(task.seen))
        task.seen.clear()
        samples = [task.train_set[key] for key in [SampleKey(0, index, 0) for index in range(2)]]
        TrainStep(session)(0, iter([task.collate(samples)] * 4))
        return session

    seen: list[list[bool]] = []
    with simulated_gpu() as device, fixed_order(device):
        task = WatchedTask(norm=True)
        task.seen = []
        task.is_deterministic, task.unordered = is_deterministic, unordered
        session = stepped()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    is_strict = is_deterministic and not unordered
    assert session.strict_order is is_strict
    assert seen == [[False, False] if is_deterministic else []]  # one batch is tried, forward and backward
    assert set(task.seen) == {not is_strict}
    assert ("not end with the same bits: pool_backward_cuda does not have" in caplog.text) is (is_deterministic and unordered)


def test_the_trial_of_a_fixed_order_leaves_no_trace() -> None:
    with simulated_gpu() as device, fixed_order(device):
        for unordered in (False, True):
            torch.manual_seed(3)
            task = WatchedTask(norm=True, dropout=0.5)
            task.seen, task.unordered = [], unordered
            before = {name: value.clone() for name, value in task.model.state_dict().items()}
            torch.manual_seed(3)
            drawn = torch.rand(3)
            torch.manual_seed(3)
            session = build_session(task, toy.recipe("train.device=cuda"), World(device))
            assert torch.equal(torch.rand(3), drawn)
            assert all(torch.equal(value.cpu(), before[name]) for name, value in session.model.state_dict().items())
            assert all(parameter.grad is None for parameter in session.model.parameters())
