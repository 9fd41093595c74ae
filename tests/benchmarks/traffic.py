"""How many bytes our kernels move and how many the plain and the printed form, counted without running them:

python tests/benchmarks/traffic.py [--batch-size 128] [--precision bf16] [--bandwidth 3350]

Counted is what every operator reads and writes, views for nothing, one after the other, as in eager mode. Our kernels are
counted by what goes in and out, with the parts that they hand on inside. --bandwidth is a memory's, in GB/s: what it could reach
at best. The steps are those that have kernels, in stages 1 and 2 of stvit-s at 224 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from benchmark_literal import OPERATORS
from helpers.reference_model import make_literal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stvit_cli.cli.output import print_table
from stvit_cli.models.kernels.operators import ops
from stvit_cli.models.layers import ConvPosEnc, gelu
from stvit_cli.models.super_token import SuperTokenAttention

MOVES_NOTHING = ("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "detach")  # beside views


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that go in and out of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        library, name = function._schema.name.split("::")
        if library in ("aten", "stvit") and not function.is_view and name not in MOVES_NOTHING:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(size(tensor) for tensor in tensors)
            if name in ("associate_and_aggregate", "aggregate"):
                self.bytes += 2 * 9 * size(result[0] if isinstance(result, tuple) else result)  # the parts, written and read
        return result


def size(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor; of an expanded one or of overlapping windows, each place once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class ConvFFNMiddle(nn.Module):
    """What is between ConvFFN's two products: (B, 4 C, H, W), GELU and the position encoding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv, self.shift = ConvPosEnc(4 * dim), nn.Parameter(torch.zeros(4 * dim))

    def forward(self, u: Tensor) -> Tensor:
        return self.conv(gelu(u))  # the bias before it is part of the product there

    def by_kernels(self, u: Tensor) -> Tensor:
        return ops.gelu_conv_pos_enc(u, self.shift, self.conv.conv.weight, self.conv.conv.bias, True)


class AttentionStep(SuperTokenAttention):
    def by_kernels(self, x: Tensor) -> Tensor:
        return self._forward_by_kernels(x)


class PositionEncoding(ConvPosEnc):
    def by_kernels(self, x: Tensor) -> Tensor:
        return ops.conv_pos_enc(x, self.conv.weight, self.conv.bias, True)


def count(form: str, module: nn.Module, size: tuple[int, int, int, int], train: bool) -> int:
    """Bytes of a forward pass, with ``train`` of the backward pass too, of tokens (B, C, H, W)."""
    run = getattr(module, "by_kernels", None) if form == "kernels" else module
    layout = torch.contiguous_format if form == "as printed" else torch.channels_last
    if form == "as printed":
        run = make_literal(nn.Sequential(module))
    x = torch.empty(size).contiguous(memory_format=layout).requires_grad_(train)
    with Traffic() as traffic, torch.set_grad_enabled(train):
        assert callable(run)
        y = run(x)
        if train:
            y.backward(torch.empty_like(y))
    return traffic.bytes


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
            "attention": (partial(AttentionStep, dim, num_heads, grid_size), dim),
            "position encoding": (partial(PositionEncoding, dim), dim),
            "ConvFFN's middle": (partial(ConvFFNMiddle, dim), 4 * dim),
        }
        for step, (make, channels) in steps.items():
            size = (options.batch_size, channels, side, side)
            for train in (False, True):
                for form in ("as printed", "plain", "kernels"):
                    with FakeTensorMode():
                        moved = count(form, make(), size, train)
                    times = moved / (prod(size) * dtype.itemsize)
                    best = f"{1e6 * moved / (options.bandwidth * 1e9):.0f}"
                    mode = "train" if train else "inference"
                    rows.append([str(stage), step, mode, form, f"{moved / 1e6:.0f}", f"{times:.1f}", best])
    title = f"Batch {options.batch_size}, {options.precision}; at {options.bandwidth:g} GB/s at least so many microseconds"
    print_table(["stage", "step", "mode", "form", "MB", "times the tokens", "µs at least"], rows, title)


if __name__ == "__main__":
    main()
