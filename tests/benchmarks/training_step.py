"""Where the time of a training step goes, by operator, and in which precision each operator runs:

python tests/benchmarks/training_step.py [--model stvit-s] [--batch-size 8] [--precision bf16] [--eager] [--rows 30]

Each row is an operator with the dtypes of its tensors (those of four dimensions are tokens, the others weights and the like), in
the forward or the backward pass or the update: number of calls, milliseconds (median of --rounds steps) and bytes read and
written, summed over the calls. Under autocast a row of tokens in float32 is a trip through float32 memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.models import create_model
from stvit_cli.models.kernels import use_kernels

Key = tuple[str, str, str, str]
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64", torch.int64: "int64", torch.bool: "bool"}


class Recorder(TorchDispatchMode):
    """Times every operator below autograd; a view costs next to nothing and is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.rows: dict[Key, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        if not function.is_view:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            tokens, others = ([x for x in inputs if (x.dim() == 4 and x.shape[-1] > 3) == wanted] for wanted in (True, False))
            row = self.rows[(self.phase, function._schema.name.removeprefix("aten::"), dtypes(tokens), dtypes(others))]
            row[0] += 1
            row[1] += 1e3 * seconds
            row[2] += sum(x.numel() * x.element_size() for x in [*inputs, *outputs])
        return result


def dtypes(tensors: list[Tensor]) -> str:
    return " ".join(sorted({SHORT.get(x.dtype, str(x.dtype).removeprefix("torch.")) for x in tensors}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stvit-s")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--eager", action="store_true", help="without the custom kernels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=30)
    options = parser.parse_args()
    keep_freed_memory()
    model = create_model(options.model, drop_path_rate=0.1).to(memory_format=torch.channels_last).train()
    use_kernels(model, "cpu", not options.eager)
    size = options.image_size
    images = torch.randn(options.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(recorder: Recorder) -> float:
        start = time.perf_counter()
        recorder.phase = "forward"
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = model(images).float().square().mean()
        recorder.phase = "backward"
        loss.backward()
        recorder.phase = "update"
        optimizer.step()
        optimizer.zero_grad()
        return 1e3 * (time.perf_counter() - start)

    step(Recorder())
    plain = [step(Recorder()) for _ in range(options.rounds)]  # not recording: not entered
    recorders = [Recorder() for _ in range(options.rounds)]
    for recorder in recorders:
        with recorder:
            step(recorder)
    rows = []
    for key, (calls, _, moved) in recorders[0].rows.items():
        rows.append((statistics.median(recorder.rows[key][1] for recorder in recorders), key, int(calls), moved / 2**20))
    rows.sort(reverse=True)
    total = sum(row[0] for row in rows)
    table = [[*key, str(calls), f"{ms:.1f}", f"{100 * ms / total:.1f}", f"{mib:.0f}"] for ms, key, calls, mib in rows]
    how = f"{options.model}, batch {options.batch_size}, {options.precision}, {torch.get_num_threads()} threads: a step takes"
    columns = ["pass", "operator", "tokens", "others", "calls", "ms", "%", "MiB"]
    print_table(columns, table[: options.rows], f"{how} {statistics.median(plain):.0f} ms, its operators {total:.0f} ms")


if __name__ == "__main__":
    main()
