"""Libraries that take a backbone from timm take ours: torchvision's feature pyramid, segmentation models, transformers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import stvit_cli


def pyramid() -> BackboneWithFPN:
    body = timm.create_model("stvit_small", features_only=True)
    layers = {f"stages_{i}": str(i) for i in range(4)}
    return BackboneWithFPN(body, layers, body.feature_info.channels(), out_channels=64)


@torch.no_grad()
def test_torchvision_feature_pyramid() -> None:
    features = pyramid().eval()(torch.randn(1, 3, 96, 130))
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "0": (1, 64, 24, 33),
        "1": (1, 64, 12, 17),
        "2": (1, 64, 6, 9),
        "3": (1, 64, 3, 5),
        "pool": (1, 64, 2, 3),
    }


@torch.no_grad()
def test_torchvision_detector() -> None:
    detector = FasterRCNN(pyramid(), num_classes=4, min_size=96, max_size=128).eval()
    (found,) = detector([torch.rand(3, 80, 100)])
    assert found["boxes"].shape[1] == 4
    assert found["boxes"].isfinite().all()


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet"])
def test_segmentation_models(decoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, decoder)("tu-stvit_small", encoder_weights=None, in_channels=4, classes=5)
    logits = model(torch.randn(2, 4, 64, 96))
    assert logits.shape == (2, 5, 64, 96)
    logits.mean().backward()
    assert model.encoder.model.stages_3.blocks[0].attn.qkv.weight.grad is not None


def test_transformers_backbone() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(backbone="stvit_small", out_indices=[1, 3])
    backbone = transformers.TimmBackbone(config).eval()
    assert backbone.channels == [128, 512]
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96)).feature_maps
    assert [tuple(f.shape) for f in maps] == [(1, 128, 8, 12), (1, 512, 2, 3)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a stvit-nano for 2 classes."""
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    stvit_cli.save_weights(path, stvit_cli.create_model("stvit-nano", 2), stvit_cli.WeightsInfo("stvit-nano", num_classes=2))
    return path


def features_only() -> torch.nn.Module:
    return timm.create_model("stvit_nano", features_only=True)


def feature_pyramid() -> torch.nn.Module:
    body = features_only()
    return BackboneWithFPN(body, {"stages_3": "0"}, body.feature_info.channels()[-1:], out_channels=8)


def parallel() -> torch.nn.Module:
    model = torch.nn.Module()
    model.module = stvit_cli.create_model("stvit-nano", 2)
    return model


def unet() -> torch.nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("tu-stvit_nano", encoder_weights=None, classes=2)


def unet_of_four_channels() -> torch.nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("tu-stvit_nano", encoder_weights=None, in_channels=4, classes=2)


@pytest.mark.parametrize("build", [features_only, feature_pyramid, parallel, unet, unet_of_four_channels])
def test_weights_are_loaded_into_a_wrapped_backbone(build, weights: Path) -> None:
    model, expected = build(), stvit_cli.models.weights.read_state_dict(weights)
    report = stvit_cli.load_weights(model, weights, new_head=True)
    backbone = {name for name in expected if name.startswith(("stem.", "stages."))}
    assert len(report.loaded) >= len(backbone)
    assert not [name for name in report.missing if "stages" in name or "stem" in name]
    values = model.state_dict()
    (last,) = [name for name in values if name.endswith("3.blocks.0.attn.qkv.weight")]
    assert torch.equal(values[last], expected["stages.3.blocks.0.attn.qkv.weight"])
    assert bool(report.adapted) == (build is unet_of_four_channels)


@pytest.mark.parametrize("build", [features_only, feature_pyramid, unet])
def test_the_backbone_of_a_segmenter_is_loaded_into_a_wrapped_backbone(build) -> None:
    file = stvit_cli.models.weights.read_weights("stvit-nano.shapes-upernet")
    model = build()
    report = stvit_cli.load_weights(model, file)
    assert [name for name in report.missing if re.search("stem|stages", name)] == []
    (last,) = [value for name, value in model.state_dict().items() if name.endswith("3.blocks.0.attn.qkv.weight")]
    assert torch.equal(last, file.state_dict["backbone.stages.3.blocks.0.attn.qkv.weight"])


def test_pretrained_weights_of_timm_say_where_the_files_are() -> None:
    with pytest.raises(stvit_cli.UserError, match=r"github\.com/hhb072/STViT") as raised:
        timm.create_model("stvit_small", pretrained=True)
    assert "load_weights" in str(raised.value)


def test_pretrained_weights_of_timm_come_from_a_file_that_is_named(weights: Path) -> None:
    overlay = {"file": str(weights), "num_classes": 2}
    model = timm.create_model("stvit_nano", pretrained=True, num_classes=2, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.stem[0].conv.weight, stvit_cli.models.weights.read_state_dict(weights)["stem.0.conv.weight"])


@pytest.mark.parametrize("imports", ["import timm, stvit_cli", "import stvit_cli.data, timm"])
def test_importing_the_package_registers_the_models_in_either_order(imports: str) -> None:
    code = f"{imports}; timm.create_model('stvit_nano'); assert timm.list_models('stvit_*')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
