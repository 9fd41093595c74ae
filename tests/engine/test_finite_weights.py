"""Weights and outputs that are not finite end a run with code 2, and nothing is written over what is still good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import toy
from safetensors.torch import load_file
from torch import nn

from stvit_cli import engine
from stvit_cli.engine import checkpoint, step
from stvit_cli.engine.evaluation import ENOUGH, NonFiniteEvaluationError
from stvit_cli.engine.finite_weights import non_finite
from stvit_cli.engine.metrics_log import MetricsLog
from stvit_cli.errors import UserError


@pytest.fixture
def last_rate(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The learning rate of step 9, the last one of two epochs; empty for what the recipe says."""
    rate: dict[str, float] = {}
    lr_at = step.lr_at
    monkeypatch.setattr(step, "lr_at", lambda number, *settings: rate["lr"] if number == 9 and rate else lr_at(number, *settings))
    return rate


@pytest.mark.parametrize(
    ("lr", "processes", "said"),
    [
        (1e39, 1, "The weights became infinite or not a number by step 10: 4 tensors, such as 0.weight."),
        (1e39, 2, "The weights became infinite or not a number by step 10: 4 tensors, such as 0.weight."),
        (1e38, 1, "The model's outputs are not finite (NaN or infinite) for 37 images of the validation set"),
        (1e38, 2, "The model's outputs are not finite (NaN or infinite) for 37 images of the validation set"),
    ],
)
def test_a_last_update_that_overflows_ends_the_run_and_keeps_the_best(
    tmp_path: Path, last_rate: dict[str, float], lr: float, processes: int, said: str
) -> None:
    run = tmp_path / "run"
    last_rate["lr"] = lr
    ended = toy.start(lambda: toy.train(tmp_path, "schedule.epochs=2"), tmp_path, processes)()
    assert [process.code for process in ended] == [2] * processes
    assert [process.message for process in ended[1:]] == [""] * (processes - 1)
    message = ended[0].message
    assert said in message
    assert len(message.splitlines()) <= 6
    assert "optim.lr" in message
    assert f"Still good: the checkpoint {run / 'checkpoints' / 'step_00000008'}, and {run / 'best.safetensors'}" in message
    assert checkpoint.load_newest(run / "checkpoints").step == 8
    written = [tensor for path in run.rglob("*.safetensors") for tensor in load_file(path).values()]
    assert all(tensor.isfinite().all() and tensor.abs().max() < 1e3 for tensor in written if tensor.is_floating_point())
    assert [row["step"] for row in MetricsLog(run / "metrics.jsonl").rows("eval")] == [5]
    last_rate.clear()
    toy.train(tmp_path, "schedule.epochs=2", resume=True)  # what was said to be good is


def test_a_checkpoint_without_an_evaluation_is_not_written_either(tmp_path: Path, last_rate: dict[str, float]) -> None:
    last_rate["lr"] = 1e39
    with pytest.raises(UserError, match=r"by step 10.*(\n.*)*step_00000008"):
        toy.train(tmp_path, "schedule.epochs=4")
    assert checkpoint.load_newest(tmp_path / "run" / "checkpoints").step == 8


def test_an_old_checkpoint_of_weights_that_are_not_finite_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.train(tmp_path, "schedule.epochs=2")
    folder = tmp_path / "run" / "checkpoints"
    newest = checkpoint.load_newest(folder)
    newest.tensors["ema"]["0.weight"][0, 0] = float("nan")
    checkpoint.save(folder, newest.step, newest.tensors, newest.state, keep=2)
    with pytest.raises(UserError, match="The moving average of the weights became infinite or not a number by step 10"):
        toy.train(tmp_path, "schedule.epochs=2", resume=True)


class Overflowing(nn.Module):
    """Finite weights, and outputs that overflow for points with a first value above ``above``."""

    def __init__(self, above: float) -> None:
        super().__init__()
        self.above = above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, :1] > self.above, x * 1e30 * 1e30, x) @ torch.ones(6, 7)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_evaluation_counts_and_names_images_without_finite_outputs(tmp_path: Path, processes: int) -> None:
    task = toy.ToyTask()
    bad = [f"val-{index}" for index in range(toy.NUM_VAL) if toy.ValPoints()[index]["image"][0] > 1]
    assert 2 <= len(bad) < 10
    ended = toy.start(lambda: engine.evaluate(task, Overflowing(above=1.0), batch_size=4), tmp_path, processes)()
    assert [process.code for process in ended] == [2] * processes
    assert [process.message for process in ended[1:]] == [""] * (processes - 1)
    first, second, *_ = ended[0].message.splitlines()
    assert f"outputs are not finite (NaN or infinite) for {len(bad)} images of the validation set" in first
    named = second.removeprefix("Images: ").removesuffix(".").removesuffix(" and others").split(", ")
    assert len(named) == min(len(bad), 4)
    assert set(named) <= set(bad)


def test_an_evaluation_without_any_finite_output_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.engine.evaluation.ENOUGH", 8)
    seen = []
    model = Overflowing(above=-1e9)
    model.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(NonFiniteEvaluationError, match="for at least 8 images"):
        engine.evaluate(toy.ToyTask(), model, batch_size=4)
    assert len(seen) == 2
    assert ENOUGH >= 8


def test_large_finite_values_are_finite() -> None:
    """Their sum overflows."""
    layer = nn.Linear(4, 4)
    assert non_finite(layer) == []
    with torch.no_grad():
        layer.weight.fill_(3e38)
    assert non_finite(layer) == []
    with torch.no_grad():
        layer.weight[0, 0] = float("inf")
    assert non_finite(layer) == ["weight"]


def test_metrics_are_strict_json(tmp_path: Path) -> None:
    history = MetricsLog(tmp_path / "metrics.jsonl")
    history.append({"kind": "train", "step": 1, "grad_norm": float("inf"), "iou/cat": float("nan"), "loss": 1.5})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"kind": "train", "step": 1, "grad_norm": None, "iou/cat": None, "loss": 1.5}
