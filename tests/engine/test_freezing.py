from __future__ import annotations

from pathlib import Path

import torch
from helpers import toy
from timm.layers import DropPath
from torch import nn

from stvit_cli import engine
from stvit_cli.engine.freezing import freeze, set_training_mode
from stvit_cli.recipe import FinetuneSection


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors, _ = toy.outcome(folder)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("model/")}


def test_a_linear_probe_changes_the_head_alone(tmp_path: Path) -> None:
    engine.fit(toy.ToyTask(norm=True), toy.recipe("schedule.epochs=2", "finetune.freeze_backbone=true"), tmp_path / "run")
    initial = toy.ToyTask(norm=True).model.state_dict()
    changed = {name for name, tensor in weights(tmp_path / "run").items() if not torch.equal(tensor, initial[name[6:]])}
    assert changed == {"model/4.weight", "model/4.bias"}


def test_frozen_norms_keep_their_statistics_and_the_rest_trains(tmp_path: Path) -> None:
    engine.fit(toy.ToyTask(norm=True), toy.recipe("schedule.epochs=2", "finetune.freeze_norm=true"), tmp_path / "run")
    initial = toy.ToyTask(norm=True).model.state_dict()
    same = {name for name, tensor in weights(tmp_path / "run").items() if torch.equal(tensor, initial[name[6:]])}
    assert same == {"model/3.running_mean", "model/3.running_var", "model/3.num_batches_tracked"}


def test_frozen_norms_and_drop_path_are_in_evaluation_mode() -> None:
    task = toy.ToyTask(norm=True)
    task.model.append(DropPath(0.5))
    set_training_mode(task, FinetuneSection(freeze_norm=True))
    modes = {type(module): module.training for module in task.model}
    assert not modes[nn.BatchNorm1d]
    assert not modes[DropPath]
    assert modes[nn.Dropout]
    assert task.model.training


def test_what_holds_the_head_stays_in_training_mode() -> None:
    task = toy.ToyTask(norm=True)
    section = FinetuneSection(freeze_backbone=True)
    freeze(task, section)
    set_training_mode(task, section)
    assert [module.training for module in task.model] == [False, False, False, False, True]
    assert task.model.training
    assert [p.requires_grad for p in task.model.parameters()] == [False] * 4 + [True] * 2


def test_the_moving_average_is_that_of_weights_and_statistics(tmp_path: Path) -> None:
    """Redone with the weights of every step."""
    settings = ("schedule.epochs=2", "checkpoint.every_steps=1", "checkpoint.keep=20", "train.ema_decay=0.75")
    engine.fit(toy.ToyTask(norm=True), toy.recipe(*settings), tmp_path / "run")
    from safetensors.torch import load_file

    steps = [load_file(path / "model.safetensors") for path in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    expected = dict(steps[0])
    for step in steps[1:]:
        for name, tensor in step.items():
            expected[name] = 0.75 * expected[name] + 0.25 * tensor if tensor.is_floating_point() else tensor
    found = load_file(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "ema.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    rows = toy.outcome(tmp_path / "run")[1]
    assert {"top1", "ema_top1", "loss", "ema_loss"} <= rows[-1].keys()
    assert rows[-1]["loss"] != rows[-1]["ema_loss"]
    assert (tmp_path / "run" / "last_ema.safetensors").is_file()
