"""Libraries that take a backbone from timm take ours: torchvision's feature pyramid, segmentation models, transformers."""

import pytest
import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import stvit_cli.models  # noqa: F401 (for the registration)


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
