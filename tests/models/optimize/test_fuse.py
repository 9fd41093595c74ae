"""The fused copy computes the same, leaves the original alone, and is a model like any other but for training."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from stvit_cli import create_model
from stvit_cli.models.layers import ConvPosEnc
from stvit_cli.models.optimize.fuse import Folded, fuse
from stvit_cli.models.stvit import STViT, Variant
from stvit_cli.models.weights.file import load_weights

GOLDEN = Path(__file__).parents[2] / "golden"
TINY = Variant((16, 32, 48, 64), (1, 2, 2, 1), (1, 2, 3, 4), layer_scale=1e-6, proj_dim=96)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def randomised(model: nn.Module) -> nn.Module:
    """Statistics, norms and scales as after training: nothing is at its neutral start."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.3, 3.0, generator=generator)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(-1.0, 1.0, generator=generator)
    return model.eval()


@pytest.mark.parametrize("size", [(64, 64), (97, 33)])
@pytest.mark.parametrize("name", ["stvit-s", "stvit-b", "stvit-l", "stvit-nano"])
@torch.no_grad()
def test_same_function(name: str, size: tuple[int, int]) -> None:
    model = randomised(create_model(name, drop_path_rate=0.2))
    fused = fuse(model)
    x = torch.randn(2, 3, *size)
    assert relative_error(fused(x), model(x)) < 1e-5
    for feature, expected in zip(fused.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
        assert relative_error(feature, expected) < 1e-5


def test_golden() -> None:
    model = STViT(TINY, num_classes=10)
    load_weights(model, GOLDEN / "published_layout_tiny.pth")
    fused = fuse(model)
    arrays = np.load(GOLDEN / "published_layout_tiny.npz")
    for case in range(3):
        expected = torch.from_numpy(arrays[f"case{case}.logits"])
        assert relative_error(fused(torch.from_numpy(arrays[f"case{case}.image"])), expected) < 1e-5


def test_fewer_operations() -> None:
    fused = fuse(create_model("stvit-b", drop_path_rate=0.2))
    kinds = [type(module).__name__ for module in fused.modules()]
    assert kinds.count("BatchNorm2d") == 4  # the stem's
    assert not {"LayerScale2d", "DropPath"}.intersection(kinds)
    assert not any(module.residual for module in fused.modules() if isinstance(module, ConvPosEnc))
    assert kinds.count("Folded") == 30 + 3 + 1 + 2 * 20


def test_the_original_is_left_alone_and_a_second_time_changes_nothing() -> None:
    model = randomised(create_model("stvit-nano")).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = fuse(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not fused.training
    assert not any(p.requires_grad for p in fused.parameters())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fuse(fused)(x), fused(x))
    assert torch.equal(copy.deepcopy(fused)(x), fused(x))


def test_it_refuses_to_train() -> None:
    fused = fuse(create_model("stvit-nano"))
    assert fused.eval() is fused
    with pytest.raises(RuntimeError, match="for inference only"):
        fused.train()
    assert isinstance(fused.norm, Folded)


@pytest.mark.parametrize("feature_cls", [None, "getter"])
@torch.no_grad()
def test_backbones_inside_other_models(feature_cls: str | None) -> None:
    body = timm.create_model("stvit_small", features_only=True, out_indices=(0, 2), in_chans=1, feature_cls=feature_cls)
    model = randomised(nn.Sequential(nn.Identity(), body))
    x = torch.randn(1, 1, 80, 64)
    for feature, expected in zip(fuse(model)(x), model(x), strict=True):
        assert relative_error(feature, expected) < 1e-5


@torch.no_grad()
def test_frozen_batch_norms_fold_too() -> None:
    model = randomised(create_model("stvit-nano"))
    freeze_batch_norm_2d(model)
    assert isinstance(model.norm, FrozenBatchNorm2d)
    x = torch.randn(1, 3, 64, 64)
    fused = fuse(model)
    assert isinstance(fused.norm, Folded)
    assert relative_error(fused(x), model(x)) < 1e-5


@torch.no_grad()
def test_other_models_are_only_copied() -> None:
    model = randomised(create_model("isotropic-mini-stvit-12"))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(fuse(model)(x), model(x))


@torch.no_grad()
def test_half_precision_and_export() -> None:
    model = randomised(create_model("stvit-nano"))
    x = torch.randn(1, 3, 64, 64)
    assert relative_error(fuse(model.bfloat16())(x.bfloat16()).float(), model.float()(x)) < 0.1
    exported = torch.export.export(fuse(model), (x,)).module()
    assert relative_error(exported(x), model(x)) < 1e-5
