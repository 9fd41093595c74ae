"""Compile the Triton kernels for GPUs that are not here, and read what the compilers say of registers.

python tests/helpers/triton_targets.py [--targets sm_90,gfx942] [--dtypes bf16] [--all]

Prints a table; ends with 1 where a kernel needs more registers than there are and spills to memory. Triton keeps what it has
compiled in its own cache. Not a test; `test_triton` runs it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from stvit_cli.models.kernels.triton import attention, convolution

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
INTEGERS = {"height", "width", "channels", "num_rows", "num_columns", "strips", "rows", "num_cells"}
IN_FLOAT32 = {"shift", "weight", "bias", "column_sums", "sums"}  # parameters and sums
SMALL = {"height", "width", "num_rows", "num_columns", "strips", "rows", "num_cells"}  # no multiples of 16, in general
CELLS = [(64, 8), (128, 4), (96, 16), (320, 2)]  # C and grid size: classification, and dense tasks
WIDTHS = [64, 96, 128, 256]  # C as the blocks of `_plan` distinguish it


def kernels(dtype: str, everything: bool) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """Yield name, kernel, constants, and whether C is a multiple of 16, for which loads are wider."""
    for channels, grid in CELLS if everything else CELLS[:1]:
        cells = {"h": grid, "w": grid, **attention._blocks((grid, grid), channels, BYTES[dtype])}
        for aligned in (True, False) if everything else (True,):
            what = f"{channels}, grid {grid}"
            yield f"associate {what}", attention._gather_kernel, cells | {"ASSOCIATE": True}, aligned
            yield f"aggregate {what}", attention._gather_kernel, cells | {"ASSOCIATE": False}, aligned
            yield f"upsample {what}", attention._spread_kernel, cells, aligned
        block_c = min(128, max(16, triton.next_power_of_2(channels)))
        for normalize in (True, False):
            folded = {"NORMALIZE": normalize, "CELLS": attention.FOLDED // block_c, "BLOCK_C": block_c}
            yield f"fold {channels}{', normalized' if normalize else ''}", attention._fold_kernel, folded, True
    for channels in WIDTHS if everything else WIDTHS[-1:]:
        import torch

        blocks = convolution._plan(torch.empty(1, 14, 14, channels, device="meta"))[2]
        for kernel in (convolution._convolve_kernel, convolution._convolve_backward_kernel):
            for gelu in (True, False):
                name = f"{kernel.fn.__name__.strip('_')}{' with GELU' if gelu else ''} {channels}"
                yield name, kernel, {"GELU": gelu, "RESIDUAL": True, **blocks}, True


def type_of(name: str, dtype: str) -> str:
    """Return Triton's type of an argument."""
    if name in INTEGERS or name.startswith("stride_"):
        return "i32"
    if name in ("scale", "eps"):
        return "fp32"
    return "*fp32" if name in IN_FLOAT32 else f"*{dtype}"


def build(kernel: Any, constants: dict[str, Any], aligned: bool, dtype: str, target: GPUTarget) -> Any:
    """Compile as a launch would: with what it knows of pointers and numbers that are multiples of 16."""
    # The weight of the fold is a result in float32; so is a kernel of float32 parameters under autocast.
    signature = {name: "constexpr" if name in constants else type_of(name, dtype) for name in kernel.arg_names}
    known = [
        index
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (aligned and signature[name] == "i32" and name not in SMALL)
    ]
    attributes = {(index,): [["tt.divisibility", 16]] for index in known}
    return compile(ASTSource(kernel, signature, constants, attributes), target=target)


def resources(compiled: Any) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes (NVIDIA) or registers (AMD) that are spilled."""
    if "cubin" in compiled.asm:
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            told = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
        return numbers["REG"], numbers["STACK"] + numbers["LOCAL"]
    told = compiled.asm["amdgcn"]
    numbers = {name: int(number) for name, number in re.findall(r"\.(vgpr_count|[sv]gpr_spill_count):\s+(\d+)", told)}
    return numbers["vgpr_count"], numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--dtypes", default=",".join(BYTES))
    parser.add_argument("--all", action="store_true", help="every shape that the models have")
    options = parser.parse_args()
    spilled = 0
    for target in options.targets.split(","):
        for dtype in options.dtypes.split(","):
            for name, kernel, constants, aligned in kernels(dtype, options.all):
                compiled = build(kernel, constants, aligned, dtype, TARGETS[target])
                registers, spills = resources(compiled)
                spilled += bool(spills)
                unaligned = "" if aligned else ", any C"
                note = f"  SPILLS {spills}" if spills else ""
                print(
                    f"{target:7} {dtype} {name + unaligned:45} {registers:4} registers {compiled.metadata.shared:6} bytes shared"
                    f"{note}",
                    flush=True,
                )
    return min(spilled, 1)


if __name__ == "__main__":
    sys.exit(main())
