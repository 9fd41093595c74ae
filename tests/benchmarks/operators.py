"""Measure where the milliseconds of a step go, by operator:

python tests/benchmarks/operators.py [--model stvit-s] [--train] [--batch-size 8] [--precision bf16] [--steps 3]

The model is prepared as `stvit profile --throughput` does, and its operators' own time is taken from PyTorch's profiler, without
that of the operators that they call. Convolutions are told apart by their weights.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from stvit_cli.analysis.cost.profile import build
from stvit_cli.analysis.cost.throughput import Setting, machine, prepare
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table


def describe(event: Any) -> str:
    """Return the name of an operator; of a convolution also its kernel, or that it is depth-wise."""
    name = event.key.removeprefix("aten::")
    if name == "mkldnn::_convolution_pointwise_":  # its first tensor is the residual; only packed 1 x 1 products add to one
        return f"{name} 1 x 1"
    if "convolution" in name:
        weights = [shape for shape in event.input_shapes if len(shape) == 4][1 + ("backward" in name) :]
        if weights:
            _, per_group, height, width = weights[0]
            name += f" {height} x {width}" + (", depth-wise" if per_group == 1 else "")
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stvit-s")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(batch_size=options.batch_size, train=options.train, precision=options.precision, device=device)
    step = prepare(options.model, build(options.model), setting).step
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, record_shapes=True, acc_events=True) as recorded:
        for _ in range(options.steps):
            step()
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in recorded.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        entry = totals[describe(event)]
        entry[0] += own / 1e3 / options.steps
        entry[1] += event.count / options.steps
    whole = sum(milliseconds for milliseconds, _ in totals.values())
    rows = sorted(totals.items(), key=lambda item: -item[1][0])
    lines = [[name, f"{calls:.0f}", f"{ms:.1f}", f"{ms / whole:.1%}"] for name, (ms, calls) in rows if ms >= 0.005 * whole]
    mode = "training step" if options.train else "inference"
    title = f"{options.model}, {mode}, batch {options.batch_size}, {options.precision}, {machine(device)}; {whole:.0f} ms a step"
    print_table(["operator", "calls", "ms", "share"], lines, title, right=(1, 2, 3))


if __name__ == "__main__":
    main()
