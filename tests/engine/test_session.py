"""How a run is set up, and what a step makes of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy
from torch import Tensor, nn

from stvit_cli.engine.distributed import World
from stvit_cli.engine.optim import load_optimizer_state, match_layout, optimizer_tensors
from stvit_cli.engine.run_summary import summary
from stvit_cli.engine.session import build_session, training_batches
from stvit_cli.engine.step import TrainStep
from stvit_cli.errors import UserError

ALONE = World(torch.device("cpu"))


def steps(count: int, *overrides: str, **settings: Any) -> tuple[dict[str, Tensor], list[float]]:
    """Take some steps; return the weights and the norms of the gradients."""
    session = build_session(toy.ToyTask(**settings), toy.recipe(*overrides), ALONE)
    take_step, feed = TrainStep(session), iter(training_batches(session, 0))
    norms = [take_step(step, feed).grad_norm for step in range(count)]
    return session.model.state_dict(), norms


@pytest.mark.parametrize("size", [1, 4, 8])
def test_accumulation_does_not_change_the_step(size: int) -> None:
    settings = ("augment.repeats=1",)
    whole, norms = steps(5, *settings, "train.batch_size_per_device=8", dropout=0.0)
    parts, part_norms = steps(5, *settings, f"train.batch_size_per_device={size}", dropout=0.0)
    assert part_norms == pytest.approx(norms, rel=1e-4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6)


def test_clipping_bounds_the_step() -> None:
    """The norm that is reported is that before clipping."""
    session = build_session(toy.ToyTask(), toy.recipe("optim.clip_grad_norm=0.01"), ALONE)
    norms: list[float] = []
    session.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: norms.append(nn.utils.get_total_norm([p.grad for p in session.model.parameters()]).item())
    )
    found = TrainStep(session)(0, iter(training_batches(session, 0)))
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert found.grad_norm > 0.1


def test_bf16_is_used_where_it_is_asked_for() -> None:
    seen = []
    session = build_session(toy.ToyTask(), toy.recipe("train.precision=bf16"), ALONE)
    session.model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    TrainStep(session)(0, iter(training_batches(session, 0)))
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in session.model.parameters())


@pytest.mark.parametrize(("precision", "native", "says"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)])
def test_without_instructions_for_bf16_a_run_says_that_fp32_is_faster(
    monkeypatch: pytest.MonkeyPatch, precision: str, native: bool, says: bool
) -> None:
    monkeypatch.setattr("stvit_cli.tasks.preparation.bf16_is_native", lambda device: native)
    session = build_session(toy.ToyTask(), toy.recipe(f"train.precision={precision}"), ALONE)
    assert any("train.precision=fp32 is faster here" in line for line in summary(session, Path("run"), [])) == says


def test_the_rate_is_multiplied_by_a_groups_own_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_groups(task: Any, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
        weights = list(task.model.parameters())
        return [
            {"params": weights[:2], "weight_decay": 0.0, "lr_scale": 0.5},
            {"params": weights[2:], "weight_decay": 0.1, "lr_scale": 1},
        ]

    monkeypatch.setattr(toy.ToyTask, "param_groups", two_groups)
    session = build_session(toy.ToyTask(), toy.recipe("schedule.warmup_epochs=0"), ALONE)
    assert TrainStep(session)(0, iter(training_batches(session, 0))).lr == 1e-2
    assert [group["lr"] for group in session.optimizer.param_groups] == [0.5e-2, 1e-2]


def test_the_optimisers_state_keeps_its_memory_order() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    plain = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in optimizer_tensors(model, optimizer).items()
    }
    load_optimizer_state(model, optimizer, plain)
    state = optimizer.state[model.weight]
    assert state["exp_avg"].stride() == model.weight.stride() != plain["weight/exp_avg"].stride()
    assert torch.equal(state["exp_avg"], plain["weight/exp_avg"])
    assert state["step"] == 1


def test_gradients_in_another_memory_order_are_put_right() -> None:
    """PyTorch's fused update on a CPU goes by memory and would mix up the weights without a word."""
    weights = torch.randn(4, 3, 3, 3)
    gradient = torch.randn(4, 3, 3, 3)
    plain, last = nn.Parameter(weights.clone()), nn.Parameter(weights.contiguous(memory_format=torch.channels_last))
    plain.grad, last.grad = gradient.clone(), gradient.clone()
    match_layout([plain, last])
    for parameter in (plain, last):
        torch.optim.AdamW([parameter], lr=0.1, fused=True).step()
    torch.testing.assert_close(last.detach(), plain.detach())


def test_kernels_that_are_asked_for_and_cannot_be_had_are_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"train.kernels: \w+ has no part that they serve. Use train.kernels=auto."):
        toy.train(tmp_path, "train.kernels=true")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("stvit_cli.models.kernels._loaded", set())
    monkeypatch.setattr("stvit_cli.models.kernels._unavailable", {})
    monkeypatch.setattr("stvit_cli.models.kernels.Accelerated", nn.Sequential)  # as if the model were a layer with kernels
    with pytest.raises(UserError, match=r"cannot be had: no C\+\+ compiler here \(no-such-compiler\). Use train.kernels=auto."):
        toy.train(tmp_path, "train.kernels=true")
    assert list(tmp_path.iterdir()) == []


def test_what_all_processes_find_wrong_is_said_by_one(tmp_path: Path) -> None:
    for settings, expected in (
        ("train.sync_bn=true", "has no synchronised batch norm"),
        ("train.global_batch_size=9", "cannot share"),
    ):
        ended = toy.start(lambda settings=settings: toy.train(tmp_path / "run", settings), tmp_path, 2)()
        assert [process.code for process in ended] == [2, 2]
        assert expected in ended[0].message
        assert ended[1].message == ""
    assert not (tmp_path / "run").exists()
