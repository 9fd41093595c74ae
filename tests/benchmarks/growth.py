"""Measure how time and memory of stvit-s grow with the image size, with the grids of classification and of dense tasks:

python tests/benchmarks/growth.py [--output growth.png] [--rounds 5] [--precision bf16]

One image, inference; both grids are timed in interleaved rounds. Prints a table; --output also plots it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from stvit_cli.analysis.cost.throughput import Setting, prepare, time_in_turn
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.models import create_model

SIDES = (224, 320, 448, 640, 800, 1024)
GRIDS = ((8, 4, 1, 1), (16, 8, 2, 1))


def measure(setting: Setting) -> list[dict[str, Any]]:
    """Return a row per side and grid: ``side``, ``grid``, ``flops`` (multiply-adds) and the results of `time_in_turn`."""
    rows = []
    for side in SIDES:
        sized = replace(setting, image_size=(side, side))
        candidates = [prepare(" ".join(map(str, grid)), create_model("stvit-s", grid_sizes=grid), sized) for grid in GRIDS]
        results = time_in_turn(candidates, sized)
        rows += [{"side": side, "grid": c.name, "flops": c.flops, **results[c.name]} for c in candidates]
    return rows


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Plot time, memory and multiply-adds against the number of pixels on logarithmic axes; linear growth has slope one."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = [("ms_per_image", 1, "milliseconds"), ("peak_memory_bytes", 2**20, "MiB"), ("flops", 1e9, "G multiply-adds")]
    for axes, (key, unit, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for grid, marker in zip(dict.fromkeys(row["grid"] for row in rows), "os", strict=True):
            of_grid = [row for row in rows if row["grid"] == grid]
            axes.loglog([row["side"] ** 2 for row in of_grid], [row[key] / unit for row in of_grid], marker=marker, label=grid)
        pixels = [row["side"] ** 2 for row in rows]
        least = min(row[key] for row in rows) / unit
        linear = [least * count / pixels[0] for count in (pixels[0], pixels[-1])]
        axes.loglog([pixels[0], pixels[-1]], linear, color="0.6", linestyle=":", label="linear")
        axes.set_xticks([side**2 for side in SIDES], [str(side) for side in SIDES])
        axes.minorticks_off()
        axes.set_xlabel("side in pixels, spaced by their number")
        axes.set_ylabel(label)
        axes.legend(title="grid")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(batch_size=1, rounds=options.rounds, precision=options.precision, device=device)
    rows = measure(setting)
    title = f"stvit-s, inference, one image, {setting.precision}, {rows[0]['device']}; medians of {setting.rounds} rounds"
    cells = [
        [
            str(row["side"]),
            row["grid"],
            f"{row['flops'] / 1e9:.1f} G",
            f"{row['ms_per_image']:.0f}",
            f"{1e6 * row['ms_per_image'] / row['side'] ** 2:.2f}",
            f"{row['peak_memory_bytes'] / 2**20:.0f} MiB",
            f"{row['peak_memory_bytes'] / row['side'] ** 2:.0f}",
        ]
        for row in rows
    ]
    print_table(["side", "grid", "multiply-adds", "ms", "ns a pixel", "peak memory", "bytes a pixel"], cells, title)
    if options.output is not None:
        draw(rows, title, options.output)


if __name__ == "__main__":
    main()
