"""Measure the speedup of the model over the reference implementation, in interleaved rounds:

python tests/benchmarks/reference.py [--train] [--batch-size 8] [--rounds 7] [--precision bf16] [--only model|operator]

The reference implementation follows the supplement literally: Algorithm 1 with unfold and fold, (B, C, H, W) memory throughout,
nothing fused or compiled. It is compared with the built-in model with custom kernels (C++ on a CPU, Triton on a GPU), the
eager model (PyTorch's operators alone), both also compiled one block at a time, and torchvision's swin_t, also compiled as a
whole. The operator rows measure super token attention as in stages 1 and 2 of stvit-s at 224 pixels; a training step of the
operator is forward and backward, to the weights and the input. On a GPU: --batch-size 128 --precision bf16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.reference_model import to_reference

from stvit_cli.analysis.cost.throughput import Candidate, Setting, compile_in_place, make_step, time_in_turn
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.models import create_model
from stvit_cli.models.kernels import use_kernels
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.pack import pack
from stvit_cli.models.super_token import SuperTokenAttention

OPERATORS = {"attention, stage 1": (64, 1, 8, 56), "attention, stage 2": (128, 2, 4, 28)}  # C, heads, grid, H = W
IMPLEMENTATIONS = ("stvit", "stvit, compiled", "eager", "eager, compiled", "reference")


def prepare(implementation: str, module: nn.Module, setting: Setting) -> tuple[nn.Module, torch.memory_format]:
    """Return a built-in module in one of the implementations, and its memory layout."""
    if implementation == "reference":
        return to_reference(module), torch.contiguous_format
    use_kernels(module, setting.device, not implementation.startswith("eager"))
    if "compiled" in implementation:
        compile_in_place(module)
    elif not setting.train and setting.device == "cpu" and setting.precision == "fp32":
        pack(module)
    return module, torch.channels_last


def model(setting: Setting) -> list[Candidate]:
    """Return stvit-s in all implementations, and swin_t."""
    images = torch.randn(setting.batch_size, 3, *setting.image_size, device=setting.device)
    candidates = []
    for implementation in [*IMPLEMENTATIONS, "swin_t", "swin_t, compiled"]:
        if "swin_t" in implementation:
            network, layout = torchvision.models.swin_t().to(setting.device), torch.channels_last
            if "compiled" in implementation:
                compile_in_place(network)
        else:
            network = create_model("stvit-s").to(setting.device)
            if not setting.train and implementation != "reference":
                network = fuse(network)
            network, layout = prepare(implementation, network, setting)
        candidates.append(Candidate(implementation, make_step(network.train(setting.train), images, layout, setting), 0))
    return candidates


def operator(dim: int, num_heads: int, grid_size: int, side: int, setting: Setting) -> list[Candidate]:
    """Return super token attention on (batch, dim, side, side) in all implementations."""
    x = torch.randn(setting.batch_size, dim, side, side, device=setting.device)
    candidates = []
    for implementation in IMPLEMENTATIONS:
        attention = nn.Sequential(SuperTokenAttention(dim, num_heads, grid_size)).to(setting.device)
        step = operator_step(*prepare(implementation, attention, setting), x, setting)
        candidates.append(Candidate(implementation, step, 0))
    return candidates


def operator_step(module: nn.Module, layout: torch.memory_format, x: Tensor, setting: Setting) -> Callable[[], None]:
    x = x.contiguous(memory_format=layout)
    if not setting.train:
        return make_step(module, x, layout, setting)
    x.requires_grad_()
    upstream = torch.randn_like(x)

    def train() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            y = module(x)
        y.backward(upstream.to(y.dtype))

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", choices=("model", "operator"))
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does, for all candidates
    setting = Setting(
        batch_size=options.batch_size,
        train=options.train,
        rounds=options.rounds,
        precision=options.precision,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    cases: dict[str, Callable[[], list[Candidate]]] = {"stvit-s": lambda: model(setting)} if options.only != "operator" else {}
    if options.only != "model":
        cases |= {name: lambda spec=spec: operator(*spec, setting) for name, spec in OPERATORS.items()}
    rows = []
    for name, make in cases.items():
        candidates = make()
        for candidate in candidates:
            candidate.step()
        results = time_in_turn(candidates, setting)
        reference = results["reference"]["images_per_second"]
        for implementation, result in results.items():
            speedup = f"{result['images_per_second'] / reference:.2f}"
            memory = f"{result['peak_memory_bytes'] / 2**20:.0f} MiB"
            rows.append([name, implementation, f"{1e3 * result['seconds_per_step']:.2f}", speedup, memory])
        how = f"{result['mode']}, batch {setting.batch_size}, {setting.precision}, {result['device']}"
    columns = ["module", "implementation", "ms", "speedup", "memory"]
    print_table(columns, rows, f"{how}; medians of {setting.rounds} interleaved rounds")


if __name__ == "__main__":
    main()
