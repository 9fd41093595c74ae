"""The backbone: the golden features, Table I's parameter counts, any size, any precision, every way to run it."""

from pathlib import Path

import numpy as np
import pytest
import timm.layers
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor

from stvit_cli import create_model, list_models
from stvit_cli.errors import UserError
from stvit_cli.models import layers
from stvit_cli.models.stvit import STViT, Variant
from stvit_cli.models.weights.file import load_weights

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = Variant((16, 32, 48, 64), (1, 2, 2, 1), (1, 2, 3, 4), layer_scale=1e-6, proj_dim=96)
MINIMAL = Variant((8, 8, 16, 16), (1, 1, 1, 1), (1, 2, 2, 2), layer_scale=1.0, grid_sizes=(4, 2, 1, 1), proj_dim=16)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("case", range(3))
def test_golden(case: int) -> None:
    model = STViT(TINY, num_classes=10).eval()
    load_weights(model, GOLDEN / "published_layout_tiny.pth")
    arrays = np.load(GOLDEN / "published_layout_tiny.npz")
    image = torch.from_numpy(arrays[f"case{case}.image"])
    with torch.no_grad():
        logits = model(image)
        features = model.forward_intermediates(image, intermediates_only=True)
    assert relative_error(logits, torch.from_numpy(arrays[f"case{case}.logits"])) < 1e-5
    for i, feature in enumerate(features):
        assert relative_error(feature, torch.from_numpy(arrays[f"case{case}.stage{i}"])) < 1e-5, f"stage {i}"


@pytest.mark.parametrize(("name", "count"), [("stvit-s", 25_495_624), ("stvit-b", 51_691_288), ("stvit-l", 94_971_096)])
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
        assert model(torch.empty(1, 3, 64, 64)).shape == (1, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (70, 101), (224, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_any_size(size: tuple[int, int], dtype: torch.dtype, train: bool) -> None:
    model = STViT(MINIMAL, num_classes=5, drop_path_rate=0.2).to(dtype).train(train)
    y = model(torch.randn(1, 3, *size, dtype=dtype))
    assert y.shape == (1, 5)
    assert y.dtype == dtype
    assert y.isfinite().all()
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    steps = model.forward_intermediates(torch.randn(1, 3, *size, dtype=dtype), intermediates_only=True)
    assert [tuple(f.shape[2:]) for f in steps] == [(-(-size[0] // r), -(-size[1] // r)) for r in (4, 8, 16, 32)]


def test_bf16_autocast() -> None:
    model = STViT(MINIMAL, num_classes=5)
    image = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(image).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_batch_of_two_is_two_batches_of_one() -> None:
    model = create_model("stvit-nano", num_classes=10).eval()
    images = torch.randn(2, 3, 61, 50)
    with torch.no_grad():
        torch.testing.assert_close(model(images), torch.cat([model(images[:1]), model(images[1:])]))


def test_memory_layout_of_the_input_does_not_matter() -> None:
    model = create_model("stvit-nano").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images.contiguous(memory_format=torch.channels_last)))


def test_compiled_blocks_give_the_same() -> None:
    model = STViT(MINIMAL, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        model.compile_blocks()
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


def test_exported_graph_holds_for_other_sizes() -> None:
    model = STViT(MINIMAL, num_classes=5).eval()
    free = torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.randn(2, 3, 96, 80),), dynamic_shapes=({0: free, 2: free, 3: free},))
    for shape in [(1, 3, 64, 64), (3, 3, 75, 133)]:
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), model(images))


def test_checkpointing_changes_no_gradient() -> None:
    model = STViT(MINIMAL, num_classes=5)
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for without, with_checkpointing in zip(*gradients, strict=True):
        torch.testing.assert_close(with_checkpointing, without)


def test_head_and_intermediates() -> None:
    model = STViT(MINIMAL, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(images)
        assert features.shape == (2, model.num_features, 2, 2)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(features), model(images))
        last, taken = model.forward_intermediates(images, indices=[0, 3])
        torch.testing.assert_close(last, taken[1])
    model.reset_classifier(7)
    assert model(images).shape == (2, 7)
    assert model.num_classes == 7
    model.reset_classifier(0)
    assert model(images).shape == (2, model.head_hidden_size)


def test_layers_for_rates_run_from_the_stem_to_the_head() -> None:
    model = STViT(TINY, num_classes=5)
    scale = {}
    for group in param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5):
        for parameter in group["params"]:
            scale[id(parameter)] = group["lr_scale"]
    by_name = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    order = ["stem.0.conv.weight", "stages.0.blocks.0.attn.qkv.weight", "stages.1.blocks.1.attn.qkv.weight", "proj.weight"]
    scales = [by_name[name] for name in order]
    assert scales == sorted(scales)
    assert len(set(scales)) == len(scales)
    assert by_name["head.weight"] == 1.0


def test_drop_path_grows_over_all_blocks() -> None:
    model = create_model("stvit-s", drop_path_rate=0.1)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 20))


def test_unknown_model_names_the_nearest() -> None:
    assert "stvit-nano" in list_models()
    with pytest.raises(UserError, match=r"no model 'stvit-nanp'. Did you mean 'stvit-nano'?"):
        create_model("stvit-nanp")


def test_layers_equal_timms() -> None:
    images = torch.randn(2, 8, 5, 6)
    for ours, theirs in (
        (layers.LayerNorm2d(8, eps=1e-6), timm.layers.LayerNorm2d(8)),
        (layers.LayerScale2d(8, 0.1), timm.layers.LayerScale2d(8, 0.1)),
    ):
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter)
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(images), theirs(images))
    drawn = []
    for draw in (layers.trunc_normal_, timm.layers.trunc_normal_):
        torch.manual_seed(0)
        drawn += [draw(torch.empty(3, 50), std=std) for std in (0.02, 1.5)]
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
