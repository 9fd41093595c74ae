"""The rows of Table II: their size, Swin against torchvision's own, the position table against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import swin_t

from stvit_cli.errors import UserError
from stvit_cli.models import create_model, list_models
from stvit_cli.models.isotropic import TableSuperTokenAttention, position_bias
from stvit_cli.models.isotropic_rows import FULL, MINI, ROWS, Variant
from stvit_cli.models.super_token import SuperTokenAttention

# Parameters in millions that reproduce the rounded figures of the supplement.
MILLIONS = {"swin-12": 28.29, "stvit-12": 30.26, "swin-20": 23.10, "swin-20-global": 23.15, "stvit-20": 24.17}


def count_by_hand(v: Variant) -> int:
    """Add up what the definitions ask for, layer by layer."""
    width, places = v.embed_dims, 224 // 4
    total = 3 * 4 * 4 * width[0] + width[0] + 2 * width[0]
    for stage, (dim, depth) in enumerate(zip(v.embed_dims, v.depths, strict=True)):
        if stage:
            places //= 2
            before = width[stage - 1]
            total += 8 * before + 4 * before * dim if v.attention == "swin" else 9 * before * dim + 3 * dim
        attended = v.window_size if v.attention == "swin" else places // v.grid_sizes[stage]
        if stage == v.global_stage:
            attended = places
        table = (2 * attended - 1) ** 2 * v.num_heads[stage] if v.rpe else 0
        total += depth * (table + 4 * dim + (4 * dim**2 + 4 * dim) + (8 * dim**2 + 5 * dim))
    return total + 2 * width[-1] + 1000 * width[-1] + 1000


@pytest.mark.parametrize("row", ROWS)
def test_parameters(row: str) -> None:
    with torch.device("meta"):
        model = create_model(FULL + row)
    count = sum(p.numel() for p in model.parameters())
    assert count == count_by_hand(ROWS[row])
    assert row not in MILLIONS or round(count / 1e6, 2) == MILLIONS[row]


@pytest.mark.parametrize("size", [(64, 64), (50, 99)])
@pytest.mark.parametrize("row", ROWS)
def test_forward_and_backward(row: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = create_model(MINI + row, num_classes=5, in_chans=1, drop_path_rate=0.1)
    logits = model(torch.randn(2, 1, *size))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert model.get_submodule("stages.0.blocks.0").attn.qkv.weight.grad.abs().sum() > 0


def torchvision_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename ours to torchvision's, whose Sequential holds patch embedding, stage, merging, stage, ... in turn."""
    renamed = {}
    for name, tensor in state_dict.items():
        name = name.replace("patch_embed.", "features.0.0.").replace("patch_norm.", "features.0.2.")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.downsample.", f"features.{2 * stage}.")
            name = name.replace(f"stages.{stage}.blocks.", f"features.{2 * stage + 1}.")
        renamed[name] = tensor
    return renamed


def test_first_row_is_swin_t() -> None:
    torch.manual_seed(0)
    ours, theirs = create_model("isotropic-swin-12", num_classes=10).eval(), swin_t(num_classes=10).eval()
    theirs.load_state_dict(torchvision_names(ours.state_dict()))
    x = torch.randn(1, 3, 120, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_position_bias_is_the_table_at_the_offset() -> None:
    p, q = 3, 4
    table = torch.randn(2, 2 * p - 1, 2 * q - 1)
    bias = position_bias(table, p, q)
    for a in range(p * q):
        for b in range(p * q):
            down, across = a // q - b // q, a % q - b % q
            assert torch.equal(bias[:, a, b], table[:, down + p - 1, across + q - 1])


@pytest.mark.parametrize("size", [(7, 7), (4, 9), (1, 1), (1, 2)])
def test_resampled_position_bias_keeps_its_middle(size: tuple[int, int]) -> None:
    """Offset 0 stays offset 0, and a table that only falls with distance keeps that order."""
    distance = torch.arange(-6, 7).abs()
    table = -(distance[:, None] + distance[None]).float()[None]
    bias = position_bias(table, *size)[0]
    assert bias.shape == (size[0] * size[1],) * 2
    assert (bias.diagonal().abs() < 0.5).all()
    assert (bias <= bias.diagonal()[:, None] + 1e-6).all()


def test_no_table_is_plain_super_token_attention() -> None:
    torch.manual_seed(0)
    plain, without = SuperTokenAttention(8, 2, 2), TableSuperTokenAttention(8, 2, 2, None)
    zero = TableSuperTokenAttention(8, 2, 2, 3)
    nn.init.zeros_(zero.relative_position_bias_table)
    x = torch.randn(1, 8, 6, 7)
    for module in (without, zero):
        module.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(module(x.permute(0, 2, 3, 1)), plain(x).permute(0, 2, 3, 1))
    zero.relative_position_bias_table.data.normal_()
    assert not torch.allclose(zero(x.permute(0, 2, 3, 1)), plain(x).permute(0, 2, 3, 1))


def test_only_the_table_and_the_third_stage_differ() -> None:
    """Rows 3, 4 and 6 are one Swin but for the position tables and the third stage; rows 5 and 7 one STViT but for the tables."""
    names = {row: set(create_model(MINI + row, num_classes=2).state_dict()) for row in ROWS}
    assert all(".relative_position_" in name for name in names["swin-20"] ^ names["swin-20-norpe"])
    assert all(".relative_position_" in name for name in names["stvit-20"] ^ names["stvit-20-norpe"])
    assert all(name.startswith("stages.2.") for name in names["swin-20"] ^ names["swin-20-global"])


def test_weights_fit_every_grid() -> None:
    model, other = (create_model("isotropic-mini-stvit-20", num_classes=2, grid_sizes=grid) for grid in (None, (4, 2, 1, 1)))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    assert other(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = create_model("isotropic-mini-stvit-12", num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_timm_methods() -> None:
    model = create_model("isotropic-mini-swin-20", num_classes=3)
    assert len(model.no_weight_decay()) == 20
    assert model.no_weight_decay() <= {name for name, _ in model.named_parameters()}
    features = model.forward_features(torch.zeros(2, 3, 64, 64))
    assert features.shape == (2, 128, 2, 2)
    assert torch.equal(model.forward_head(features), model.get_classifier()(model.forward_head(features, pre_logits=True)))
    model.reset_classifier(7)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    model.reset_classifier(0)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 128)
    with pytest.raises(ValueError, match="max"):
        model.reset_classifier(7, "max")


def test_names() -> None:
    assert {name for name in list_models() if name.startswith("isotropic-")} == {f + row for f in (FULL, MINI) for row in ROWS}
    with pytest.raises(UserError, match="isotropic-stvit-20"):
        create_model("isotropic-stvit-2")
    with pytest.raises(UserError, match="no super tokens"):
        create_model("isotropic-swin-20", grid_sizes=(4, 2, 1, 1))
