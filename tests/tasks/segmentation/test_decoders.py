"""segmentation-models-pytorch's decoders by name: its parameters and its outputs, any size, and the recipe's key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors import safe_open

from stvit_cli import create_segmenter
from stvit_cli.tasks.loading import open_trained

OTHERS = {"fpn": smp.FPN, "unet": smp.Unet, "segformer": smp.Segformer, "deeplabv3plus": smp.DeepLabV3Plus}


@pytest.mark.parametrize("name", OTHERS)
def test_the_parameters_are_those_of_the_library(name: Any) -> None:
    ours = create_segmenter("timm/stvit_nano", 3, decoder=name, channels=256)
    with torch.device("meta"):
        extra = {"encoder_output_stride": 16} if name == "deeplabv3plus" else {}
        encoder = "resnet18" if name == "deeplabv3plus" else "tu-convnext_tiny"  # the latter has no dilated form
        theirs = OTHERS[name](encoder, encoder_weights=None, classes=3, **extra)
    if name == "deeplabv3plus":  # of a stage of other widths: ours on the same ones
        from stvit_cli.tasks.segmentation.decoders import OtherDecoder

        decoder = OtherDecoder(name, theirs.encoder.out_channels[2:], 256)
    else:
        with torch.device("meta"):
            decoder = create_segmenter("timm/convnext_tiny", 3, decoder=name, channels=256).decoder
    expected = {f"net.{key}": value.shape for key, value in theirs.decoder.state_dict().items()}
    assert {key: value.shape for key, value in decoder.state_dict().items()} == expected
    assert ours.classifier.weight.shape == theirs.segmentation_head[0].weight.shape


@pytest.mark.parametrize("name", ["fpn", "unet", "segformer"])
def test_the_outputs_are_those_of_the_library(name: Any) -> None:
    torch.manual_seed(0)
    theirs = OTHERS[name]("tu-test_convnext", encoder_weights=None, classes=3).eval()
    ours = create_segmenter("timm/test_convnext", 3, decoder=name, channels=256).eval()
    ours.decoder.net.load_state_dict(theirs.decoder.state_dict())
    features = theirs.encoder(torch.randn(1, 3, 64, 96))
    with torch.no_grad():
        assert torch.equal(ours.decoder(features[2:]), theirs.decoder(features))


@pytest.mark.parametrize("name", OTHERS)
def test_any_size_in_training_and_evaluation(name: Any) -> None:
    model = create_segmenter("stvit-nano", 3, decoder=name, channels=32, aux_channels=8)
    logits, aux = model(torch.randn(1, 3, 50, 77))
    assert logits.shape == aux.shape == (1, 3, 50, 77)
    (logits.sum() + aux.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(torch.randn(1, 3, 33, 40)).shape == (1, 3, 33, 40)


def test_the_key_of_the_recipe_through_the_command_line(stvit: Any, ade20k_tree: Path, tmp_path: Path) -> None:
    words = ["data.kind=ade20k", "data.image_size=64", "data.num_workers=0", "schedule.steps=1", "schedule.warmup_steps=0"]
    words += ["train.global_batch_size=2", "train.device=cpu", "segmentation.channels=32", "segmentation.aux_channels=8"]
    words += ["segmentation.max_size=[64,64]", "segmentation.reduce_zero_label=true", "segmentation.decoder=unet"]
    run = tmp_path / "run"
    ended = stvit("train", "--recipe", "shapes-upernet", "--data", ade20k_tree, "--output", run, *words)
    assert ended.code == 0, ended.err
    assert stvit("eval", run).code == 0
    trained = open_trained(run)
    assert json.loads(trained.info.settings)["decoder"] == "unet"
    with safe_open(run / "best.safetensors", "pt") as file:
        assert any(name.startswith("decoder.net.blocks.0") for name in file.keys())  # noqa: SIM118  # not a dict


def test_files_of_earlier_versions_hold_upernet() -> None:
    from stvit_cli import WeightsInfo
    from stvit_cli.tasks.segmentation.decoders import UPerNet
    from stvit_cli.tasks.segmentation.task import create_from

    settings = json.dumps({"class_names": ["a", "b"], "channels": 16, "aux_channels": 8})
    info = WeightsInfo("stvit-nano", task="segmentation", num_classes=2, class_names=("a", "b"), settings=settings)
    assert isinstance(create_from(info).decoder, UPerNet)
