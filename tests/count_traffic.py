"""How many bytes super token attention moves, counted without running it; what a GPU of a given memory speed could reach at best:

python tests/count_traffic.py [--batch-size 128] [--precision bf16] [--bandwidth 3350]

Counted is what every operator reads and writes, views for nothing, one operator after the other, as in eager mode. The operators
of the Triton kernels are counted by what goes in and out, with the parts that they hand on inside. --bandwidth is in GB/s.
"""

from __future__ import annotations

import argparse
from math import prod
from typing import Any

import torch
from benchmark_literal import OPERATORS
from literal_form import make_literal
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stvit_cli.cli.output import print_table
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


def count(form: str, spec: tuple[int, int, int, int], batch_size: int, train: bool) -> int:
    dim, num_heads, grid_size, side = spec
    with FakeTensorMode():
        attention = SuperTokenAttention(dim, num_heads, grid_size)
        module: nn.Module = make_literal(nn.Sequential(attention)) if form == "literal" else attention
        layout = torch.contiguous_format if form == "literal" else torch.channels_last
        x = torch.empty(batch_size, dim, side, side, memory_format=layout, requires_grad=train)
        with Traffic() as traffic, torch.set_grad_enabled(train):
            y = attention._forward_triton(x) if form == "Triton" else module(x)
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
    for what, spec in OPERATORS.items():
        tokens = options.batch_size * prod((spec[0], spec[3], spec[3])) * dtype.itemsize
        for train in (False, True):
            for form in ("literal", "plain", "Triton"):
                moved = count(form, spec, options.batch_size, train)
                best = f"{1e6 * moved / (options.bandwidth * 1e9):.0f}"
                rows.append([what, "train" if train else "inference", form, f"{moved / 1e6:.0f}", f"{moved / tokens:.1f}", best])
    title = f"Batch {options.batch_size}, {options.precision}; at {options.bandwidth:g} GB/s at least so many microseconds"
    print_table(["what", "mode", "form", "MB", "times the tokens", "µs at least"], rows, title)


if __name__ == "__main__":
    main()
