"""Optimizers by name: the steps are those of timm's own, and their state survives a checkpoint to the last bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from helpers import toy
from safetensors.torch import load_file
from torch import nn

from stvit_cli.engine import checkpoint
from stvit_cli.engine.branch import Branch
from stvit_cli.engine.distributed import World, joined_world
from stvit_cli.engine.optim import build_optimizer, supported_optimizers
from stvit_cli.engine.seeding import seed_micro_batch
from stvit_cli.engine.session import Session, build_session, training_batches
from stvit_cli.engine.state import RunState, capture, restore
from stvit_cli.engine.step import TrainStep
from stvit_cli.engine.trainer import fit
from stvit_cli.errors import UserError
from stvit_cli.recipe import OptimSection

ALONE = World(torch.device("cpu"))


class ConvTask(toy.ToyTask):
    """With a convolution, whose weights are in channels-last memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        conv = nn.Conv2d(6, 8, 3, padding=1)
        self.model = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), conv, nn.ReLU(), nn.Flatten(), nn.Linear(8, toy.NUM_CLASSES))


def session(name: str, *overrides: str, world: World = ALONE) -> Session:
    words = [
        f"optim.name={name}",
        f"train.batch_size_per_device={8 // world.size}",
        "optim.clip_grad_norm=null",
        "train.ema_decay=null",
    ]
    return build_session(ConvTask(), toy.recipe(*words, *overrides), world)


def take_steps(made: Session, start: int, stop: int) -> list[float]:
    step, feed = TrainStep(made), iter(training_batches(made, start))
    return [step(number, feed).lr for number in range(start, stop)]


@pytest.mark.filterwarnings("ignore:It is highly recommended")
@pytest.mark.parametrize("name", supported_optimizers())
def test_a_resumed_optimizer_takes_the_same_steps(name: str, tmp_path: Path) -> None:
    """Every optimizer of timm, through the files of a checkpoint."""
    whole = session(name)
    take_steps(whole, 0, 3)
    tensors, state = capture(whole, RunState(step=3), 0)
    checkpoint.save(tmp_path, 3, tensors, state, keep=1)
    take_steps(whole, 3, 6)
    resumed = session(name)
    restore(resumed, checkpoint.load_newest(tmp_path))
    take_steps(resumed, 3, 6)
    for name_, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name_]), name_
    again, same = (capture(made, RunState(step=6), 0) for made in (resumed, whole))
    assert again[1]["optimizer"] == same[1]["optimizer"]
    for key, tensor in same[0]["optimizer"].items():
        other = again[0]["optimizer"][key]
        assert torch.equal(tensor, other)
        assert (tensor.dtype, tensor.stride()) == (other.dtype, other.stride()), key


@pytest.mark.parametrize("name", supported_optimizers())
def test_the_steps_are_those_of_timm(name: str) -> None:
    """The same model, batches and learning rates in a loop around timm's optimizer."""
    made = session(name)
    model = copy.deepcopy(made.model)
    lrs = take_steps(made, 0, 4)
    optimizer = timm.optim.create_optimizer_v2(model, name, lr=1e-2, weight_decay=0.05, filter_bias_and_bn=False)
    other = session(name)
    for step, (lr, batch) in enumerate(zip(lrs, training_batches(other, 0), strict=False)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        seed_micro_batch(0, step, 0)
        other.task.training_loss(model, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    for name_, tensor in made.model.state_dict().items():
        # Fused and ordinary AdamW differ in the last bits.
        torch.testing.assert_close(tensor, model.state_dict()[name_], rtol=0, atol=1e-6 if name == "adamw" else 0)
    assert not torch.equal(made.model[1].weight, ConvTask().model[1].weight)


def test_the_default_is_torch_s_fused_adamw() -> None:
    optimizer = build_optimizer(toy.ToyTask(), OptimSection(), 1e-3)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_settings_that_are_not_changed_are_the_optimizers_own() -> None:
    def defaults(**settings: Any) -> dict[str, Any]:
        return build_optimizer(toy.ToyTask(), OptimSection(**settings), 1e-3).defaults

    assert defaults(name="lion")["betas"] == (0.9, 0.99)
    assert defaults(name="lion", betas=(0.95, 0.98))["betas"] == (0.95, 0.98)
    assert defaults(name="lamb")["eps"] == 1e-6
    assert defaults(name="sgd")["momentum"] == 0.9
    assert defaults(name="momentum", momentum=0.0)["momentum"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamv"}, "no optimizer 'adamv' in timm. Did you mean"),
        ({"name": "SGD"}, "no optimizer 'SGD' in timm. Did you mean 'sgd'?"),
        ({"name": "adahessian"}, "optim.name: adahessian needs second derivatives"),
        ({"name": "kron"}, "random generator of its own"),
        ({"name": "bnbadam8bit"}, "belongs to the package bitsandbytes"),
        ({"name": "fusedlamb"}, "belongs to the package apex"),
        ({"name": "sgd", "betas": (0.5, 0.9)}, "optim.betas: found (0.5, 0.9), but sgd has no betas. Leave out optim.betas."),
        ({"name": "adan", "betas": (0.5, 0.9)}, "but adan has three, which are its own"),
        ({"name": "sgd", "momentum": 0.0}, "optim.name: sgd cannot be built: Nesterov momentum requires a momentum"),
        ({"momentum": 0.8}, "optim.momentum: found 0.8, but adamw has no momentum"),
    ],
)
def test_what_an_optimizer_does_not_have_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_optimizer(toy.ToyTask(), OptimSection(**settings), 1e-3)
    assert message in str(caught.value)


def test_a_run_with_another_optimizer_says_its_settings_and_is_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    short = ("schedule.epochs=2", "optim.name=adan", "checkpoint.keep=20")
    fit(toy.ToyTask(), toy.recipe(*short), tmp_path / "run")
    assert "Optimizer adan: betas (0.98, 0.92, 0.99), eps 1e-08." in capfd.readouterr().err
    fit(toy.ToyTask(), toy.recipe(*short), tmp_path / "same", branch=Branch(tmp_path / "run", 6))
    toy.assert_same_outcome(tmp_path / "same", tmp_path / "run")
    fit(toy.ToyTask(), toy.recipe("schedule.epochs=2"), tmp_path / "other", branch=Branch(tmp_path / "run", 6))
    assert "The optimizer adamw starts without state: the checkpoint's is that of adan." in capfd.readouterr().err
    state = json.loads((tmp_path / "other" / "checkpoints" / "step_00000010" / "state.json").read_text())["state"]
    assert state["optimizer"] == {"name": "adamw", "numbers": {}}
    steps = load_file(tmp_path / "other" / "checkpoints" / "step_00000010" / "optimizer.safetensors")
    assert steps["0.weight/step"] == 4


def test_all_processes_restore_the_state_that_one_has_read(tmp_path: Path) -> None:
    """Muon has bools beside its tensors; LAMB has a tensor for a group."""
    for name in ("muon", "lamb"):
        made = session(name)
        take_steps(made, 0, 2)
        checkpoint.save(tmp_path / name, 2, *capture(made, RunState(step=2), 0), keep=1)

    def work() -> None:
        with joined_world("cpu") as world:
            for name in ("muon", "lamb"):
                made = session(name, world=world)
                restore(made, checkpoint.load_newest(tmp_path / name) if world.is_main else None)
                checkpoint.save(tmp_path / f"{name}-{world.rank}", 2, *capture(made, RunState(step=2), 0), keep=1)

    assert {ended.code for ended in toy.start(work, tmp_path, 2)()} == {0}
    for name in ("muon", "lamb"):
        expected = checkpoint.load_newest(tmp_path / name)
        for rank in range(2):
            found = checkpoint.load_newest(tmp_path / f"{name}-{rank}")
            assert found.state["optimizer"] == expected.state["optimizer"]
            assert found.tensors["optimizer"].keys() == expected.tensors["optimizer"].keys()
            for key, tensor in expected.tensors["optimizer"].items():
                assert torch.equal(tensor, found.tensors["optimizer"][key])
