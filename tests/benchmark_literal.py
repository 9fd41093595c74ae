"""How much faster the model runs than the literal form of the paper, in one interleaved run:

python tests/benchmark_literal.py [--train] [--batch-size 8] [--rounds 7] [--precision bf16] [--only model|operator]

The literal form is what one writes down from the supplement: Algorithm 1 with unfold and fold, (B, C, H, W) memory throughout,
nothing fused, nothing compiled. Beside it: ours, ours compiled a block at a time, on a GPU both with the Triton kernels too, and
torchvision's swin_t compiled whole. The rows of the operator are super token attention as in stages 1 and 2 of stvit-s at 224
pixels; its training step is forward and backward, to the weights and the input. On a GPU: --batch-size 128 --precision bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torchvision
from literal_form import make_literal
from torch import Tensor, nn

from stvit_cli.analysis.throughput import Candidate, Setting, compile_in_place, make_step, time_in_turn
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.models import create_model
from stvit_cli.models.fuse import fuse
from stvit_cli.models.super_token import SuperTokenAttention, use_triton

OPERATORS = {"attention, stage 1": (64, 1, 8, 56), "attention, stage 2": (128, 2, 4, 28)}  # C, heads, grid, H = W


def forms(device: str) -> list[str]:
    return ["ours", "ours, compiled", *(["Triton", "Triton, compiled"] if device == "cuda" else []), "literal"]


def whole_model(setting: Setting) -> list[Candidate]:
    """stvit-s in all forms, and swin_t."""
    images = torch.randn(setting.batch_size, 3, *setting.image_size, device=setting.device)
    candidates = []
    for form in [*forms(setting.device), "swin_t, compiled"]:
        model = torchvision.models.swin_t() if "swin_t" in form else create_model("stvit-s")
        model = model.to(setting.device).train(setting.train)
        if form == "literal":
            step = make_step(make_literal(model), images, torch.contiguous_format, setting)
        else:
            model = model if setting.train else fuse(model)
            use_triton(model, "Triton" in form)
            if "compiled" in form:
                compile_in_place(model)
            step = make_step(model, images, torch.channels_last, setting)
        candidates.append(Candidate(form, step, 0))
    return candidates


def operator(dim: int, num_heads: int, grid_size: int, side: int, setting: Setting) -> list[Candidate]:
    """Super token attention alone, (batch, dim, side, side), in all forms."""
    x = torch.randn(setting.batch_size, dim, side, side, device=setting.device)
    candidates = []
    for form in forms(setting.device):
        module: nn.Module = SuperTokenAttention(dim, num_heads, grid_size).to(setting.device)
        use_triton(module, "Triton" in form)
        if form == "literal":
            step = operator_step(make_literal(nn.Sequential(module)), x, torch.contiguous_format, setting)
        else:
            if "compiled" in form:
                compile_in_place(module)
            step = operator_step(module, x, torch.channels_last, setting)
        candidates.append(Candidate(form, step, 0))
    return candidates


def operator_step(module: nn.Module, x: Tensor, layout: torch.memory_format, setting: Setting) -> Callable[[], None]:
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
    keep_freed_memory()  # as the command line does, for all that is compared
    setting = Setting(
        batch_size=options.batch_size,
        train=options.train,
        rounds=options.rounds,
        precision=options.precision,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    cases: dict[str, Callable[[], list[Candidate]]] = (
        {"stvit-s": lambda: whole_model(setting)} if options.only != "operator" else {}
    )
    if options.only != "model":
        cases |= {name: lambda spec=spec: operator(*spec, setting) for name, spec in OPERATORS.items()}
    rows = []
    for name, make in cases.items():
        candidates = make()
        for candidate in candidates:
            candidate.step()
        figures = time_in_turn(candidates, setting)
        literal = figures["literal"]["images_per_second"]
        for form, found in figures.items():
            times = f"{found['images_per_second'] / literal:.2f}"
            memory = f"{found['peak_memory_bytes'] / 2**20:.0f} MiB"
            rows.append([name, form, f"{1e3 * found['seconds_per_step']:.2f}", times, memory])
        how = f"{found['mode']}, batch {setting.batch_size}, {setting.precision}, {found['device']}"
    print_table(["what", "form", "ms", "times literal", "memory"], rows, f"{how}; medians of {setting.rounds} interleaved rounds")


if __name__ == "__main__":
    main()
