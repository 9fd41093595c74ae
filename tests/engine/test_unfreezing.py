"""Gradual unfreezing: the head first, then the backbone's parts from the last to the first."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy
from safetensors.torch import load_file
from torch import Tensor, nn

from stvit_cli import create_detector, create_model
from stvit_cli.engine.distributed import World
from stvit_cli.engine.freezing import GradualUnfreezing
from stvit_cli.engine.session import build_session
from stvit_cli.engine.trainer import fit
from stvit_cli.errors import UserError
from stvit_cli.recipe import io as recipe_io


class Parts(nn.Sequential):
    """The toy's model with names for its parts: 0 is the first linear layer, 1 the batch norm, 2 the head."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^0\.", "blocks": r"^(\d+)\."}


class PartsTask(toy.ToyTask):
    def __init__(self, **settings: Any) -> None:
        super().__init__(norm=True, **settings)
        self.model = Parts(*self.model)


ON = "finetune.unfreeze_epochs=1"  # of five steps
HEAD, NORM, FIRST = {"4.weight", "4.bias"}, {"3.weight", "3.bias"}, {"0.weight", "0.bias"}


def test_parts_are_unfrozen_from_the_head_down(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ("checkpoint.every_steps=1", "checkpoint.keep=30", ON)
    fit(PartsTask(), toy.recipe(*settings), tmp_path / "run")
    said = capfd.readouterr().err
    assert (
        "The head trains alone at first; one more of the backbone's 2 parts from epoch 1 on, every 1 epoch; all of it from"
        in said
    )
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    steps = [load_file(path / "model.safetensors") for path in checkpoints]
    assert len(steps) == 21
    statistics = {"3.running_mean", "3.running_var", "3.num_batches_tracked"}
    for step, (before, after) in enumerate(pairwise(steps)):
        changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        expected = HEAD | (NORM | statistics if step >= 5 else set()) | (FIRST if step >= 10 else set())
        assert changed == expected, step
    state = load_file(checkpoints[-1] / "optimizer.safetensors")
    assert {name: state[f"{name}/step"].item() for name in ("4.weight", "3.weight", "0.weight")} == {
        "4.weight": 20,
        "3.weight": 15,
        "0.weight": 10,
    }


def train(folder: Path, *, resume: bool = False, kill_at: int = 0) -> None:
    def at_loss(call: int, loss: Tensor) -> Tensor:
        if call == kill_at:
            toy.kill_self()
        return loss

    fit(PartsTask(on_loss=at_loss), toy.recipe(ON, "train.precise_bn_steps=12"), folder / "run", resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfreezing")
    assert [ended.code for ended in toy.start(lambda: train(folder), folder)()] == [0]
    return folder / "run"


# In step 3, before the first unfreezing; at the end of step 5's evaluation; in step 8; and in step 12.
@pytest.mark.parametrize("kill_at", [4 * 3 + 1, 4 * 5 + 2, 4 * 8 + 1, 4 * 12 + 14])
def test_a_resumed_run_unfreezes_the_same(whole: Path, tmp_path: Path, kill_at: int) -> None:
    assert [ended.code for ended in toy.start(lambda: train(tmp_path, kill_at=kill_at), tmp_path)()] == [-9]
    assert [ended.code for ended in toy.start(lambda: train(tmp_path, resume=True), tmp_path)()] == [0]
    toy.assert_same_outcome(tmp_path / "run", whole)


def test_two_processes_unfreeze_as_one(tmp_path: Path) -> None:
    """DDP is told anew what is trained."""
    settings = (ON, "schedule.epochs=3", "finetune.freeze_norm=true")
    tensors = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)

        def work(folder: Path = folder) -> None:
            fit(PartsTask(dropout=0.0), toy.recipe(*settings), folder / "run")

        assert {ended.code for ended in toy.start(work, folder, processes)()} == {0}
        tensors[processes], _ = toy.outcome(folder / "run")
    assert tensors[1].keys() == tensors[2].keys()
    for name, tensor in tensors[1].items():
        torch.testing.assert_close(tensors[2][name], tensor, rtol=0, atol=1e-4)


def test_the_parts_of_the_models_are_their_stages() -> None:
    class Of(toy.ToyTask):
        def __init__(self, model: nn.Module, heads: list[nn.Module]) -> None:
            self.model, self._heads = model, heads

        def heads(self) -> list[nn.Module]:
            return self._heads

    classifier = create_model("stvit-nano", num_classes=2)
    unfreezing = GradualUnfreezing(Of(classifier, [classifier.head]), 10)
    names = {parameter: name for name, parameter in classifier.named_parameters()}
    first = [names[part[0]].rsplit(".", 2)[0] for part in unfreezing.parts]
    assert [name.split(".")[0] for name in first] == ["proj", "stages", "stages", "stages", "stages", "stem"]
    assert sum(len(part) for part in unfreezing.parts) == len(names) - 2
    assert [unfreezing.num_frozen(step) for step in (0, 9, 10, 59, 60, 100)] == [6, 6, 5, 1, 0, 0]
    detector = create_detector("stvit-nano", num_classes=2)
    heads = [detector.backbone.fpn, detector.rpn, detector.roi_heads]
    assert len(GradualUnfreezing(Of(detector, heads), 1).parts) == 5


def test_models_without_parts_and_a_frozen_backbone_are_refused() -> None:
    with pytest.raises(UserError, match="Sequential does not name its stages"):
        build_session(toy.ToyTask(), toy.recipe(ON), World(torch.device("cpu")))
    with pytest.raises(UserError, match=r"finetune\.unfreeze_epochs: found a number beside freeze_backbone"):
        recipe_io.from_text("name: toy", [ON, "finetune.freeze_backbone=true"])
