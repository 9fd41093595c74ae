"""What is loaded to start from, and what is reinitialized: other classes, other names of classes, other channels."""

from pathlib import Path

import pytest
import torch

from stvit_cli import create_model
from stvit_cli.errors import UserError
from stvit_cli.models.weights.file import WeightsInfo, backbone_of, load_weights, read_state_dict, read_weights, save_weights
from stvit_cli.tasks.classification.task import load_initial_weights
from stvit_cli.tasks.detection.detector import create_detector
from stvit_cli.tasks.detection.task import CLASS_LAYERS
from stvit_cli.tasks.weights import load_initial_weights as load_dense_weights


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
        (("ant", "bee", "cat"), 1, False, ["made for another number of channels and is adapted"]),
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


@pytest.mark.parametrize(("names", "num_new"), [(("ant", "bee"), 0), (("ant", "cow"), 6)])
def test_a_detector_s_heads_are_loaded_for_the_same_classes_only(tmp_path: Path, names: tuple[str, ...], num_new: int) -> None:
    trained, model = (create_detector("stvit-nano", 2, channels=16, fc_dim=16) for _ in range(2))
    path = tmp_path / "detector.safetensors"
    settings = '{"channels": 16, "fc_dim": 16}'
    save_weights(path, trained, WeightsInfo("stvit-nano", "detection", 2, ("ant", "bee"), settings=settings))
    notes = load_dense_weights(model, model.backbone.body, path, task="detection", class_names=names, class_layers=CLASS_LAYERS)
    own, stored = model.state_dict(), trained.state_dict()
    new = [name for name in own if not torch.equal(own[name], stored[name])]
    assert all(name.endswith(("cls_score.weight", "bbox_pred.weight", "mask_fcn_logits.weight")) for name in new)
    assert len(new) == num_new // 2  # the new biases are zero, as the stored ones
    assert len(notes) == 1 + (num_new > 0)


@pytest.mark.parametrize("task", ["shapes-upernet", "shapes-mask-rcnn"])
def test_a_classifier_starts_from_the_backbone_of_a_detector_or_segmenter(task: str) -> None:
    model, file = create_model("stvit-nano", 2), read_weights(f"stvit-nano.{task}")
    before = model.state_dict()["proj.weight"].clone()
    (note,) = load_initial_weights(model, file.path, ("ant", "bee"))
    assert "tensors of the backbone" in note
    loaded, stored = model.state_dict(), backbone_of(file).state_dict
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded if name.startswith(("stem.", "stages.")))
    assert torch.equal(loaded["proj.weight"], before)
    with pytest.raises(UserError, match=r"keep_classes: .* has no linear classifier"):
        load_initial_weights(model, file.path, ("ant", "bee"), keep_classes=True)
    with pytest.raises(UserError, match="not the weights of this model"):
        load_weights(model, file)  # a classifier would be left half new
