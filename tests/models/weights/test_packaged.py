"""Weights that come with the package: by name wherever weights are taken, and as good as their cards say."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import timm
import torch

import stvit_cli
from stvit_cli import UserError, create_model
from stvit_cli.analysis.evaluate import evaluate, recipe_for
from stvit_cli.models.weights.file import load_weights, read_info, read_state_dict
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.weights import load_initial_weights, weights_file
from stvit_cli.utils import packaged_weights
from stvit_cli.utils.packaged_weights import PackagedWeights, list_weights, packaged_file, read_card_head

ROOT = Path(__file__).parents[3]
DIGIT = ROOT / "tests" / "images" / "digit-3.png"
NANO = "stvit-nano.digits"


@pytest.mark.parametrize("weights", list_weights(), ids=lambda weights: weights.name)
def test_each_is_small_complete_and_described(weights: PackagedWeights) -> None:
    assert weights.size_bytes < 6_000_000
    trained = open_trained(weights.name)
    info = trained.info
    assert weights.name.startswith(f"{info.model}.")
    assert (info.task, info.num_classes, info.recipe_hash) == (weights.task, weights.num_classes, weights.recipe_hash)
    assert len(info.class_names) == info.num_classes
    assert info.licence == weights.licence == "mit"
    card = weights.card.read_text()
    assert f'stvit_cli.load("{weights.name}")' in card
    assert weights.data_licence in card.split("## Licence")[1]
    assert weights.recipe_hash in card
    assert "/home/" not in card
    assert "/work/" not in card
    measured = read_card_head(weights.card)["model-index"][0]["results"][-1]
    assert measured["dataset"]["name"] == f"{weights.data}, {weights.images}"
    assert weights.value in [metric["value"] for metric in measured["metrics"]]


def test_the_digits_are_as_accurate_as_the_card_says() -> None:
    trained = open_trained(NANO)
    (weights,) = [weights for weights in list_weights() if weights.name == NANO]
    found = evaluate(trained, recipe_for(trained, ["data.kind=digits", "data.num_workers=0"]))
    assert found.metrics["num_images"] == weights.num_images
    assert found.metrics["top1"] == pytest.approx(weights.value, abs=0.3)  # one image: on another processor bits differ


def test_a_name_is_taken_wherever_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = packaged_file(NANO)
    assert path is not None
    assert weights_file(Path(NANO)) == path
    assert read_info(NANO).model == "stvit-nano"
    model = create_model("stvit-nano", num_classes=10)
    assert load_weights(model, NANO).missing == []
    loaded = stvit_cli.load(NANO)
    assert loaded.path == path
    assert loaded.predict(DIGIT).to_dict()["classes"][0]["name"] == "3"


def test_a_file_of_the_same_name_wins_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    other = create_model("stvit-nano", num_classes=3)
    stvit_cli.save_weights(NANO, other, stvit_cli.WeightsInfo("stvit-nano", num_classes=3))
    with caplog.at_level(logging.WARNING):
        assert read_info(NANO).num_classes == 3
        assert weights_file(Path(NANO)) == Path(NANO)
    assert [record.getMessage() for record in caplog.records] == [
        f"{NANO}: taken from {tmp_path.resolve() / NANO}, not the packaged weights of this name."
    ]


@pytest.mark.parametrize("name", ["stvit-nano.digts", "stvit-nano.digit", "no-run"])
def test_a_name_that_does_not_exist_lists_the_names(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: no such weights file.*\nPackaged weights: .*{NANO}") as refused:
        stvit_cli.load(name)
    assert ("Did you mean 'stvit-nano.digits'?" in str(refused.value)) == (name != "no-run")
    for file in ("missing.safetensors", "runs/missing"):
        with pytest.raises(UserError, match="no such weights file") as refused:
            stvit_cli.load(file)
        assert "Packaged" not in str(refused.value)


def test_a_created_model_has_the_weights() -> None:
    expected = read_state_dict(NANO)
    model = create_model("stvit-nano", pretrained="digits")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    other = create_model("stvit-nano", num_classes=3, in_chans=1, pretrained="stvit-nano.digits", checkpointing=True)
    kernel = other.state_dict()["stem.0.conv.weight"]
    torch.testing.assert_close(kernel, expected["stem.0.conv.weight"].sum(1, keepdim=True))
    assert other.state_dict()["head.weight"].shape[0] == 3
    assert create_model("stvit-nano").state_dict()["head.weight"].shape[0] == 1000


def test_true_means_the_default_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_weights, "DEFAULTS", {"stvit-nano": ("photos", "digits")})
    assert packaged_weights.pretrained_name("stvit-nano", True) == NANO
    default = packaged_weights.default_tag("stvit-nano")
    model = create_model("stvit-nano", pretrained=True)
    assert torch.equal(model.state_dict()["head.weight"], read_state_dict(f"stvit-nano.{default}")["head.weight"])


@pytest.mark.parametrize(
    ("name", "pretrained", "said"),
    [
        ("stvit-nano", "digts", "no weights of stvit-nano named 'digts'. Did you mean 'digits'?"),
        ("stvit-s", True, "no weights of stvit-s come with the package. The authors publish theirs"),
        ("timm/resnet10t", True, 'timm.create_model("resnet10t", pretrained=True)'),
    ],
)
def test_weights_that_do_not_exist_are_refused(name: str, pretrained: str | bool, said: str) -> None:
    with pytest.raises(UserError) as refused:
        create_model(name, pretrained=pretrained)
    assert said in str(refused.value)


def test_timm_creates_models_with_them() -> None:
    expected = read_state_dict(NANO)
    assert "stvit_nano.digits" in timm.list_models("stvit*", pretrained=True)
    model = timm.create_model("stvit_nano.digits", pretrained=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert model.pretrained_cfg["label_names"] == tuple("0123456789")
    info = read_info(NANO)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((info.in_chans, info.image_size, info.image_size), 0.875)
    assert timm.create_model("stvit_nano", pretrained=True).num_classes == 10
    features = timm.create_model("stvit_nano.digits", pretrained=True, features_only=True, in_chans=1)
    kernel = features.state_dict()["stem_0.conv.weight"]
    torch.testing.assert_close(kernel, expected["stem.0.conv.weight"].sum(1, keepdim=True))
    untrained = timm.create_model("stvit_nano")  # the name alone is as before
    assert untrained.num_classes == 1000
    assert untrained.pretrained_cfg["tag"] == "untrained"
    with pytest.raises(UserError, match=r"there are no weights 'digit'. Known: .*digits"):
        timm.create_model("stvit_nano.digit", pretrained=True)


def test_weights_of_one_channel_start_a_model_of_three(tmp_path: Path) -> None:
    path, model = tmp_path / "grey.safetensors", create_model("stvit-nano", num_classes=2, in_chans=1)
    stvit_cli.save_weights(path, model, stvit_cli.WeightsInfo("stvit-nano", num_classes=2, in_chans=1, mean=(0.5,), std=(0.5,)))
    colour = create_model("stvit-nano", num_classes=2)
    assert load_weights(colour, path, new_head=True).adapted == ["stem.0.conv.weight"]
    grey = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(colour.eval()(grey.expand(-1, 3, -1, -1)), model.eval()(grey), atol=1e-4, rtol=1e-4)
    detector = stvit_cli.create_detector("stvit-nano", num_classes=2, channels=16, fc_dim=16)
    notes = load_initial_weights(
        detector, detector.backbone.body, path, task="detection", class_names=("a", "b"), class_layers=()
    )
    assert "tensors of the backbone" in notes[0]
