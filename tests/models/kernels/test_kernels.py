"""The custom kernels against the eager form: C++ here, and Triton by its interpreter.

`test_triton` runs this file again in a process started with TRITON_INTERPRET=1, where Triton computes the same operators;
by hand: TRITON_INTERPRET=1 pytest tests/models/kernels/test_kernels.py
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stvit_cli.models import create_model, kernels, super_token
from stvit_cli.models.accelerated import Accelerated
from stvit_cli.models.kernels import operators
from stvit_cli.models.layers import ConvFFN, ConvPosEnc
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.inference import for_inference
from stvit_cli.models.super_token import SuperTokenAttention

ops = operators.ops
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    from stvit_cli.models.kernels.triton import library as gpu  # noqa: F401

    kernels._loaded.add("cpu")
elif shutil.which("c++") is None:
    pytest.skip("no C++ compiler", allow_module_level=True)
else:
    kernels.load("cpu")  # where there is a compiler, sources that do not compile fail the tests

on_a_cpu_only = pytest.mark.skipif(INTERPRETED, reason="not a kernel of Triton's")
SIZES = [(13, 9), (7, 7), (3, 22), (1, 1), (16, 24)]
WIDTHS = [16, 80]
CELLS = [(32, (4, 4), (19, 30)), (64, (8, 8), (16, 24)), (48, (2, 5), (7, 11)), (320, (2, 2), (6, 4)), (16, (16, 16), (17, 5))]
if INTERPRETED:  # of any width; and a program at a time takes long
    CELLS = [(20, (2, 5), (7, 11)), (3, (16, 16), (17, 5)), (64, (8, 8), (16, 17))]
    SIZES, WIDTHS = [(16, 5), (1, 1)], [70]


def tokens(*shape: int, memory_format: torch.memory_format = torch.channels_last) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=memory_format).requires_grad_()


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor, atol: float = 2e-6) -> None:
    """Results and gradients of two functions of the same tensors; the first's lie channels-last."""
    found, expected = ours(*inputs), theirs(*inputs)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)
    upstream = torch.randn(expected.shape)
    gradients = zip(torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True)
    for mine, other in gradients:
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=atol * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("num_iters", [1, 2])
@pytest.mark.parametrize(("channels", "grid_size", "size"), CELLS)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_sampling_and_upsampling(
    channels: int, grid_size: tuple[int, int], size: tuple[int, int], num_iters: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = tokens(2, channels, *size, memory_format=memory_format)

    def plain(x: Tensor) -> Tensor:
        super_tokens, association = super_token.sample(super_token.to_cells(x, grid_size), num_iters)
        return super_token.from_cells(super_token.upsample(association, super_tokens), grid_size, size)

    def ours(x: Tensor) -> Tensor:
        super_tokens, association = operators.sample(x, grid_size, num_iters)
        assert super_tokens.requires_grad
        assert not association.requires_grad
        torch.testing.assert_close(association.sum(3), torch.ones(association.sum(3).shape))
        return ops.upsample(association, super_tokens, *grid_size, *size)

    assert_same(ours, plain, x)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", WIDTHS)
def test_position_encoding_and_gelu_before_it(channels: int, size: tuple[int, int], residual: bool) -> None:
    torch.manual_seed(0)
    x = tokens(3, channels, *size)
    shift, bias = torch.randn(channels, requires_grad=True), torch.randn(channels, requires_grad=True)
    weight = torch.randn(channels, 1, 3, 3, requires_grad=True)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(x, weight, bias, padding=1, groups=channels)
        return x + y if residual else y

    assert_same(lambda *inputs: ops.conv_pos_enc(*inputs, residual), plain, x, weight, bias, atol=1e-5)
    assert_same(
        lambda *inputs: ops.gelu_conv_pos_enc(*inputs, residual),
        lambda u, shift, weight, bias: plain(F.gelu(u + shift[:, None, None]), weight, bias),
        *(x, shift, weight, bias),
        atol=1e-5,
    )


def test_gelu_everywhere() -> None:
    """Exact to float32's rounding, also where it is nearly nothing, and as finite as it is."""
    u = torch.cat([torch.linspace(-12, 12, 16 * 60), torch.tensor([0.0, -100.0, 100.0, 3e38] * 16)]).reshape(1, 16, -1, 8)
    nothing, one = torch.zeros(16), torch.zeros(16, 1, 3, 3)
    found = ops.gelu_conv_pos_enc(u, nothing, one, nothing, True)
    expected = u.double() * torch.special.erfc(-u.double() / 2**0.5) / 2  # without cancellation below zero
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 if INTERPRETED else 1e-35)
    assert ops.gelu_conv_pos_enc(u * torch.nan, nothing, one, nothing, True).isnan().all()


@on_a_cpu_only
@pytest.mark.parametrize(("heads", "width", "size"), [(1, 64, (7, 7)), (3, 16, (5, 11)), (2, 48, (1, 1)), (5, 32, (14, 15))])
def test_self_attention(heads: int, width: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attention = SuperTokenAttention(heads * width, heads)
    attention.proj = nn.Identity()  # type: ignore[assignment]
    attention.qkv = nn.Identity()  # type: ignore[assignment]
    assert_same(lambda qkv: ops.self_attention(qkv, heads)[0], attention.attend, tokens(2, 3 * heads * width, *size))


@on_a_cpu_only
def test_self_attention_with_large_logits() -> None:
    qkv = tokens(1, 96, 6, 6) * 40
    q, k, v = (part.transpose(1, 2) for part in qkv.double().permute(0, 2, 3, 1).reshape(1, 36, 2, 3, 16).unbind(3))
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 6, 6, 32).permute(0, 3, 1, 2)
    torch.testing.assert_close(ops.self_attention(qkv, 2)[0].double(), expected, rtol=1e-4, atol=1e-3)


@on_a_cpu_only
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_however_the_work_is_divided(threads: int) -> None:
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=5)
    images = torch.randn(1, 3, 160, 96)
    expected = [model(images), *torch.autograd.grad(model(images).sum(), list(model.parameters()))]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert kernels.use_kernels(model, "cpu")
        found = [model(images), *torch.autograd.grad(model(images).sum(), list(model.parameters()))]
        again = torch.autograd.grad(model(images).sum(), list(model.parameters()))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(1.0, theirs.abs().max().item()))
    assert all(torch.equal(one, other) for one, other in zip(found[1:], again, strict=True))  # the same order of sums each time


@on_a_cpu_only
@pytest.mark.parametrize("name", ["stvit-s", "stvit-b", "stvit-l", "stvit-nano"])
def test_a_model_for_inference_is_the_same_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "are_faster", lambda device_type: True)
    torch.manual_seed(0)
    model = create_model(name, num_classes=7).eval()
    fast = for_inference(model, torch.device("cpu"))
    kinds = {type(module).__name__ for module in fast.modules()}
    assert "PackedConv" in kinds
    assert all(part.kernels for part in fast.modules() if isinstance(part, (ConvFFN, ConvPosEnc)))
    assert not any(part.kernels for part in model.modules() if isinstance(part, ConvFFN))
    with torch.inference_mode():
        for size in ((64, 64), (97, 130)):
            images = torch.randn(2, 3, *size)
            expected = model(images)
            assert (fast(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@on_a_cpu_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_for_inference_runs_under_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "are_faster", lambda device_type: True)
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        with torch.autocast("cpu", dtype):
            fast = for_inference(model, torch.device("cpu"))
            found = fast(images)
        assert found.dtype == dtype
        assert (found - expected).abs().max() < 2e-2 * expected.abs().max()
        assert (fast(images) - expected).abs().max() < 1e-5 * expected.abs().max()  # and without it as before


def test_they_serve_only_what_they_can() -> None:
    x = torch.randn(1, 32, 4, 4)
    assert kernels.supports(x)
    assert not kernels.supports(x.to("meta"))
    assert not kernels.supports(x[:0])
    if not INTERPRETED:
        assert not kernels.supports(x[:, :20])
        assert not kernels.supports(x.double())
        assert not kernels.supports(x, 8)
        with torch.autocast("cpu", torch.float16):
            assert not kernels.supports(x)
        for wrong in (x[:, :20], x.double(), x[:0], x[0]):  # whoever calls the operators directly
            with pytest.raises(RuntimeError, match=r"expected tokens .B, C, H, W. in float32"):
                ops.conv_pos_enc(wrong, torch.randn(32, 1, 3, 3), torch.randn(32), True)
        odd = ConvFFN(16, ratio=2.5)  # 40 channels between its products
        x16 = torch.randn(1, 16, 5, 5)
        expected = odd(x16)
        kernels.use_kernels(odd, "cpu")
        assert torch.equal(odd(x16), expected)
    parts = nn.Sequential(ConvPosEnc(20), ConvFFN(20), SuperTokenAttention(20, 2, 4)).double()
    x = torch.randn(1, 20, 9, 9, dtype=torch.float64)
    expected = parts(x)
    kernels.use_kernels(parts, "cpu", not INTERPRETED)
    assert torch.equal(parts(x), expected)


@on_a_cpu_only
def test_the_fused_copy_keeps_its_kernels_and_is_exported_without() -> None:
    model = create_model("stvit-nano").eval()
    kernels.use_kernels(model, "cpu")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(fuse(model)(images), expected, rtol=1e-5, atol=1e-5)
        exported = torch.export.export(fuse(model), (images,))
    assert not any("stvit" in str(node.target) for node in exported.graph.nodes)


def test_the_operators_are_what_torch_expects_of_operators() -> None:
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    x, weight, bias = tokens(2, 32, 6, 7), torch.randn(32, 1, 3, 3), torch.randn(32)
    super_tokens, association = operators.sample(x.detach(), (2, 3))
    calls = [
        (ops.associate_and_aggregate, (x, super_tokens, 2, 3)),
        (ops.upsample, (association, super_tokens.requires_grad_(), 2, 3, 6, 7)),
        (ops.aggregate, (association, x.detach(), 2, 3)),
        (ops.conv_pos_enc, (x, weight, bias, True)),
        (ops.conv_pos_enc_backward, (x.detach(), x.detach(), weight, True)),
        (ops.gelu_conv_pos_enc, (x, bias, weight, bias, True)),
        (ops.gelu_conv_pos_enc_backward, (x.detach(), x.detach(), bias, weight, True)),
    ]
    if not INTERPRETED:
        qkv = tokens(2, 96, 3, 4)
        y, logs = ops.self_attention(qkv.detach(), 2)
        norm = (torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True))
        calls += [(ops.conv_pos_enc_layer_norm, (x, weight, bias, True, *norm, 1e-6))]
        calls += [(ops.upsample_add, (association, super_tokens, x, 2, 3))]
        calls += [(ops.self_attention, (qkv, 2)), (ops.self_attention_backward, (y, qkv.detach(), y, logs, 2))]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


def test_they_are_part_of_a_compiled_graph() -> None:
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        names.extend(str(node.target).removesuffix(".default") for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch.manual_seed(0)
    attention, x = SuperTokenAttention(16, 1, 4), torch.randn(1, 16, 8, 10, requires_grad=True)
    parts = nn.Sequential(ConvPosEnc(16), attention, ConvFFN(16))
    expected = [parts(x), *torch.autograd.grad(parts(x).square().sum(), [x, *parts.parameters()])]
    for part in parts.modules():
        if isinstance(part, Accelerated) and not (INTERPRETED and part is attention):  # Triton has no self-attention
            part.kernels = kernels.KERNELS
    compiled = torch.compile(parts, backend=backend, fullgraph=True)
    y = compiled(x)
    assert {"stvit.conv_pos_enc", "stvit.associate_and_aggregate", "stvit.gelu_conv_pos_enc"} <= set(names)
    found = [y, *torch.autograd.grad(y.square().sum(), [x, *parts.parameters()])]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_exported_graph_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler of PyTorch 2.11 takes `torch.compiler.is_exporting` for true in every graph."""
    x = torch.randn(1, 16, 8, 10)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert kernels.supports(x)
    assert super_token._pad(x, (2, 2)) is x
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", True)
    assert not kernels.supports(x)
    assert super_token._pad(x, (2, 2)) is not x  # an exported graph holds for every size


@pytest.mark.skipif(not INTERPRETED, reason="C++ is for float32 and bfloat16: test_precision")
def test_half_precision_keeps_the_softmax_and_the_normaliser_in_float32() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 32, 8, 12)
    super_tokens, association = super_token.sample(super_token.to_cells(x, (4, 4)))
    expected = super_token.from_cells(super_token.upsample(association, super_tokens), (4, 4), (8, 12))
    with torch.autocast("cpu", torch.float16):  # the interpreter multiplies the bits of bfloat16 as whole numbers
        ours, shares = operators.sample(x, (4, 4))
    assert ours.dtype == shares.dtype == torch.float16
    torch.testing.assert_close(ours.float(), super_tokens, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(ops.upsample(shares, ours, 4, 4, 8, 12).float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.skipif(not INTERPRETED, reason="C++ is for float32 and bfloat16: test_precision")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    u, weight, bias = torch.randn(1, 16, 9, 10).to(dtype), torch.randn(16, 1, 3, 3), torch.randn(16)
    h = F.gelu(u.float() + bias[:, None, None])
    expected = h + F.conv2d(h, weight, bias, padding=1, groups=16)
    y = ops.gelu_conv_pos_enc(u, bias, weight, bias, True)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-2)
    of_u, of_shift, of_weight, _ = ops.gelu_conv_pos_enc_backward(y, u, bias, weight, True)
    assert of_u.dtype == dtype
    assert of_shift.dtype == of_weight.dtype == torch.float32
