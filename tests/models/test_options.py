"""The options of a model: each is the plain reference's function and gradient, in every form that it runs in, and is kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from stvit_cli import WeightsInfo, create_detector, create_model, create_segmenter, save_weights
from stvit_cli.analysis.associations.maps import associations
from stvit_cli.analysis.evaluate import recipe_for
from stvit_cli.errors import UserError
from stvit_cli.models import kernels
from stvit_cli.models.kernels.choice import served
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.inference import for_inference
from stvit_cli.models.options import given, options_of
from stvit_cli.models.stvit import STViT, Variant
from stvit_cli.models.super_token import SuperTokenAttention, average_pool, from_cells, repeat_tokens, sample, to_cells, upsample
from stvit_cli.models.weights import read_info
from stvit_cli.models.weights.info import parse
from stvit_cli.recipe import Recipe
from stvit_cli.recipe import io as recipe_io
from stvit_cli.tasks import create_from, resolve
from stvit_cli.tasks.loading import open_trained
from stvit_cli.tasks.weights import recipe_weights_info
from tests.helpers.reference_model import to_reference
from tests.models.optimize.test_fuse import randomised, relative_error

CPU = torch.device("cpu")
TINY = Variant((16, 16, 32, 32), (1, 1, 1, 1), (1, 1, 2, 2), layer_scale=None, grid_sizes=(4, 2, 1, 1), proj_dim=16)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_iters": 0},
    {"num_iters": 2},
    {"num_iters": 3, "association_grad": True},
    {"association_grad": True},
    {"pos_enc": False},
    {"ffn_conv": False},
    {"layer_scale": 0.5},
    {"num_iters": 0, "pos_enc": False, "ffn_conv": False, "layer_scale": 0.1},
]
"""Arguments of STViT."""


def as_id(options: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "none"


def tiny(options: dict[str, Any]) -> STViT:
    model = STViT(TINY, 3, **options)
    randomised(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm1.weight"):
                parameter.mul_(4)  # so that tokens prefer some of their super tokens
    return model.train()


def gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, all gradients, and that of the norm whose tokens the association compares."""
    logits = model(images)
    (logits**2).sum().backward()
    compared = model.get_parameter("stages.0.blocks.0.norm1.weight").grad
    return logits.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), compared


@pytest.mark.parametrize("by_kernels", [False, True], ids=["eager", "kernels"])
@pytest.mark.parametrize("options", OPTIONS, ids=as_id)
def test_the_function_and_its_gradient_are_the_references(options: dict[str, Any], by_kernels: bool) -> None:
    if by_kernels and not kernels.is_available("cpu"):
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    model, images = tiny(options), torch.randn(2, 3, 64, 64)
    reference = to_reference(copy.deepcopy(model))
    kernels.use_kernels(model, "cpu", by_kernels)
    for found, expected in zip(gradients(model, images), gradients(reference, images), strict=True):
        assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("options", OPTIONS[1:], ids=as_id)
def test_each_option_is_another_function_or_gradient(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain, model, images = tiny({}), tiny(options), torch.randn(1, 3, 64, 64)
    own = model.state_dict()
    model.load_state_dict({**own, **{name: value for name, value in plain.state_dict().items() if name in own}})
    logits, _, gradient = gradients(model, images)
    others = gradients(plain, images)
    assert relative_error(gradient, others[2]) > 5e-3
    assert (relative_error(logits, others[0]) < 1e-6) == (options == {"association_grad": True})


@pytest.mark.parametrize("by_kernels", [False, True], ids=["eager", "kernels"])
@pytest.mark.parametrize("options", OPTIONS[1:], ids=as_id)
@torch.inference_mode()
def test_the_copy_for_inference_is_the_same_function(options: dict[str, Any], by_kernels: bool) -> None:
    if by_kernels and not kernels.is_available("cpu"):
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    model, images = tiny(options).eval(), torch.randn(2, 3, 70, 41)
    fast = for_inference(model, CPU, kernels=by_kernels)
    features = fast.forward_intermediates(images, intermediates_only=True)
    for found, expected in zip(features, model.forward_intermediates(images, intermediates_only=True), strict=True):
        assert relative_error(found, expected) < 1e-5
    assert relative_error(fast(images), model(images)) < 1e-5
    assert relative_error(for_inference(model, CPU, "bf16", kernels=by_kernels)(images), model(images)) < 0.05
    assert relative_error(fuse(model)(images), model(images)) < 1e-5


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_no_iteration_is_average_pooling_and_its_own_cell(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last)
    super_tokens, association = sample(to_cells(x, (4, 4)), 0)
    assert torch.allclose(super_tokens, average_pool(x, (4, 4)), atol=1e-6)
    assert association[..., 4].eq(1).all()
    assert association.sum(-1).eq(1).all()
    back = from_cells(upsample(association, super_tokens), (4, 4), size)
    assert torch.equal(back, repeat_tokens(super_tokens, (4, 4), size))


def test_super_tokens_of_no_iteration_are_shown_as_a_grid() -> None:
    model = create_model("stvit-nano", 2, num_iters=0)
    maps = associations(model, Image.new("RGB", (64, 64)), WeightsInfo("stvit-nano"), keep_size=True)
    layer = maps.layers["stage1.block1"]
    assert (layer.association()[..., 4] == 1).all()
    assert np.array_equal(layer.label_map()[8::16, 8::16], np.arange(16).reshape(4, 4))


def test_layers_without_a_kernel_for_an_option_are_not_measured_on_a_gpu() -> None:
    def kinds(**options: Any) -> list[str]:
        return sorted({type(layer).__name__ for layer in served(STViT(TINY, **options))})

    assert kinds() == ["ConvFFN", "ConvPosEnc", "SuperTokenAttention"]
    assert kinds(num_iters=0) == kinds(association_grad=True) == ["ConvFFN", "ConvPosEnc"]
    assert kinds(pos_enc=False) == ["ConvFFN", "SuperTokenAttention"]
    assert kinds(ffn_conv=False) == ["ConvPosEnc", "SuperTokenAttention"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"num_iters": 0}, {"association_grad": True}], ids=as_id)
def test_blocks_compile_as_one_graph(options: dict[str, Any]) -> None:
    model, images = tiny(options), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    for found, expected in zip(gradients(compiled, images), gradients(model, images), strict=True):
        assert relative_error(found, expected) < 1e-5


def test_layer_scale_is_the_models_own_another_or_none() -> None:
    def scales(**options: Any) -> set[float]:
        model = STViT(replace(TINY, layer_scale=0.25), 2, **options)
        return {value for name, gamma in model.state_dict().items() if name.endswith("gamma") for value in gamma.tolist()}

    assert scales() == {0.25}
    assert scales(layer_scale=0.5) == {0.5}
    assert scales(layer_scale=0.0) == set()


KEPT: dict[str, Any] = {"num_iters": 2, "pos_enc": False, "ffn_conv": False, "association_grad": True, "layer_scale": 0.5}


def recipe(*overrides: str) -> Recipe:
    return recipe_io.from_text("model: {name: stvit-nano}\ndata: {kind: digits, image_size: 64}", overrides)


def test_recipe_weights_and_evaluation_have_the_same_options(tmp_path: Path) -> None:
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in KEPT.items()]
    settings = recipe(*overrides)
    assert given(options_of(settings.model)) == KEPT
    assert recipe_io.recipe_hash(settings) != recipe_io.recipe_hash(recipe())
    info = recipe_weights_info(settings, ["a", "b"])
    model = create_model("stvit-nano", 2, **KEPT).eval()
    save_weights(tmp_path / "w.safetensors", model, info)
    assert read_info(tmp_path / "w.safetensors") == info
    trained = open_trained(tmp_path / "w.safetensors")
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(trained.model(images), model(images))
    attention = trained.model.stages[0].blocks[0].attn
    assert (attention.num_iters, attention.association_grad) == (2, True)
    assert given(options_of(recipe_for(trained, []).model)) == KEPT


def test_weights_of_the_models_own_options_are_described_as_before() -> None:
    known = json.loads(WeightsInfo("stvit-nano").to_json())
    assert not {*KEPT, "kwargs"} & known.keys()
    assert parse(WeightsInfo("stvit-nano", num_iters=0).to_json()).num_iters == 0


@pytest.mark.parametrize("text", ['"num_iters": -1', '"num_iters": 11', '"pos_enc": 1', '"layer_scale": -0.5', '"kwargs": [1]'])
def test_options_out_of_range_are_refused_in_a_file(text: str) -> None:
    with pytest.raises(ValueError, match=text.split('"')[1]):
        parse(f'{{"model": "stvit-nano", {text}}}')


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_dense_models_have_the_options(task: str) -> None:
    make = {
        "detection": lambda: create_detector("stvit-nano", 2, channels=16, fc_dim=16, **KEPT),
        "segmentation": lambda: create_segmenter("stvit-nano", 2, channels=16, **KEPT),
    }[task]
    settings = '{"channels": 16, "fc_dim": 16}' if task == "detection" else '{"class_names": ["a", "b"], "channels": 16}'
    info = WeightsInfo("stvit-nano", task=task, num_classes=2, class_names=("a", "b"), settings=settings, **KEPT)
    with torch.device("meta"):
        for model in (make(), create_from(info)):
            blocks = [part for part in model.modules() if isinstance(part, SuperTokenAttention)]
            assert {(block.num_iters, block.association_grad) for block in blocks} == {(2, True)}
            assert not any("cpe" in name or "mlp.conv" in name for name, _ in model.named_parameters())
            assert any(name.endswith("gamma") for name, _ in model.named_parameters())


def test_timm_creates_the_options() -> None:
    import stvit_cli  # noqa: F401 (registers the models)

    model = timm.create_model("stvit_nano", num_classes=2, num_iters=0, pos_enc=False)
    assert model.stages[0].blocks[0].attn.num_iters == 0
    assert isinstance(model.stages[0].blocks[0].cpe, nn.Identity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_model("timm/test_convnext", num_iters=0), "model.num_iters: found 0 .* no super tokens"),
        (lambda: create_model("isotropic-mini-swin-12", association_grad=True), "no super tokens"),
        (lambda: create_model("isotropic-mini-stvit-12", pos_enc=False), "has no convolutional position encoding"),
        (lambda: create_detector("timm/test_convnext", 2, ffn_conv=False), "has no ConvFFN"),
        (lambda: create_model("stvit-nano", kwargs={"depth": 2}), "model.kwargs: found .* for models of timm"),
        (lambda: recipe("model.kwargs={depth: 2}"), "model.kwargs: found {depth: 2}, but stvit-nano is no model of timm"),
        (lambda: recipe("model.num_iters=11"), "model.num_iters: found 11 .*from 0 to 10"),
    ],
)
def test_options_of_other_models_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_rows_of_table_ii_have_the_options_of_super_tokens() -> None:
    model = create_model("isotropic-mini-stvit-12", 2, num_iters=0, association_grad=True).eval()
    assert {part.num_iters for part in model.modules() if isinstance(part, SuperTokenAttention)} == {0}
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_a_model_of_timm_leaves_out_the_options_with_a_note() -> None:
    settings, notes = resolve(recipe("model.name=timm/test_convnext", "model.num_iters=2", "model.grid_sizes=[1,1,1,1]"))
    assert given(options_of(settings.model)) == {}
    assert "model.num_iters: not used, as timm/test_convnext has no super tokens." in notes
