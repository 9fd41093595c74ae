"""The C++ kernels in bfloat16 against the eager form in float64, under autocast, and in a model that is cast as a whole."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stvit_cli.models import create_model, kernels, super_token
from stvit_cli.models.kernels import operators
from stvit_cli.models.layers import ConvFFN, ConvPosEnc, LayerNorm2d
from stvit_cli.models.stvit import Block
from stvit_cli.models.super_token import SuperTokenAttention

if shutil.which("c++") is None:
    pytest.skip("no C++ compiler", allow_module_level=True)
kernels.load("cpu")

ops = operators.ops
BF16, FP32 = torch.bfloat16, torch.float32
EPS = 2.0**-8  # distance from 1 to the next number in bfloat16
# Dtypes of the tokens, and of the weights.
PRECISIONS = [(FP32, FP32), (BF16, FP32), (BF16, BF16)]
Function = Callable[..., Tensor]


def randn(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(*shape).to(dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest value."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def assert_same(ours: Function, theirs: Function, inputs: Sequence[Tensor], eps: float) -> None:
    """Results and gradients are those of ``theirs`` in float64, in the dtype of the first input, or of what they belong to."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found, expected = ours(*inputs), theirs(*exact)
    assert found.dtype == inputs[0].dtype
    assert error(found, expected) < eps
    upstream = randn(*found.shape, dtype=found.dtype)
    grads = torch.autograd.grad(found, inputs, upstream)
    for x, grad, other in zip(inputs, grads, torch.autograd.grad(expected, exact, upstream.double()), strict=True):
        assert grad.dtype == x.dtype
        assert error(grad, other) < 2 * eps


def conv_pos_enc(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x + F.conv2d(x, weight, bias, padding=1, groups=len(weight))


@pytest.mark.parametrize(("dtype", "of_weights"), PRECISIONS)
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (11, 3)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_position_encoding(dtype: torch.dtype, of_weights: torch.dtype, size: tuple[int, int], channels_last: bool) -> None:
    torch.manual_seed(0)
    channels, eps = 48, EPS if dtype == BF16 else 1e-5
    x = randn(2, channels, *size, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight, bias, shift, scale = (randn(channels, *shape, dtype=of_weights) for shape in ((1, 3, 3), (), (), ()))
    assert_same(lambda *inputs: ops.conv_pos_enc(*inputs, True), conv_pos_enc, (x, weight, bias), eps)
    assert_same(
        lambda *inputs: ops.gelu_conv_pos_enc(*inputs, True),
        lambda u, shift, weight, bias: conv_pos_enc(F.gelu(u + shift[:, None, None]), weight, bias),
        (x, shift, weight, bias),
        eps,
    )

    def normalized(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = conv_pos_enc(x, weight, bias)
        return torch.cat([y, F.layer_norm(y.permute(0, 2, 3, 1), [channels], scale, shift, 1e-6).permute(0, 3, 1, 2)])

    def in_one_pass(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y, norm, *_ = ops.conv_pos_enc_layer_norm(x, weight, bias, True, scale, shift, 1e-6)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert norm.is_contiguous(memory_format=torch.channels_last)
        return torch.cat([y, norm])

    assert_same(in_one_pass, normalized, (x, weight, bias, scale, shift), 3 * eps)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("grid_size", "size"), [((8, 8), (16, 24)), ((2, 5), (7, 11)), ((4, 4), (3, 22))])
def test_sampling_and_upsampling(dtype: torch.dtype, grid_size: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    eps = 2 * EPS if dtype == BF16 else 1e-5
    x = randn(2, 48, *size, dtype=dtype)
    cells = super_token.to_cells(x.double(), grid_size)
    first = ops.aggregate(*_association(x, grid_size), x, *grid_size)
    centres = cells.mean(3).to(dtype)
    _, association, weight = ops.associate_and_aggregate(x, centres, *grid_size)
    exact = super_token.associate(cells, centres.double())
    assert association.dtype == first.dtype == dtype
    assert weight.dtype == FP32
    assert error(association.transpose(-1, -2), exact) < eps
    rounded = association.double().transpose(-1, -2)  # with Q constant, everything is linear
    assert_same(
        lambda x: ops.associate_and_aggregate(x, centres, *grid_size)[0],
        lambda x: super_token.aggregate(exact, super_token.to_cells(x, grid_size)),
        (x,),
        eps,
    )

    def upsample(super_tokens: Tensor) -> Tensor:
        return super_token.from_cells(super_token.upsample(rounded, super_tokens), grid_size, size)

    assert_same(lambda s: ops.upsample(association, s, *grid_size, *size), upsample, (centres,), eps)
    assert_same(lambda x, s: ops.upsample_add(association, s, x, *grid_size), lambda x, s: x + upsample(s), (x, centres), eps)


def _association(x: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor]:
    return (operators.sample(x, grid_size)[1],)


def test_upsampling_adds_to_tokens_in_their_dtype() -> None:
    """As x + y does: under autocast, the residual may be in float32 and the super tokens in bfloat16."""
    torch.manual_seed(0)
    super_tokens, association = operators.sample(randn(1, 16, 8, 8, dtype=BF16), (4, 4))
    x = randn(1, 16, 8, 8)
    y = ops.upsample_add(association, super_tokens.requires_grad_(), x, 4, 4)
    assert y.dtype == FP32
    assert error(y, x + ops.upsample(association, super_tokens, 4, 4, 8, 8)) < EPS
    assert torch.autograd.grad(y.sum(), super_tokens)[0].dtype == BF16


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("heads", "width", "size"), [(1, 64, (7, 7)), (3, 16, (5, 11)), (2, 48, (1, 1)), (1, 32, (14, 15))])
def test_self_attention(dtype: torch.dtype, heads: int, width: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = SuperTokenAttention(heads * width, heads)
    attention.proj = attention.qkv = nn.Identity()  # type: ignore[assignment]
    qkv = randn(2, 3 * heads * width, *size, dtype=dtype)
    eps = 2 * EPS if dtype == BF16 else 1e-5
    assert_same(lambda qkv: ops.self_attention(qkv, heads)[0], attention.attend, (qkv,), eps)
    assert ops.self_attention(qkv, heads)[1].dtype == FP32


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    """To the nearest, of two the even one; infinite and NaN remain so; large numbers become infinite."""
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (16 * 64,), dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(16 * 4, dtype=torch.int32) << 15) + 0x3F800000
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 3.4e38, -3.4e38, 1e-30] * 16)
    # A NaN whose upper half alone would be infinite.
    values = torch.cat([bits.view(FP32), ties.view(FP32), special, torch.full((16,), 0x7F800001).int().view(FP32)])
    values = values.where((values.abs() > 1.2e-38) | (values == 0) | values.isnan(), 1.0)  # instructions flush subnormal numbers
    u = torch.zeros(1, len(values), 1, 1, dtype=BF16)
    found = ops.conv_pos_enc(u, torch.zeros(len(values), 1, 3, 3), values, True).flatten()
    torch.testing.assert_close(found, values.to(BF16), rtol=0, atol=0, equal_nan=True)


def _grads(model: nn.Module, images: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(images).float().square().sum(), list(model.parameters())))


def test_a_model_under_autocast_keeps_its_tokens_in_bfloat16_and_its_gradients_in_float32() -> None:
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=7).eval()
    images = torch.randn(2, 3, 70, 64)
    exact, exact_grads = model(images), _grads(model, images)
    dtypes: set[torch.dtype] = set()
    for module in model.modules():
        if isinstance(module, (Block, ConvPosEnc, ConvFFN, SuperTokenAttention, LayerNorm2d)):
            module.register_forward_hook(lambda module, inputs, output: dtypes.update((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", BF16):
        eager, eager_grads = model(images), _grads(model, images)
        assert kernels.use_kernels(model, "cpu")
        called = _operators_of(lambda: model(images))
        found, grads = model(images), _grads(model, images)
    assert dtypes == {BF16}
    assert called >= {"associate_and_aggregate", "self_attention", "gelu_conv_pos_enc"}
    assert found.dtype == eager.dtype
    assert error(found, exact) < 1.5 * error(eager, exact) + EPS
    norms = [torch.stack([(a - b).norm() for a, b in zip(g, exact_grads, strict=True)]).norm() for g in (grads, eager_grads)]
    assert norms[0] < 1.5 * norms[1]
    assert all(grad.dtype == FP32 for grad in grads)


def test_a_model_that_is_cast_as_a_whole() -> None:
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=7).eval()
    images = torch.randn(2, 3, 64, 70)
    exact = model(images)
    cast = copy.deepcopy(model).to(BF16)
    eager = cast(images.to(BF16))
    assert kernels.use_kernels(cast, "cpu")
    assert _operators_of(lambda: cast(images.to(BF16))) >= {"associate_and_aggregate", "self_attention", "gelu_conv_pos_enc"}
    found = cast(images.to(BF16))
    assert found.dtype == BF16
    assert error(found, exact) < 1.5 * error(eager, exact) + EPS
    assert all(grad.dtype == BF16 and grad.isfinite().all() for grad in _grads(cast, images.to(BF16)))


class _Recorder(TorchDispatchMode):
    """Records the names of the custom operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "stvit":
            self.names.add(func._schema.name.removeprefix("stvit::"))
        return func(*args, **(kwargs or {}))


def _operators_of(step: Callable[[], object]) -> set[str]:
    with _Recorder() as recorder:
        step()
    return recorder.names


@pytest.mark.parametrize("autocast", [False, True])
def test_an_empty_batch_runs_in_the_eager_form(autocast: bool) -> None:
    model = create_model("stvit-nano", num_classes=7).eval()
    kernels.use_kernels(model, "cpu")
    with torch.autocast("cpu", BF16, enabled=autocast):
        assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 7)


@pytest.mark.parametrize("residual", [True, False])
def test_results_have_the_dtype_of_the_eager_form_under_autocast(residual: bool) -> None:
    x = torch.randn(1, 16, 8, 8)
    layers = [ConvPosEnc(16), ConvFFN(16), SuperTokenAttention(16, 1, 4), SuperTokenAttention(16, 1)]
    for layer in layers:
        if isinstance(layer, ConvPosEnc):
            layer.residual = residual
    with torch.autocast("cpu", BF16):
        for dtype in (FP32, BF16):
            expected = [layer(x.to(dtype)) for layer in layers]
            for layer, y in zip(layers, expected, strict=True):
                kernels.use_kernels(layer, "cpu")
                found = layer(x.to(dtype))
                assert found.dtype == y.dtype
                assert error(found, y) < 3 * EPS
                kernels.use_kernels(layer, "cpu", enable=False)


def test_gradients_have_the_strides_of_their_weights() -> None:
    """Otherwise DDP warns, and copies each of them."""
    model = create_model("stvit-nano", num_classes=2).to(memory_format=torch.channels_last)
    kernels.use_kernels(model, "cpu")
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    found = {name: weight.grad.stride() for name, weight in model.named_parameters() if weight.grad is not None}
    assert found == {name: weight.stride() for name, weight in model.named_parameters()}
