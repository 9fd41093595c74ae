"""The copy for inference is the same function, in float32 up to rounding and in bfloat16 within its error, for every task."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from stvit_cli import create_model
from stvit_cli.models import kernels
from stvit_cli.models.layers import Stem
from stvit_cli.models.optimize import mkldnn, packed_block
from stvit_cli.models.optimize.inference import Precision, bf16_is_native, for_inference
from stvit_cli.models.optimize.packed_stem import PackedStem
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
            if "pointwise" in str(func):
                calls.append({arg.dtype for arg in args if isinstance(arg, Tensor)})
                assert not torch.is_autocast_enabled("cpu")
            return func(*args, **kwargs or {})

    layers = [mkldnn.PackedConv(nn.Conv2d(8, 16, 1), dtype), mkldnn.PackedConv2d(nn.Conv2d(8, 16, 3), dtype, "gelu")]
    for layer in layers:
        with Recorder(), torch.autocast("cpu", torch.bfloat16):
            y = layer(torch.randn(1, 8, 5, 6).to(input_dtype))
        assert y.dtype == (input_dtype if dtype == torch.float32 else dtype)
    assert calls == [{mkldnn.computed_dtype(dtype)}] * 2


@pytest.mark.parametrize("size", [(32, 32), (33, 46), (63, 35)])
@pytest.mark.parametrize("unfoldable", [False, True])
@torch.inference_mode()
def test_batch_norms_of_the_stem_fold_exactly(size: tuple[int, int], unfoldable: bool) -> None:
    """Also at the border, where the convolution after a batch norm pads with zeros."""
    stem = randomised(Stem(3, 16))
    assert isinstance(stem, Stem)
    for layer in list(stem)[: -1 if not unfoldable else 0]:
        layer.norm.weight.abs_().add_(0.2)
    if unfoldable:
        stem[1].norm.weight[3] = 0.0  # -shift / scale is infinite
    packed = PackedStem(stem)
    assert [type(norm) is nn.Identity for norm in packed.norms] == [True, not unfoldable, True, False]
    images = torch.randn(2, 3, *size) + 1
    assert relative_error(packed(images), stem(images)) < 1e-5


@torch.inference_mode()
def test_images_are_taken_apart_where_the_hidden_tokens_are_large(monkeypatch: pytest.MonkeyPatch, with_kernels: bool) -> None:
    monkeypatch.setattr(packed_block, "CACHE", 3 * 4 * 64 * 16 * 16)
    monkeypatch.setattr(packed_block, "MIN_TOKENS", 100)
    model, images = tiny(), torch.randn(3, 3, 64, 64)
    fast, counts = for_inference(model, CPU), []
    for stage in fast.stages:
        fc2 = stage.blocks[0].mlp.fc2
        monkeypatch.setattr(fc2, "add_to", lambda x, hidden, add_to=fc2.add_to: (counts.append(len(x)), add_to(x, hidden))[1])
    assert relative_error(fast(images), model(images)) < BOUNDS["fp32"]
    assert counts == [3, 3, 3, 3]
    counts.clear()
    monkeypatch.setattr(packed_block, "CACHE", 0)
    assert relative_error(fast(images), model(images)) < BOUNDS["fp32"]
    assert counts == [1, 1, 1, 2, 1, 3, 3]  # 256, 64, 16 and 4 tokens of an image


@torch.inference_mode()
def test_blocks_with_other_norms_are_not_flattened() -> None:
    model = tiny()
    model.stages[0].blocks[0].norm2 = nn.GroupNorm(4, 16)
    fast, images = for_inference(model, CPU), torch.randn(1, 3, 40, 64)
    kinds = [type(block).__name__ for stage in fast.stages for block in stage.blocks]
    assert kinds == ["Block", *["PackedBlock"] * 5]
    assert relative_error(fast(images), model(images)) < BOUNDS["fp32"]


@pytest.mark.parametrize("groups", [1, 64])
@torch.inference_mode()
def test_weights_have_the_layout_of_the_size_at_hand(groups: int) -> None:
    """oneDNN converts another layout at every call, which can take ten times as long as the convolution."""
    conv = nn.Conv2d(64, 64, 3, 1, 1, groups=groups)
    packed = mkldnn.PackedConv2d(conv).packed
    sizes, found = [(1, 64, 28, 28), (8, 64, 28, 28), (1, 64, 9, 50), (1, 64, 28, 28)], []
    for size in sizes:
        found.append(packed.for_input(torch.empty(size)))
        expected = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.contiguous(memory_format=torch.channels_last), [1, 1], [1, 1], [1, 1], groups, list(size)
        )
        assert mkldnn._layout(found[-1]) == mkldnn._layout(expected)
        assert torch.equal(found[-1].to_dense().reshape(conv.weight.shape), conv.weight)
    assert found[0] is found[-1]


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
    for name in ("pack", "inference"):
        monkeypatch.setattr(f"stvit_cli.models.optimize.{name}.can_pack", lambda: False)
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


def test_the_trial_of_packed_products_finds_right_and_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it fails in bfloat16, as with a oneDNN that lacks an operator, products are computed in float32."""
    assert mkldnn.packed_products_are_right(torch.float32)
    monkeypatch.setattr(mkldnn, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)

    def lacks(dtype: torch.dtype) -> bool:
        raise RuntimeError("could not create a primitive descriptor")

    for trial, expected in ((lambda dtype: True, torch.bfloat16), (lambda dtype: False, torch.float32), (lacks, torch.float32)):
        monkeypatch.setattr(mkldnn, "packed_products_are_right", trial)
        mkldnn._multiplies_bf16.cache_clear()
        assert mkldnn.computed_dtype(torch.bfloat16) == expected
    mkldnn._multiplies_bf16.cache_clear()
