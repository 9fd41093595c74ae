"""STViT in timm: its registry, its arguments, and its own generic checks of a model, on our names."""

import itertools
import math
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_pretrained_cfg_value
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from stvit_cli import create_model
from stvit_cli.models.stvit import STViT
from stvit_cli.models.timm_registry import PACKAGED
from stvit_cli.models.weights.file import WeightsInfo, save_weights

NAMES = {"stvit_small": "stvit-s", "stvit_base": "stvit-b", "stvit_large": "stvit-l", "stvit_nano": "stvit-nano"}
CHANNELS = {"stvit_small": [64, 128, 320, 512], "stvit_nano": [32, 64, 96, 128]}


def test_registered() -> None:
    assert timm.list_models("stvit*") == sorted(NAMES)
    assert timm.list_models("stvit*", pretrained=True) == sorted(PACKAGED)


@pytest.mark.parametrize("name", NAMES)
def test_same_model_as_ours(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(NAMES[name]), timm.create_model(name)
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert isinstance(theirs, STViT)
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "size", "crop"), [("stvit_base", 224, 0.875), ("stvit_base.in1k_384", 384, 1.0)])
def test_pretrained_cfg(name: str, size: int, crop: float) -> None:
    with torch.device("meta"):
        cfg = timm.create_model(name).pretrained_cfg
    assert cfg["input_size"] == (3, size, size)
    assert cfg["crop_pct"] == crop
    assert cfg["interpolation"] == "bicubic"
    assert cfg["mean"] == (0.485, 0.456, 0.406)
    assert cfg["std"] == (0.229, 0.224, 0.225)
    config = timm.data.resolve_data_config(pretrained_cfg=cfg)
    assert config["input_size"] == (3, size, size)
    with torch.device("meta"):
        own = timm.create_model("stvit_nano", pretrained_cfg={"input_size": (3, 64, 64), "mean": (0.5,) * 3})
    assert own.pretrained_cfg["mean"] == (0.5,) * 3


# timm's generic checks (its tests/test_models.py), in our words


@pytest.mark.parametrize("name", ["stvit_nano", "stvit_small"])
@torch.no_grad()
def test_forward(name: str) -> None:
    model = timm.create_model(name).eval()
    x = torch.randn(1, *get_pretrained_cfg_value(name, "input_size"))
    y = model(x)
    assert y.shape == (1, 1000)
    assert not y.isnan().any()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


def test_backward() -> None:
    model = timm.create_model("stvit_nano", num_classes=42, drop_path_rate=0.1, drop_rate=0.1).train()
    y = model(torch.randn(2, 3, 64, 64))
    y.mean().backward()
    assert y.shape == (2, 42)
    assert not y.isnan().any()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_default_cfg_is_true_and_the_head_can_be_reset() -> None:
    model = timm.create_model("stvit_nano").eval()
    cfg = model.default_cfg
    names = model.state_dict()
    assert cfg["classifier"] + ".weight" in names
    assert cfg["first_conv"] + ".weight" in names
    x = torch.randn(1, *cfg["input_size"])
    tokens = model.forward_features(x)
    assert tokens.shape == (1, model.num_features, *cfg["pool_size"])
    pooled = model.forward_head(tokens, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)

    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), pooled)
    model.reset_classifier(0, "")
    assert model(x).shape == (1, model.head_hidden_size, *cfg["pool_size"])
    model.reset_classifier(7, "avg")
    assert model(x).shape == (1, 7)
    assert model.num_classes == 7
    bare = timm.create_model("stvit_nano", num_classes=0, global_pool="").eval()
    assert bare(x).shape == (1, model.head_hidden_size, *cfg["pool_size"])
    with pytest.raises(ValueError, match="global_pool is '' for 7 classes"):
        model.reset_classifier(7, "")


@pytest.mark.parametrize("feature_cls", [None, "getter", "hook"])
@pytest.mark.parametrize("name", CHANNELS)
@torch.no_grad()
def test_features(name: str, feature_cls: str | None) -> None:
    model = timm.create_model(name, features_only=True, feature_cls=feature_cls).eval()
    assert model.feature_info.channels() == CHANNELS[name]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    features = model(torch.randn(1, 3, 70, 101))
    for feature, channels, reduction in zip(features, CHANNELS[name], [4, 8, 16, 32], strict=True):
        assert feature.shape == (1, channels, math.ceil(70 / reduction), math.ceil(101 / reduction))
        assert not feature.isnan().any()
        assert feature.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("feature_cls", [None, "getter"])
@torch.no_grad()
def test_features_are_those_of_the_model_and_the_rest_is_dropped(feature_cls: str | None) -> None:
    whole = timm.create_model("stvit_nano", in_chans=1).eval()
    some = timm.create_model("stvit_nano", in_chans=1, features_only=True, out_indices=(0, 2), feature_cls=feature_cls).eval()
    inner = some.model if feature_cls else nn.Module()
    weights = whole.state_dict()
    if feature_cls:
        inner.load_state_dict({name: weights[name] for name in inner.state_dict()})
        assert inner.num_features == 96
    else:
        some.load_state_dict({name: weights[name.replace("_", ".", 1)] for name in some.state_dict()})
    x = torch.randn(2, 1, 64, 48)
    expected = whole.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    for feature, other in zip(some(x), expected, strict=True):
        torch.testing.assert_close(feature, other)
    assert not any("stages.3" in name or "stages_3" in name or "head" in name for name in some.state_dict())


@torch.no_grad()
def test_forward_intermediates() -> None:
    model = timm.create_model("stvit_nano").eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    x = torch.randn(1, 3, 96, 64)
    tokens, features = model.forward_intermediates(x, output_fmt="NCHW")
    assert [f.shape[1] for f in features] == info.channels()
    assert len(features) == len(info.reduction())
    torch.testing.assert_close(tokens, model.forward_features(x))
    last = model.forward_intermediates(x, indices=1, intermediates_only=True, stop_early=True)
    assert len(last) == 1
    assert torch.equal(last[0], features[-1])
    assert len(model.prune_intermediate_layers([0, 1])) == 2
    assert len(model.stages) == 2


@pytest.mark.parametrize("train", [False, True])
def test_symbolic_tracing(train: bool) -> None:
    """timm's and torchvision's extraction by torch.fx, with what timm says is not to be traced."""
    model = timm.create_model("stvit_nano", num_classes=42).train(train)
    tracing = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
    traced = create_feature_extractor(model, {"stages.1": "feature", "head": "logits"}, tracer_kwargs=tracing)
    x = torch.randn(2, 3, 64, 64)
    out: dict[str, Tensor] = traced(x)
    assert out["feature"].shape == (2, 64, 8, 8)
    assert out["logits"].shape == (2, 42)
    if train:
        out["logits"].mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    else:
        torch.testing.assert_close(out["logits"], model(x))


@pytest.mark.parametrize("name", ["stvit_nano", "stvit_small"])
def test_layerwise_rates(name: str) -> None:
    model = timm.create_model(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    scales: dict[str, float] = {}
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            scales[names[id(parameter)]] = group["lr_scale"]
    assert scales.keys() == set(names.values())
    order = ["stem.0.conv.weight", "stages.0.blocks.0.attn.qkv.weight", "stages.1.downsample.conv.weight"]
    order += [f"stages.{i}.blocks.{j}.mlp.fc1.weight" for i in (1, 2, 3) for j in range(len(model.stages[i].blocks))]
    order += ["proj.weight", "head.weight"]
    rates = [scales[key] for key in order]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0
    assert rates[0] == min(scales.values())
    assert all(a < b for a, b in itertools.pairwise(rates[3:-2])), "each block is a layer of its own"


@pytest.mark.parametrize("kind", ["ours", "published"])
def test_weights_through_timm(kind: str, tmp_path: Any, published: Any) -> None:
    model = create_model("stvit-nano", num_classes=10)
    path = tmp_path / ("x.safetensors" if kind == "ours" else "x.pth")
    if kind == "ours":
        save_weights(path, model, WeightsInfo("stvit-nano", num_classes=10))
    else:
        torch.save({"model": published(model.state_dict())}, path)
    loaded = timm.create_model(
        "stvit_nano", num_classes=10, pretrained=True, pretrained_cfg_overlay={"file": str(path), "num_classes": 10}
    )
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    features = timm.create_model(
        "stvit_nano",
        features_only=True,
        in_chans=1,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "num_classes": 10},
    )
    assert features.stem_0.conv.weight.shape[1] == 1
    assert torch.equal(features.stages_0.blocks[0].attn.qkv.weight, model.state_dict()["stages.0.blocks.0.attn.qkv.weight"])
