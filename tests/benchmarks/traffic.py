"""Count the bytes moved by the custom kernels, by the eager model and by the reference implementation, without running them:

python tests/benchmarks/traffic.py [--batch-size 128] [--precision bf16] [--bandwidth 3350]

The count adds up what every operator reads and writes, one after the other as in eager mode; views count nothing. Custom
kernels are counted by their inputs and outputs, and by the parts that they pass on internally. --bandwidth, in GB/s, gives the
lower bound of the time. The modules are those that have kernels, in stages 1 and 2 of stvit-s at 224 pixels.

Shapes: B batch, C channels, H W tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from math import prod

import torch
from reference import OPERATORS, to_reference
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stvit_cli.analysis.cost.gpu_functions import GpuKernels
from stvit_cli.analysis.cost.operator_trace import OperatorTrace
from stvit_cli.cli.output import print_table
from stvit_cli.models.accelerated import Accelerated
from stvit_cli.models.layers import ConvPosEnc, gelu
from stvit_cli.models.super_token import SuperTokenAttention


class ConvFFNMiddle(Accelerated):
    """The part of ConvFFN between its linear layers: GELU and the position encoding of (B, 4 C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv, self.shift = ConvPosEnc(4 * dim), nn.Parameter(torch.zeros(4 * dim))

    def forward(self, u: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.gelu_conv_pos_enc(u, self.shift, self.conv.conv, True)
        return self.conv(gelu(u))  # the bias is added by the linear layer before it


def count(implementation: str, module: nn.Module, size: tuple[int, int, int, int], train: bool) -> int:
    """Count the bytes of a forward pass on tokens (B, C, H, W), and with ``train`` of the backward pass."""
    layout = torch.contiguous_format if implementation == "reference" else torch.channels_last
    if implementation == "reference":
        module = to_reference(nn.Sequential(module))
    for layer in module.modules():
        if isinstance(layer, Accelerated):
            layer.kernels = GpuKernels() if implementation == "kernels" else None
    x = torch.empty(size).contiguous(memory_format=layout).requires_grad_(train)
    with OperatorTrace() as trace, torch.set_grad_enabled(train):
        y = module(x)
        if train:
            y.backward(torch.empty_like(y))
    return sum(operator.bytes for operator in trace.operators)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--bandwidth", type=float, default=3350.0)
    options = parser.parse_args()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    torch.set_default_dtype(dtype)
    rows = []
    for stage, (dim, num_heads, grid_size, side) in enumerate(OPERATORS.values(), start=1):
        steps: dict[str, tuple[Callable[[], nn.Module], int]] = {
            "attention": (partial(SuperTokenAttention, dim, num_heads, grid_size), dim),
            "position encoding": (partial(ConvPosEnc, dim), dim),
            "ConvFFN's middle": (partial(ConvFFNMiddle, dim), 4 * dim),
        }
        for step, (make, channels) in steps.items():
            size = (options.batch_size, channels, side, side)
            for train in (False, True):
                for implementation in ("reference", "eager", "kernels"):
                    with FakeTensorMode():
                        moved = count(implementation, make(), size, train)
                    times = moved / (prod(size) * dtype.itemsize)
                    best = f"{1e6 * moved / (options.bandwidth * 1e9):.0f}"
                    mode = "train" if train else "inference"
                    rows.append([str(stage), step, mode, implementation, f"{moved / 1e6:.0f}", f"{times:.1f}", best])
    title = f"Batch {options.batch_size}, {options.precision}; lower bound of the time at {options.bandwidth:g} GB/s"
    print_table(["stage", "step", "mode", "implementation", "MB", "relative to the input", "µs at least"], rows, title)


if __name__ == "__main__":
    main()
