"""Association maps reproduce the layer's output, follow the colours of the image, and are aligned with its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import stvit_cli
from stvit_cli.analysis.associations.arrays import arrays
from stvit_cli.analysis.associations.maps import Associations, LayerMaps, associations
from stvit_cli.analysis.associations.superpixels import achievable_accuracy, boundary_recall, paint, regular_grid
from stvit_cli.analysis.associations.token_grid import TokenGrid
from stvit_cli.errors import UserError
from stvit_cli.models.super_token import SuperTokenAttention
from stvit_cli.models.weights.file import WeightsInfo

NANO = WeightsInfo("stvit-nano", image_size=64)
ODD = (75, 107)  # height and width; neither divides any stage's grid


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return stvit_cli.create_model("stvit-nano", num_classes=10).eval()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((ODD[1], ODD[0]), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def maps(model: nn.Module, image: Image.Image) -> Associations:
    return associations(model, image, NANO, keep_size=True)


def quadrants(height: int, width: int, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of four colours that meet at (y, x), and its label map."""
    labels = (np.arange(height)[:, None] >= y) * 2 + (np.arange(width) >= x)
    return np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 20]], dtype=np.uint8)[labels], labels


@torch.no_grad()
def colour_model() -> nn.Module:
    """A model whose first tokens are the colours of the pixels they are centred on."""
    model = stvit_cli.create_model("stvit-nano").eval()
    for layer in model.stem:
        layer.conv.weight.zero_()
        layer.conv.bias.zero_()
        for channel in range(3):
            layer.conv.weight[channel, channel, 1, 1] = 1.0
    block = model.stages[0].blocks[0]
    nn.init.zeros_(block.cpe.conv.weight)
    nn.init.zeros_(block.cpe.conv.bias)
    nn.init.constant_(block.norm1.weight, 4.0)  # sharper: the affinities are 16 times as large
    return model


def test_label_map_follows_the_colours_of_the_image() -> None:
    pixels, truth = quadrants(92, 118, y=37, x=53)
    # Values of 0 to 10: large enough for GELU to leave them as they are.
    info = WeightsInfo("stvit-nano", mean=(0.0,) * 3, std=(0.1,) * 3)
    layer = associations(colour_model(), Image.fromarray(pixels), info, keep_size=True).layers["stage1.block1"]
    labels = layer.label_map()
    assert layer.num_super_tokens == (6, 8)
    assert boundary_recall(labels, truth, tolerance=2) == 1.0
    assert achievable_accuracy(labels, truth) > 0.975
    grid = regular_grid(truth.shape, layer.num_super_tokens)
    assert boundary_recall(grid, truth) < 0.6
    assert achievable_accuracy(grid, truth) < achievable_accuracy(labels, truth)


def test_painting_one_super_token_per_cell_is_average_pooling() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    p, q, size = 3, 5, 8
    one_hot = torch.zeros(1, p, q, size * size, 9)
    one_hot[..., 4] = 1  # each token belongs to the super token of its own cell
    grid = TokenGrid((24, 40), stride=1, offset=0.0, input_size=(24, 40), image_hw=(24, 40))
    layer = LayerMaps("stage1.block1", grid, (size, size), (p, q), one_hot, torch.zeros(1, 15, 4), torch.zeros(1, 15, 4))
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels).permute(2, 0, 1).float(), size)
    expected = pooled.repeat_interleave(size, 1).repeat_interleave(size, 2).permute(1, 2, 0).numpy()
    assert np.abs(paint(pixels, layer.label_map()) - expected).max() <= 0.5 + 1e-4
    assert (layer.label_map() == regular_grid((24, 40), (p, q))).all()
    assert (layer.confidence() == 1).all()


def test_associations_and_attention_sum_to_one(maps: Associations) -> None:
    assert [layer.name for layer in maps.super_token_layers] == ["stage1.block1", "stage2.block1", "stage2.block2"]
    for layer in maps.super_token_layers:
        association, index = layer.association(), layer.neighbour_index()
        assert association.shape == index.shape == (*layer.grid.tokens, 9)
        np.testing.assert_allclose(association.sum(-1), 1, rtol=1e-5)
        assert set(np.unique(index)) == set(range(-1, layer.num_super_tokens[0] * layer.num_super_tokens[1]))
        together = sum(layer.association_with(number) for number in range(index.max() + 1))
        np.testing.assert_allclose(together, (association * (index >= 0)).sum(-1), rtol=1e-5)
    for layer in maps.layers.values():
        np.testing.assert_allclose(layer.attention().sum(-1), 1, rtol=1e-5)


def test_strongest_super_token_lies_inside_the_image(maps: Associations) -> None:
    for layer in maps.super_token_layers:
        labels, association, index = layer.token_labels(), layer.association(), layer.neighbour_index()
        assert labels.min() >= 0
        weights = np.stack([layer.association_with(number) for number in range(index.max() + 1)], -1)
        np.testing.assert_array_equal(np.take_along_axis(weights, labels[..., None], -1)[..., 0], weights.max(-1))
        np.testing.assert_allclose(layer.confidence(), weights.max(-1))
        assert (layer.confidence() <= association.max(-1)).all()


@pytest.mark.parametrize(
    ("model_name", "name"),
    [
        ("stvit-nano", "stage1.block1"),
        ("stvit-nano", "stage2.block2"),
        ("stvit-nano", "stage3.block1"),
        ("isotropic-mini-stvit-12", "stage2.block1"),  # tokens are (B, H, W, C), attention has a position table
        ("isotropic-mini-swin-20-global", "stage3.block2"),
    ],
)
def test_token_attention_rebuilds_the_output_of_the_layer(image: Image.Image, model_name: str, name: str) -> None:
    torch.manual_seed(1)
    model = stvit_cli.create_model(model_name)
    attn = model.get_submodule(f"stages.{int(name[5]) - 1}.blocks.{int(name[-1]) - 1}.attn")
    assert isinstance(attn, SuperTokenAttention)
    seen: list[torch.Tensor] = []
    handle = attn.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    layer = associations(model, image, NANO, keep_size=True).layers[name]
    handle.remove()
    x, y = (part if model_name == "stvit-nano" else part.permute(0, 3, 1, 2) for part in seen)
    with torch.no_grad():
        bias = attn.split_heads(torch.zeros_like(x))[2][0]
        values = attn.split_heads(x)[2][0] - bias  # (heads, H W, d)
        rows, columns = layer.grid.tokens
        for token in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3), (0, columns // 2)):
            inside = 1.0 if layer.is_global else (layer.association() * (layer.neighbour_index() >= 0)).sum(-1)[token]
            mixed = torch.einsum("ht,htd->hd", torch.from_numpy(layer.token_attention(token)).flatten(1), values)
            expected = attn.proj.weight[:, :, 0, 0] @ (mixed + inside * bias[:, 0]).flatten() + inside * attn.proj.bias
            torch.testing.assert_close(y[0, :, token[0], token[1]], expected, rtol=1e-4, atol=1e-5)


def test_label_map_has_the_size_of_the_image(model: nn.Module, image: Image.Image, maps: Associations) -> None:
    for layer in maps.super_token_layers:
        assert layer.label_map().shape == ODD
    resized = associations(model, image, NANO, image_size=50)
    assert resized.input_size == (50, 71)
    for layer in resized.super_token_layers:
        labels = layer.label_map()
        assert labels.shape == ODD
        for x, y in ((0, 0), (106, 74), (50, 33)):
            assert labels[y, x] == layer.token_labels()[layer.grid.token_at(x, y)]


def test_receptive_field_is_centred_on_the_token(model: nn.Module) -> None:
    """The input pixels on which a token of stage 1 depends are symmetric about its centre."""
    x = torch.randn(1, 3, 80, 80, requires_grad=True)
    tokens = model.stem(x)
    grid = associations(model, Image.new("RGB", (80, 80)), NANO, keep_size=True).layers["stage1.block1"].grid
    (gradient,) = torch.autograd.grad(tokens[0, :, 10, 7].sum(), x)
    for axis, token in ((2, 10), (3, 7)):
        touched = gradient.abs().sum((0, 1, 5 - axis)).nonzero()
        assert (touched.min() + touched.max()) / 2 == grid.offset + token * grid.stride


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stvit-nano", [(4, 0.0), (8, 0.0), (16, 0.0), (32, 0.0)]),
        ("isotropic-mini-stvit-12", [(4, 1.5), (8, 1.5), (16, 1.5), (32, 1.5)]),  # patches do not overlap, merging does
        ("isotropic-mini-swin-20-global", [(16, 7.5)]),  # nor do Swin's merged tokens
    ],
)
def test_strides_and_centres_follow_from_the_convolutions(name: str, expected: list[tuple[int, float]]) -> None:
    maps = associations(stvit_cli.create_model(name), Image.new("RGB", (96, 80)), NANO, keep_size=True)
    grids = {layer.split(".")[0]: maps.layers[layer].grid for layer in maps.layers}
    assert [(grid.stride, grid.offset) for grid in grids.values()] == expected
    assert all(grid.tokens == (-(-80 // grid.stride), -(-96 // grid.stride)) for grid in grids.values())


def test_model_is_unchanged_afterwards(model: nn.Module, image: Image.Image) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = associations(model, image, NANO)
    assert model.training
    model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    again = associations(model, image, NANO)
    for name, layer in maps.layers.items():
        assert torch.equal(layer.queries, again.layers[name].queries)


def test_grey_model_accepts_colour_image(image: Image.Image) -> None:
    model = stvit_cli.create_model("stvit-nano", in_chans=1)
    maps = associations(model, image, WeightsInfo("stvit-nano", in_chans=1, image_size=64, mean=(0.5,), std=(0.5,)))
    assert maps.image.shape == (*ODD, 3)
    assert len(maps.layers) == 7


def test_maps_of_a_wrapped_model_are_those_of_its_backbone(maps: Associations, model: nn.Module, image: Image.Image) -> None:
    wrapped = nn.ModuleDict({"backbone": nn.ModuleDict({"body": model}), "head": nn.Conv2d(128, 4, 1)})
    found = associations(wrapped, image, NANO, keep_size=True)
    assert list(found.layers) == list(maps.layers)
    for name, layer in found.layers.items():
        assert torch.equal(layer.keys, maps.layers[name].keys)


def test_layers_are_selected_by_name_and_by_stage(maps: Associations) -> None:
    assert list(maps.select(["stage2", "stage4.block1"]).layers) == ["stage2.block1", "stage2.block2", "stage4.block1"]
    with pytest.raises(UserError, match=r"no layer 'stage1.blok1'.*'stage1.block1'"):
        maps.select(["stage1.blok1"])


def test_too_small_image_and_model_without_super_tokens_are_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match="20 x 90"):
        associations(model, Image.new("RGB", (20, 90)), NANO, keep_size=True)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(UserError, match="stvit-nano has no super token attention"):
        associations(pooled, Image.new("RGB", (64, 64)), NANO)


def test_global_layers_have_no_association(maps: Associations) -> None:
    with pytest.raises(UserError, match="global"):
        maps.layers["stage3.block1"].association()


def test_arrays_have_the_documented_shapes_and_types(maps: Associations) -> None:
    found, left_out = arrays(maps, [(3, 4), (100, 70)])
    assert left_out == []
    rows, columns = found["stage2.block1.tokens"]
    p, q = found["stage2.block1.super_tokens"]
    expected = {
        "association": ((rows, columns, 9), np.float32),
        "neighbours": ((rows, columns, 9), np.int32),
        "label_map": (ODD, np.int32),
        "attention": ((2, p * q, p * q), np.float32),
        "point_attention": ((2, 2, rows, columns), np.float32),
        "centres": ((2,), np.float64),
    }
    for key, (shape, kind) in expected.items():
        assert found[f"stage2.block1.{key}"].shape == shape, key
        assert found[f"stage2.block1.{key}"].dtype == kind, key
    assert found["stage3.block1.attention"].shape[1] == np.prod(found["stage3.block1.super_tokens"])
    assert "stage3.block1.association" not in found
    assert found["points"].tolist() == [[3, 4], [100, 70]]
    assert tuple(found["image_hw"]) == ODD


def test_attention_too_large_to_save_is_reported(maps: Associations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stvit_cli.analysis.associations.arrays.MAX_ATTENTION_VALUES", 2000)
    found, left_out = arrays(maps, [])
    assert left_out == ["stage2.block1", "stage2.block2", "stage3.block1", "stage3.block2", "stage3.block3"]
    assert "stage3.block1.attention" not in found
    assert "stage4.block1.attention" in found


def test_attention_of_selected_rows_equals_the_full_matrix(maps: Associations) -> None:
    layer = maps.layers["stage2.block1"]
    torch.testing.assert_close(layer.attention([3, 7]), layer.attention()[:, [3, 7]])
    sharper = replace(layer, queries=layer.queries * 50)
    assert sharper.attention().max() > layer.attention().max()
