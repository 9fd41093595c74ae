"""How much faster the model runs than the literal form of the paper, in one interleaved run:

python tests/benchmarks/reference.py [--train] [--batch-size 8] [--rounds 7] [--precision bf16] [--only model|operator]

The literal form is what one writes down from the supplement: Algorithm 1 with unfold and fold, (B, C, H, W) memory throughout,
nothing fused, nothing compiled. Beside it: ours by our kernels (C++ on a CPU, Triton on a GPU), ours plain, that is by PyTorch's
operators alone, both also compiled a block at a time, and torchvision's swin_t, also compiled whole. The rows of the operator are
super token attention as in stages 1 and 2 of stvit-s at 224 pixels; its training step is forward and backward, to the weights and
the input. On a GPU: --batch-size 128 --precision bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torchvision
from helpers.reference_model import make_literal
from torch import Tensor, nn

from stvit_cli.analysis.cost.throughput import Candidate, Setting, compile_in_place, make_step, time_in_turn
from stvit_cli.cli.memory import keep_freed_memory
from stvit_cli.cli.output import print_table
from stvit_cli.models import create_model
from stvit_cli.models.kernels import use_kernels
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.mkldnn import pack
from stvit_cli.models.super_token import SuperTokenAttention

OPERATORS = {"attention, stage 1": (64, 1, 8, 56), "attention, stage 2": (128, 2, 4, 28)}  # C, heads, grid, H = W


FORMS = ("ours", "ours, compiled", "plain", "plain, compiled", "literal")


def prepared(form: str, module: nn.Module, setting: Setting) -> tuple[nn.Module, torch.memory_format]:
    """Return a module of ours in one of the forms, and the memory layout that this runs in."""
    if form == "literal":
        return make_literal(module), torch.contiguous_format
    use_kernels(module, setting.device, not form.startswith("plain"))
    if "compiled" in form:
        compile_in_place(module)
    elif not setting.train and setting.device == "cpu" and setting.precision == "fp32":
        pack(module)
    return module, torch.channels_last


def whole_model(setting: Setting) -> list[Candidate]:
    """stvit-s in all forms, and swin_t."""
    images = torch.randn(setting.batch_size, 3, *setting.image_size, device=setting.device)
    candidates = []
    for form in [*FORMS, "swin_t", "swin_t, compiled"]:
        if "swin_t" in form:
            model, layout = torchvision.models.swin_t().to(setting.device), torch.channels_last
            if "compiled" in form:
                compile_in_place(model)
        else:
            ours = create_model("stvit-s").to(setting.device)
            model, layout = prepared(form, ours if setting.train or form == "literal" else fuse(ours), setting)
        candidates.append(Candidate(form, make_step(model.train(setting.train), images, layout, setting), 0))
    return candidates


def operator(dim: int, num_heads: int, grid_size: int, side: int, setting: Setting) -> list[Candidate]:
    """Super token attention alone, (batch, dim, side, side), in all forms."""
    x = torch.randn(setting.batch_size, dim, side, side, device=setting.device)
    candidates = []
    for form in FORMS:
        attention = nn.Sequential(SuperTokenAttention(dim, num_heads, grid_size)).to(setting.device)
        candidates.append(Candidate(form, operator_step(*prepared(form, attention, setting), x, setting), 0))
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
