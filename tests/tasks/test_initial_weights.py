"""What is loaded to start from, and what is reinitialized: other classes, other names of classes, other channels."""

from pathlib import Path

import pytest
import torch

from stvit_cli import create_model
from stvit_cli.models.weights.file import WeightsInfo, read_state_dict, save_weights
from stvit_cli.tasks.classification.task import load_initial_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "nano.safetensors"
    save_weights(path, create_model("stvit-nano", 3), WeightsInfo("stvit-nano", num_classes=3, class_names=("ant", "bee", "cat")))
    return path


@pytest.mark.parametrize(
    ("names", "in_chans", "new_head", "says"),
    [
        (("ant", "bee", "cat"), 3, False, []),
        (("ant", "bee"), 3, True, ["another number of classes than 2"]),
        (("ant", "bee", "cow"), 3, True, ["3 classes have other names"]),
        (("ant", "bee", "cat"), 1, False, ["made for three channels and is adapted"]),
    ],
)
def test_what_stays_and_what_is_new(
    weights: Path, names: tuple[str, ...], in_chans: int, new_head: bool, says: list[str]
) -> None:
    model = create_model("stvit-nano", len(names), in_chans)
    notes = load_initial_weights(model, weights, names)
    assert len(notes) == 1 + len(says)
    assert all(word in note for word, note in zip(says, notes[1:], strict=True))
    stored, loaded = read_state_dict(weights), model.state_dict()
    assert torch.equal(loaded["proj.weight"], stored["proj.weight"])
    assert torch.equal(loaded["head.weight"], stored["head.weight"]) != new_head
