"""How much faster the model runs than the literal form of Algorithm 1, in one interleaved run:

python tests/benchmark_literal.py [--train] [--batch-size 8] [--rounds 7]

The literal form is Algorithm 1 with unfold and fold, in the memory order of the printed code (NCHW), not fused.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from literal_form import make_literal
from torch import nn

from stvit_cli.analysis.throughput import Candidate, Setting, make_step, prepare, time_in_turn
from stvit_cli.cli.output import print_table
from stvit_cli.models import create_model
from stvit_cli.models.super_token import SuperTokenAttention


def as_literal(name: str, model: nn.Module, setting: Setting) -> Candidate:
    images = torch.randn(setting.batch_size, setting.in_chans, *setting.image_size)
    model = make_literal(nn.Sequential(model)).train(setting.train)
    return Candidate(name, make_step(model, images, torch.contiguous_format, setting), 0, "contiguous_format")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    whole = Setting(batch_size=options.batch_size, train=options.train, rounds=options.rounds)
    cases = {
        "stvit-s": (lambda: create_model("stvit-s"), whole),
        "attention, stage 1": (lambda: SuperTokenAttention(64, 1, 8), replace(whole, image_size=(56, 56), in_chans=64)),
        "attention, stage 2": (lambda: SuperTokenAttention(128, 2, 4), replace(whole, image_size=(28, 28), in_chans=128)),
    }
    rows = []
    for name, (make, setting) in cases.items():
        pair = [prepare("ours", make(), setting), as_literal("literal", make(), setting)]
        for candidate in pair:
            candidate.step()
        ours, literal = time_in_turn(pair, setting).values()
        ratio = f"{ours['images_per_second'] / literal['images_per_second']:.2f}"
        memory = [f"{figures['peak_memory_bytes'] / 2**20:.0f} MiB" for figures in (ours, literal)]
        rows.append([name, *(f"{1e3 * figures['seconds_per_step']:.1f}" for figures in (ours, literal)), ratio, *memory])
        mode, device = ours["mode"], ours["device"]
    columns = ["what", "ours, ms", "literal, ms", "times faster", "ours, memory", "literal, memory"]
    print_table(
        columns, rows, f"{mode}, batch {options.batch_size}, fp32, {device}; medians of {options.rounds} interleaved rounds"
    )


if __name__ == "__main__":
    main()
