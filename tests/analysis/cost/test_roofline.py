"""Bytes and FLOPs of single operators, computed by hand, and of models, by fvcore and PyTorch's counter."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stvit_cli.analysis.cost.flops import count_flops
from stvit_cli.analysis.cost.gpu_functions import GpuFunctions, GpuKernels
from stvit_cli.analysis.cost.operator_trace import Operator, OperatorTrace
from stvit_cli.analysis.cost.roofline import GPUS, fuse_neighbours, least_seconds, trace_step
from stvit_cli.models import create_model
from stvit_cli.models.layers import ConvPosEnc, LayerNorm2d
from stvit_cli.models.super_token import SuperTokenAttention

SIZE = (2, 16, 8, 4)  # B, C, H, W
TOKENS = prod(SIZE)


def meta(module: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return module()


def tokens(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(SIZE, device="meta", dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def record(run: Callable[[], Any], autocast: torch.dtype | None = None) -> list[Operator]:
    with OperatorTrace() as trace, GpuFunctions(autocast):
        run()
    return trace.operators


def names(operators: list[Operator]) -> list[str]:
    return [operator.name for operator in operators]


def test_a_1x1_convolution_is_a_product_and_a_pass_for_its_bias() -> None:
    conv, x = meta(lambda: nn.Conv2d(16, 32, 1).bfloat16()), tokens()
    product, bias = record(lambda: conv(x))
    y = 2 * TOKENS
    assert (product.flops, product.bytes) == (2 * TOKENS * 32, 2 * (TOKENS + 16 * 32 + y))
    assert (bias.flops, bias.bytes) == (0, 2 * (2 * y + 32))
    assert bias.fusible
    assert not product.fusible


def test_a_convolution_keeps_channels_last_memory_as_on_a_gpu() -> None:
    y = meta(lambda: nn.Conv2d(16, 32, 1).bfloat16())(tokens())
    assert not y.is_contiguous(memory_format=torch.channels_last)  # PyTorch's own on this device
    with OperatorTrace():
        y = meta(lambda: nn.Conv2d(16, 32, 1).bfloat16())(tokens())
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_gradients_of_a_convolution_are_computed_one_after_the_other() -> None:
    conv, x = meta(lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16).bfloat16()), tokens()
    with OperatorTrace() as trace:
        y = conv(x)
        trace.operators.clear()
        y.backward(torch.empty_like(y))
    bias, of_input, of_weight = (operator for operator in trace.operators if "convolution" in operator.name)
    assert of_input.flops == of_weight.flops == 2 * 9 * TOKENS
    assert of_input.unit == "vector"
    assert bias.bytes == 2 * (TOKENS + 16)
    assert of_input.bytes == of_weight.bytes == 2 * (2 * TOKENS + 16 * 9)


def test_elements_are_read_and_written_once_and_views_are_free() -> None:
    x, row = torch.empty(4, 6, device="meta"), torch.empty(6, device="meta")
    (add,) = record(lambda: x.t().t() + row.expand(4, 6))
    assert add.bytes == 4 * (24 + 6 + 24)
    (in_place,) = record(lambda: x.add_(row))
    assert in_place.bytes == add.bytes
    (copied,) = record(lambda: x.copy_(row))
    assert copied.bytes == 4 * (6 + 24)  # what is overwritten is not read


def test_autocast_runs_a_layer_norm_in_float32_and_a_convolution_in_bfloat16() -> None:
    norm, conv, x = meta(lambda: LayerNorm2d(16)), meta(lambda: nn.Conv2d(16, 16, 1, bias=False)), tokens()
    operators = record(lambda: conv(norm(x)), torch.bfloat16)
    assert names(operators) == ["_to_copy", "native_layer_norm", "_to_copy", "_to_copy", "convolution"]
    cast, normalized, *_, product = operators
    assert cast.bytes == 6 * TOKENS
    assert normalized.bytes == 4 * (2 * TOKENS + 2 * 16 + 2 * TOKENS // 16)  # tokens, weights, mean and deviation
    assert product.bytes == 2 * (2 * TOKENS + 16 * 16)


def test_a_batch_norm_reads_its_input_twice_in_training() -> None:
    norm, x = meta(lambda: nn.BatchNorm2d(16)), tokens()
    (train,) = [operator for operator in record(lambda: norm(x)) if operator.name == "native_batch_norm"]
    norm.eval()
    (inference,) = [operator for operator in record(lambda: norm(x)) if operator.name == "native_batch_norm"]
    assert train.extra_bytes == 2 * TOKENS
    assert inference.extra_bytes == 0


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_attention_is_fused_as_on_a_gpu(autocast: torch.dtype | None) -> None:
    q = torch.empty(2, 3, 10, 16, device="meta")
    operators = record(lambda: F.scaled_dot_product_attention(q, q, q), autocast)
    (attention,) = [operator for operator in operators if operator.family == "attention"]
    assert attention.flops == 2 * 2 * 2 * 3 * 10 * 10 * 16


def test_a_custom_position_encoding_moves_its_tokens_once_each_way() -> None:
    layer, x = meta(lambda: ConvPosEnc(16)), tokens()
    layer.kernels = GpuKernels(torch.bfloat16)
    (kernel,) = record(lambda: layer(x))
    assert kernel.name == "conv_pos_enc"
    assert kernel.flops == 2 * 9 * TOKENS
    assert kernel.bytes == 2 * 2 * TOKENS + 4 * 16 * (9 + 1)
    assert kernel.unit == "vector"


def test_custom_sampling_counts_the_same_flops_as_pytorchs_operators() -> None:
    attention = meta(lambda: SuperTokenAttention(16, 2, (4, 2))).bfloat16()
    products = []
    for kernels in (None, GpuKernels(None)):
        attention.kernels = kernels
        operators = record(lambda: attention(tokens()))
        products.append(sum(operator.flops for operator in operators))
    assert products[0] == products[1] > 0


def test_flops_are_twice_the_multiply_adds_of_fvcore_and_those_of_pytorchs_counter() -> None:
    model = create_model("stvit-nano")
    counted = count_flops(model, (64, 64)).by_operator
    multiply_adds = sum(counted.get(name, 0) for name in ("conv", "matmul", "linear"))
    model = meta(lambda: create_model("stvit-nano"))
    for kernels in (False, True):
        operators = trace_step(model, (64, 64), 2, precision="fp32", train=False, kernels=kernels)
        assert sum(operator.flops for operator in operators) == 2 * 2 * multiply_adds
    net = meta(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(8 * 16, 4)))
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(2, 3, 8, 8, device="meta")).sum().backward()
    step = trace_step(net, (8, 8), 2, precision="fp32")
    assert sum(operator.flops for operator in step) == counter.get_total_flops()
    assert [operator.phase for operator in step][-1] == "optimizer"
    weights = sum(parameter.numel() for parameter in net.parameters())
    assert step[-1].bytes == 7 * 4 * weights


def test_a_compiler_writes_only_what_is_read_later() -> None:
    x, weight = torch.empty(4, 6, device="meta"), torch.empty(6, 6, device="meta")

    def run() -> None:
        twice = (x + 1) * 2
        _ = (twice @ weight).relu() + x

    pointwise, product, after = fuse_neighbours(record(run))
    assert pointwise.bytes == 4 * (24 + 24)  # x + 1 is not needed again
    assert product.flops == 2 * 4 * 6 * 6
    assert after.bytes == 4 * (24 + 24 + 24)
    assert [operator.launches for operator in (pointwise, product, after)] == [1, 1, 1]


def test_the_longer_of_the_two_times_bounds_an_operator() -> None:
    gpu = GPUS["h100"]
    computing = Operator("mm", "matrix product", "forward", {0: 1}, {1: 1}, flops=round(gpu.matrix["bf16"]))
    assert least_seconds(computing, gpu, "bf16") == (pytest.approx(1), "matrix")
    moving = Operator("mm", "matrix product", "forward", {0: round(gpu.bandwidth)}, {}, flops=1)
    assert least_seconds(moving, gpu, "bf16") == (pytest.approx(1), "memory")


def test_on_the_command_line(stvit: Any) -> None:
    command = ("profile", "stvit-nano", "--roofline", "h100", "--image-size", "64", "--batch-size", "2")
    ended = stvit(*command, "--train", "--json", "-")
    assert ended.code == 0, ended.err
    assert "NVIDIA H100 SXM: train, batch 2, bf16" in ended.err
    (row,) = json.loads(ended.out)
    assert list(row["forms"]) == ["eager", "compiled", "kernels", "compiled, kernels", "products"]
    eager, kernels = row["forms"]["eager"], row["forms"]["kernels"]
    assert kernels["launches"] < eager["launches"]
    assert eager["launches"] > row["forms"]["compiled"]["launches"] > 0
    assert eager["device_ms"] == pytest.approx(sum(operators["ms"] for operators in eager["operators"]))
    assert 0 < eager["share_of_peak"] < row["forms"]["products"]["share_of_peak"] <= 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--roofline", "h10"], "Did you mean 'h100'"),
        (["--roofline", "h100", "--throughput"], "leave --throughput out"),
        (["--roofline", "h100", "--no-kernels"], "leave --no-kernels out"),
        (["--roofline", "h100", "--against", "swin_tt"], "Did you mean 'swin_t'?"),
    ],
)
def test_bad_input_is_refused(stvit: Any, argv: list[str], expected: str) -> None:
    ended = stvit("profile", "stvit-nano", *argv)
    assert ended.code == 2
    assert expected in ended.err
