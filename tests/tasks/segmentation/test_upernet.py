"""UperNet beside an exact port of the original, its size and cost, and that any image goes through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stvit_cli.errors import UserError
from stvit_cli.tasks.segmentation.decoders import UPerNet
from stvit_cli.tasks.segmentation.upernet import Segmenter, create_segmenter

DENSE = {
    ("stvit-s", (8, 4, 1, 1)): 1029.5,
    ("stvit-s", (8, 4, 2, 1)): 928.6,
    ("stvit-s", (16, 8, 2, 1)): 926.5,
    ("stvit-b", (8, 4, 1, 1)): 1230.3,
    ("stvit-b", (8, 4, 2, 1)): 1037.7,
    ("stvit-b", (16, 8, 2, 1)): 1033.6,
}
"""Multiply-adds at 512 x 2048 in G, measured with the authors' backbone."""


def small() -> Segmenter:
    torch.manual_seed(0)
    return create_segmenter("stvit-nano", 5, channels=32, aux_channels=16)


@pytest.mark.parametrize(("name", "expected"), [("stvit-s", 54.4e6), ("stvit-b", 80.8e6)])
def test_parameters_with_the_auxiliary_head(name: str, expected: float) -> None:
    with torch.device("meta"):
        model = create_segmenter(name, 150)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("name", "grid_sizes"), DENSE)
def test_multiply_adds_of_every_grid(name: str, grid_sizes: tuple[int, int, int, int]) -> None:
    """Of convolutions and matrix products, which are all but 0.2 % of what fvcore counts; nothing is computed."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        create_segmenter(name, 150, grid_sizes=grid_sizes).eval()(torch.zeros(1, 3, 512, 2048))
    assert counter.get_total_flops() / 2e9 == pytest.approx(DENSE[name, grid_sizes], rel=0.01)


def by_their_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights of our decoder and classifier as transformers' UperNetHead does."""
    places = {"0": "conv", "1": "batch_norm"}
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        match parts:
            case ["classifier", _]:
                pass
            case ["decoder", "psp", "blocks", i, "1", place, leaf]:
                parts = ["psp_modules", i, "1", places[place], leaf]
            case ["decoder", "psp", "out_conv", place, leaf]:
                parts = ["bottleneck", places[place], leaf]
            case ["decoder", "fpn_lateral_blocks", i, "conv_norm_relu", place, leaf]:  # theirs go from fine to coarse
                parts = ["lateral_convs", str(2 - int(i)), places[place], leaf]
            case ["decoder", "fpn_conv_blocks", i, place, leaf]:
                parts = ["fpn_convs", str(2 - int(i)), places[place], leaf]
            case ["decoder", "fusion_block", place, leaf]:
                parts = ["fpn_bottleneck", places[place], leaf]
            case _:
                raise AssertionError(name)
        renamed[".".join(parts)] = value
    return renamed


@pytest.mark.parametrize("size", [(16, 16), (17, 25)])
def test_the_head_is_the_one_of_transformers(size: tuple[int, int]) -> None:
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet", exc_type=ImportError)
    config = pytest.importorskip("transformers").UperNetConfig(hidden_size=32, num_labels=5, pool_scales=[1, 2, 3, 6])
    model = small()
    theirs = upernet.UperNetHead(config, in_channels=[32, 64, 96, 128]).eval()
    state = {name: value for name, value in model.state_dict().items() if name.startswith(("decoder.", "classifier."))}
    for name, value in state.items():  # batch norms that do something
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    theirs.load_state_dict(by_their_names(state), strict=True)
    features, height, width = [], *size
    for channels in (32, 64, 96, 128):
        features.append(torch.randn(2, channels, height, width))
        height, width = -(-height // 2), -(-width // 2)
    model.eval()
    with torch.no_grad():
        ours = model.classifier(model.decoder(features))
        assert torch.allclose(ours, theirs(features), atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (50, 33), (64, 96), (20, 200)])
def test_any_size_in_both_modes(size: tuple[int, int]) -> None:
    model, image = small(), torch.randn(1, 3, *size)
    logits, aux_logits = model(image)  # a single image, one value in the coarsest pool
    assert logits.shape == aux_logits.shape == (1, 5, *size)
    (logits.sum() + aux_logits.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(image).shape == (1, 5, *size)


def test_heads_compute_in_float32_under_autocast() -> None:
    model = small()
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = output.dtype

        model.get_submodule(name).register_forward_hook(hook)

    for name in ("backbone.stages.0.blocks.0.mlp.fc1", "decoder.fusion_block.0", "classifier", "aux.0"):
        note(name)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 64, 64))
    assert seen.pop("backbone.stages.0.blocks.0.mlp.fc1") == torch.bfloat16
    assert set(seen.values()) == {torch.float32}


def test_images_do_not_see_each_other_in_evaluation() -> None:
    model, images = small().eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        assert torch.allclose(model(images), torch.cat([model(image[None]) for image in images]), atol=1e-5)


def test_the_decoder_has_no_layer_norms_and_the_backbone_no_classifier() -> None:
    model = small()
    assert not any(isinstance(module, nn.LayerNorm) for module in UPerNet([8, 8, 8, 8], 16).modules())
    assert not any(name.startswith(("backbone.head", "backbone.proj", "backbone.norm.")) for name in model.state_dict())


def test_three_lines_in_a_program_of_ones_own() -> None:
    import stvit_cli

    segmenter = stvit_cli.create_segmenter("stvit-nano", num_classes=3).eval()
    with torch.no_grad():
        assert segmenter(torch.zeros(1, 3, 64, 64)).argmax(1).shape == (1, 64, 64)


def test_a_model_without_four_stages() -> None:
    with pytest.raises(UserError, match="no four stages"):
        create_segmenter("isotropic-swin-20", 5)
