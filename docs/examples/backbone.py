"""STViT as a backbone of timm, torchvision, segmentation-models-pytorch and transformers: python docs/examples/backbone.py.

Needs pip install 'stvit[dense]'; the part of transformers is left out where it is not installed.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec

import segmentation_models_pytorch as smp
import timm
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

import stvit_cli  # registers stvit_small, stvit_base, stvit_large and stvit_nano in timm


def main() -> None:
    """Build each of them, load weights into its backbone, and take a step or a prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stvit_nano", help="stvit_small, ...")
    parser.add_argument("--weights", default="stvit-nano.digits", help="stvit-s.safetensors, ...")
    given = parser.parse_args()
    name, weights = given.model, given.weights
    images = torch.rand(2, 3, 96, 128)

    # --8<-- [start:timm]
    backbone = timm.create_model(name, features_only=True)
    report = stvit_cli.load_weights(backbone, weights, new_head=True)
    print(f"{len(report.loaded)} tensors loaded; missing: {report.missing or 'none'}")
    for info, feature in zip(backbone.feature_info.get_dicts(), backbone(images), strict=True):
        print(f"stride {info['reduction']}: {tuple(feature.shape)}")
    # --8<-- [end:timm]

    # --8<-- [start:torchvision]
    stages = {f"stages_{stage}": str(stage) for stage in range(4)}
    pyramid = BackboneWithFPN(backbone, stages, backbone.feature_info.channels(), out_channels=64)
    detector = FasterRCNN(pyramid, num_classes=3, min_size=96, max_size=128)  # two classes and the background
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 50.0]]), "labels": torch.tensor([1])}
    losses = detector(list(images), [target, target])
    sum(losses.values()).backward()
    print({name: round(loss.item(), 2) for name, loss in losses.items()})
    # --8<-- [end:torchvision]

    # --8<-- [start:smp]
    unet = smp.Unet(f"tu-{name}", encoder_weights=None, classes=2)
    stvit_cli.load_weights(unet, weights, new_head=True)
    print("Unet", tuple(unet(images).shape))
    # --8<-- [end:smp]

    if find_spec("transformers"):
        # --8<-- [start:transformers]
        from transformers import TimmBackbone, TimmBackboneConfig

        encoder = TimmBackbone(TimmBackboneConfig(backbone=name, out_indices=[1, 3])).eval()
        stvit_cli.load_weights(encoder, weights, new_head=True)
        print("TimmBackbone", [tuple(feature.shape) for feature in encoder(images).feature_maps])
        # --8<-- [end:transformers]


if __name__ == "__main__":
    main()
