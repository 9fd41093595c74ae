"""The copy for inference is the same function, in float32 up to rounding and in bfloat16 within its error, for every task."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from stvit_cli import create_model
from stvit_cli.models import kernels
from stvit_cli.models.optimize import mkldnn
from stvit_cli.models.optimize.inference import Precision, bf16_is_native, for_inference
from stvit_cli.models.stvit import STViT, Variant
from stvit_cli.tasks.detection.detector import create_detector
from stvit_cli.tasks.segmentation.upernet import create_segmenter
from tests.models.optimize.test_fuse import randomised, relative_error

CPU = torch.device("cpu")
TINY = Variant((16, 32, 48, 64), (2, 1, 2, 1), (1, 2, 3, 4), layer_scale=0.5, grid_sizes=(4, 2, 1, 1), proj_dim=48)
BOUNDS: dict[Precision, float] = {"fp32": 1e-5, "bf16": 0.05}


@pytest.fixture(params=["fp32", "bf16"])
def precision(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[False, True], ids=["eager", "kernels"])
def with_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not kernels.is_available("cpu"):
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(kernels, "are_faster", lambda *_: request.param)
    return bool(request.param)


def tiny(num_classes: int = 7, variant: Variant = TINY, **options: Any) -> STViT:
    model = STViT(variant, num_classes, **options)
    randomised(model)
    return model


@pytest.mark.parametrize("size", [(64, 64), (97, 41), (32, 33)])
@torch.inference_mode()
def test_logits_and_features(size: tuple[int, int], precision: Precision, with_kernels: bool) -> None:
    model, images = tiny(), torch.randn(2, 3, *size)
    fast = for_inference(model, CPU, precision)
    expected = model(images)
    for given in (images, images.bfloat16()) if precision == "bf16" else (images,):
        logits = fast(given)
        assert logits.dtype == torch.float32
        assert relative_error(logits, expected) < BOUNDS[precision]
    features = fast.forward_intermediates(images, intermediates_only=True)
    for feature, other in zip(features, model.forward_intermediates(images, intermediates_only=True), strict=True):
        assert feature.dtype == torch.float32
        assert relative_error(feature, other) < BOUNDS[precision]


@torch.inference_mode()
def test_the_fp32_copy_under_autocast(with_kernels: bool) -> None:
    model, images = tiny(), torch.randn(2, 3, 64, 49)
    fast, expected = for_inference(model, CPU), model(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(fast(images), expected) < BOUNDS["bf16"]
        inside = for_inference(model, CPU, "bf16")
        assert relative_error(inside(images), expected) < BOUNDS["bf16"]
    assert relative_error(fast(images), expected) < BOUNDS["fp32"]


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_packed_product_never_mixes_dtypes(
    input_dtype: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN cannot multiply tensors of two dtypes; autocast must not convert one of them."""
    calls: list[set[torch.dtype]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "mkldnn":
                calls.append({arg.dtype for arg in args if isinstance(arg, Tensor)})
                assert not torch.is_autocast_enabled("cpu")
            return func(*args, **kwargs or {})

    layers = [mkldnn.PackedConv(nn.Conv2d(8, 16, 1), dtype), mkldnn.PackedConv2d(nn.Conv2d(8, 16, 3), dtype, "gelu")]
    for layer in layers:
        with Recorder(), torch.autocast("cpu", torch.bfloat16):
            y = layer(torch.randn(1, 8, 5, 6).to(input_dtype))
        assert y.dtype == (input_dtype if dtype == torch.float32 else dtype)
    assert calls == [{mkldnn.computed_dtype(dtype)}] * 2


@pytest.mark.parametrize("feature_cls", [None, "getter"])
@torch.inference_mode()
def test_a_backbone_of_timm_inside_another_model(feature_cls: str | None, precision: Precision) -> None:
    body = timm.create_model("stvit_nano", features_only=True, out_indices=(0, 2), in_chans=1, feature_cls=feature_cls)
    model = randomised(nn.Sequential(nn.Identity(), body))
    images = torch.randn(1, 1, 80, 64)
    for feature, expected in zip(for_inference(model, CPU, precision)(images), model(images), strict=True):
        assert feature.dtype == torch.float32
        assert relative_error(feature, expected) < BOUNDS[precision]


@torch.inference_mode()
def test_segmenters_and_their_backbones(precision: Precision, with_kernels: bool) -> None:
    model = create_segmenter("stvit-nano", 5, channels=16, aux_channels=16).eval()
    images = torch.randn(1, 3, 72, 64)
    fast, expected = for_inference(model, CPU, precision), model(images)
    found = fast(images)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < BOUNDS[precision]
    for feature in fast.backbone.forward_intermediates(images, intermediates_only=True):
        assert feature.dtype == torch.float32


@pytest.mark.parametrize("head", ["mask-rcnn", "cascade-rcnn"])
@torch.inference_mode()
def test_detectors_and_their_backbones(head: Any, precision: Precision) -> None:
    torch.manual_seed(0)
    model = create_detector(
        "stvit-nano", 3, head=head, channels=16, fc_dim=16, short_sides=(64,), score_threshold=0.0, max_detections=5
    ).eval()
    image = torch.rand(3, 64, 80)
    fast = for_inference(model, CPU, precision)
    (found,), (expected,) = fast([image]), model([image])
    assert found.keys() == expected.keys()
    assert {part.dtype for part in found.values()} == {torch.float32, torch.int64}
    maps, others = fast.backbone(image[None]), model.backbone(image[None])
    assert maps.keys() == others.keys()
    for name, part in maps.items():
        assert part.dtype == torch.float32
        assert relative_error(part, others[name]) < BOUNDS[precision]
    if precision == "fp32":
        torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["isotropic-mini-stvit-12", "isotropic-mini-swin-12", "timm/resnet10t"])
@torch.inference_mode()
def test_other_models_run_under_autocast(name: str) -> None:
    model, images = create_model(name, num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    found = for_inference(model, CPU, "bf16")(images)
    assert found.dtype == torch.float32
    assert relative_error(found, model(images)) < BOUNDS["bf16"]


@torch.inference_mode()
def test_without_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, or where PyTorch has no oneDNN."""
    monkeypatch.setattr(mkldnn, "can_pack", lambda: False)
    monkeypatch.setattr("stvit_cli.models.optimize.inference.can_pack", lambda: False)
    model, images = tiny(), torch.randn(1, 3, 64, 40)
    fast, expected = for_inference(model, CPU, "bf16"), model(images)
    assert fast.stem[0].conv.weight.dtype == torch.bfloat16
    assert fast(images).dtype == torch.float32
    assert relative_error(fast(images), expected) < BOUNDS["bf16"]


def test_native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(torch.cpu, "get_capabilities"):
        for capabilities, expected in (({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
            assert bf16_is_native(CPU) == expected
