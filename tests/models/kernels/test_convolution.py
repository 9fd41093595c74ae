"""Convolutions in training: the gradients of their weights by the C++ kernel against PyTorch's in float64."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stvit_cli.models import create_model, kernels
from stvit_cli.models.accelerated import Conv2d
from stvit_cli.models.kernels import convolution

if shutil.which("c++") is None:
    pytest.skip("no C++ compiler", allow_module_level=True)
kernels.load("cpu")

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("threads", [1, 3, 16])
@pytest.mark.parametrize(
    ("images", "channels", "out_channels", "size", "kernel", "stride"),
    [
        (2, 16, 32, (7, 5), 1, 1),
        (3, 80, 208, (13, 17), 1, 1),  # several blocks of positions and of channels, the last ones partly filled
        (1, 48, 16, (9, 8), 3, 2),
        (1, 32, 112, (40, 31), 3, 1),
        (1, 16, 16, (1, 1), 3, 1),
        (1, 16, 1040, (3, 2), 1, 1),  # channels that 16 threads do not divide evenly
    ],
)
def test_gradients_of_weight_and_bias(
    dtype: torch.dtype,
    threads: int,
    images: int,
    channels: int,
    out_channels: int,
    size: tuple[int, int],
    kernel: int,
    stride: int,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(images, channels, *size).to(dtype)
    y = F.conv2d(x.float(), torch.zeros(out_channels, channels, kernel, kernel), None, stride, kernel // 2)
    grad = torch.randn(y.shape).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = torch.ops.stvit.conv2d_weight_backward(grad, x, kernel, stride, kernel // 2, True)
    finally:
        torch.set_num_threads(before)
    alone, nothing = torch.ops.stvit.conv2d_weight_backward(grad, x, kernel, stride, kernel // 2, False)
    assert nothing.numel() == 0
    torch.testing.assert_close(alone, found[0], rtol=1e-5, atol=1e-4)
    expected = torch.ops.aten.convolution_backward(
        grad.double(), x.double(), torch.zeros(out_channels, channels, kernel, kernel).double(), [out_channels],
        [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], 1, [False, True, True],
    )[1:]  # fmt: skip
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other.float(), rtol=1e-5, atol=1e-6 * other.abs().max().item() + 1e-5)


def test_the_operator_is_what_torch_expects_of_operators() -> None:
    x, grad = torch.randn(2, 16, 5, 7), torch.randn(2, 32, 5, 7)
    torch.library.opcheck(torch.ops.stvit.conv2d_weight_backward.default, (grad, x, 3, 1, 1, False))


def _convolution(in_channels: int, bias: bool = True) -> Conv2d:
    torch.manual_seed(0)
    conv = Conv2d(in_channels, 32, 3, 2, 1, bias=bias)
    conv.kernels = kernels.KERNELS
    return conv


@pytest.mark.parametrize("in_channels", [3, 16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_has_the_gradients_of_pytorchs_under_autocast_without_rounding_those_of_the_weights(
    in_channels: int, bias: bool
) -> None:
    conv = _convolution(in_channels, bias)
    x = torch.randn(2, in_channels, 9, 8, requires_grad=True)
    inputs = [x, *conv.parameters()]
    upstream = torch.randn(2, 32, 5, 4).bfloat16()
    for dtype in (FP32, BF16):
        with torch.autocast("cpu", BF16, enabled=dtype == BF16):
            y = conv(x)
        assert y.dtype == dtype
        found = torch.autograd.grad(y, inputs, upstream.to(dtype))
        rounded = [tensor.detach().to(dtype).double().requires_grad_() for tensor in inputs]
        other = F.conv2d(rounded[0], rounded[1], rounded[2] if bias else None, 2, 1)
        expected = torch.autograd.grad(other, rounded, upstream.double())
        assert [grad.dtype for grad in found] == [FP32] * len(inputs)
        torch.testing.assert_close(y.double(), other, rtol=0.01 if dtype == BF16 else 1e-5, atol=0.01 if dtype == BF16 else 1e-5)
        tolerance = 0.01 if dtype == BF16 else 1e-5
        torch.testing.assert_close(found[0].double(), expected[0], rtol=tolerance, atol=tolerance)
        if in_channels % 16 == 0:
            tolerance = 1e-5
        for mine, exact in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine.double(), exact, rtol=tolerance, atol=10 * tolerance)


def test_what_needs_no_gradient_of_a_weight_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "conv2d", lambda *_: pytest.fail("the training form ran"))
    conv = _convolution(16)
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    with torch.no_grad():
        conv(x)
    conv.weight.requires_grad_(False)
    conv(x).sum().backward()
    assert x.grad is not None


def _losses(precision: torch.dtype, steps: int = 20) -> list[float]:
    torch.manual_seed(0)
    model = create_model("stvit-nano", num_classes=4).to(memory_format=torch.channels_last).train()
    assert kernels.use_kernels(model, "cpu")
    assert any(isinstance(module, Conv2d) and module.kernels is not None for module in model.modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", BF16, enabled=precision == BF16):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_in_bfloat16_follows_float32() -> None:
    """Twenty steps: the loss falls as far, and on its way differs by a few roundings of the logits."""
    exact, found = _losses(FP32), _losses(BF16)
    assert exact[-1] < exact[0] / 3
    assert max(abs(a - b) for a, b in zip(exact, found, strict=True)) < 0.05
