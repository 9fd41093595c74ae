"""The first hour on a GPU in under ten minutes: measure the model, the kernels and the loader, and choose `train.kernels`.

python tests/benchmarks/gpu.py [--output gpu-results] [--minutes 9.5] [--model stvit-s]

Writes OUTPUT.md (tables) and OUTPUT.json after each section. Each section is a process of its own with a share of the time:
what does not fit into it, does not fit into memory, or fails, is named in the tables, and the rest is measured. The choice is the
one that `train.kernels=auto` makes on this GPU (`stvit_cli.models.kernels.choice`), in the cache where training looks for it.
All of it runs on a CPU too, which measures nothing of a GPU: --device cpu --smoke, with tiny models.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from helpers.cuda_graphs import captured

from stvit_cli.analysis.cost.throughput import Setting, compile_in_place, make_step, peak_flops
from stvit_cli.engine.determinism import fixed_order, strict
from stvit_cli.models import create_model
from stvit_cli.models.kernels import KERNELS, choice, load, use_kernels
from stvit_cli.models.kernels.choice import Setting as ChoiceSetting
from stvit_cli.models.layers import ConvFFN, ConvPosEnc
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.super_token import SuperTokenAttention

SECTIONS = {"choice": 0.1, "operators": 0.15, "inference": 0.3, "training": 0.35, "loader": 0.1}
"""The sections in their order, with their shares of the time."""
START = 25.0
"""Seconds that a section may take beyond its share: importing, starting the GPU, and ending what it has begun."""
BATCHES = (1, 8, 32, 64, 128, 256)
COMPILING = 0.45
"""Share of a section that the forms without the compiler may take of all batches but the first: it needs the rest."""
ROUNDS = 3
LAYERS = {  # at stages 1 and 2 of stvit-s, 224 pixels: what makes it, C, H = W
    "attention, stage 1": (partial(SuperTokenAttention, 64, 1, 8), 64, 56),
    "attention, stage 2": (partial(SuperTokenAttention, 128, 2, 4), 128, 28),
    "position encoding, stage 1": (partial(ConvPosEnc, 64), 64, 56),
    "position encoding, stage 3": (partial(ConvPosEnc, 320), 320, 14),
    "ConvFFN, stage 1": (partial(ConvFFN, 64), 64, 56),
    "ConvFFN, stage 2": (partial(ConvFFN, 128), 128, 28),
    "ConvFFN, stage 3": (partial(ConvFFN, 320), 320, 14),
}


@dataclass
class Row:
    """A line of a table. ``note`` says why there is no number."""

    section: str
    what: str
    form: str
    batch: int
    milliseconds: float | None = None
    images_per_second: float | None = None
    mebibytes: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Options:
    """What a section measures, and until when."""

    device: torch.device
    smoke: bool
    model: str
    start: float
    deadline: float
    write: Callable[[Row], None]
    missing: list[str]

    @property
    def batches(self) -> tuple[int, ...]:
        return (1, 2) if self.smoke else BATCHES

    @property
    def side(self) -> int:
        return 32 if self.smoke else 224

    @property
    def turn(self) -> float:
        """Seconds of a turn of a candidate."""
        return 0.0 if self.smoke else 0.1

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def share_is_spent(self, share: float) -> bool:
        """Whether this share of the section's time is over."""
        return time.monotonic() >= self.start + share * (self.deadline - self.start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny models and shapes, to try the program")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--model", default="stvit-s")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"))
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, separated by commas")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # a process of this program
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch finds no GPU here; --device cpu --smoke tries the program.", file=sys.stderr)
        return 2
    if given.section:
        run_section(given)
        return 0
    unknown = set(given.sections.split(",")) - SECTIONS.keys()
    if unknown:
        parser.error(f"--sections: found {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    sections = given.sections.split(",")
    measuring = max(0.0, 60 * given.minutes - START * len(sections)) / sum(SECTIONS[section] for section in sections)
    for section in sections:
        seconds = SECTIONS[section] * measuring
        rows += measured(section, seconds, given)
        write_results(given.output, rows, given, time.monotonic() - start)
        print(f"{section}: {time.monotonic() - start:.0f} s of {60 * given.minutes:.0f}", flush=True)
    print(f"Written: {given.output}.md and {given.output}.json")
    return 0


def measured(section: str, seconds: float, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Run a section in a process of its own, and return its rows, also where it fails or is stopped."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "rows.jsonl"
        command = [sys.executable, __file__, "--section", section, "--seconds", str(seconds), "--output", str(lines)]
        command += ["--device", given.device, "--model", given.model, *(["--smoke"] if given.smoke else [])]
        note = ""
        with (Path(folder) / "stderr").open("w+b") as errors:
            try:
                code = subprocess.run(command, stderr=errors, timeout=seconds + START, check=False).returncode
                if code:
                    errors.seek(0)
                    last = errors.read().decode(errors="replace").strip().splitlines()[-1:] or [""]
                    note = f"the process ended with code {code}: {last[0][:200]}"
            except subprocess.TimeoutExpired:
                note = f"stopped after {seconds + START:.0f} s"
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    return rows + ([asdict(Row(section, "the rest of the section", "", 0, note=note))] if note else [])


def run_section(given: argparse.Namespace) -> None:
    def write(row: Row) -> None:
        with given.output.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    model = "stvit-nano" if given.smoke else given.model
    start = time.monotonic()
    options = Options(torch.device(given.device), given.smoke, model, start, start + given.seconds, write, [])
    if given.smoke:  # the compiler takes minutes on a CPU
        with patch.object(torch, "compile", partial(torch.compile, backend="eager")):
            SECTION[given.section](options)
    else:
        SECTION[given.section](options)
    if options.missing:
        write(Row(given.section, "without a number", "", 0, note=f"no time left: {', '.join(options.missing)}"))


@contextmanager
def caught(options: Options, row: Row) -> Iterator[None]:
    """Turn a failure within the block into a note of a row."""
    try:
        yield
    except torch.OutOfMemoryError:
        options.write(Row(row.section, row.what, row.form, row.batch, note="out of memory"))
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        options.write(Row(row.section, row.what, row.form, row.batch, note=f"{type(error).__name__}: {first[:150]}"))
    gc.collect()
    if options.device.type == "cuda":
        torch.cuda.empty_cache()


def time_step(step: Callable[[], None], options: Options) -> float:
    """Return the seconds of a step: of a GPU, by its events."""
    step()
    if options.device.type != "cuda":
        start, number = time.perf_counter(), 0
        while number == 0 or time.perf_counter() - start < options.turn:
            step()
            number += 1
        return (time.perf_counter() - start) / number
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    number = max(1, min(200, int(options.turn / (time.perf_counter() - start))))
    first.record()
    for _ in range(number):
        step()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / number


def peak_mebibytes(step: Callable[[], None], options: Options) -> float | None:
    """Return what a step allocates at most, beyond the weights of the candidates beside it."""
    if options.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_turn(section: str, what: list[tuple[str, str, Callable[[], Callable[[], None]]]], batch: int, options: Options) -> None:
    """Measure candidates (name, form, what makes its step) in interleaved rounds; the median counts."""
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    memory: dict[tuple[str, str], float | None] = {}
    for name, form, make in what:
        row = Row(section, name, form, batch)
        if options.left() <= 0:
            options.missing.append(f"{name} {form} {batch}")
            continue
        with caught(options, row):
            step = make()
            step()
            memory[name, form] = peak_mebibytes(step, options)
            steps[name, form] = step
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for number in range(1 if options.smoke else ROUNDS):
        for key, step in list(steps.items()):
            if number and options.left() <= 0:
                continue
            with caught(options, Row(section, *key, batch)):
                seconds[key].append(time_step(step, options))
                continue
            del steps[key]
    for (name, form), times in seconds.items():
        if times:
            middle = statistics.median(times)
            options.write(Row(section, name, form, batch, 1e3 * middle, batch / middle, memory[name, form]))


def choose(options: Options) -> None:
    """Measure each kind of layer as `train.kernels=auto` does, in both precisions."""
    for dtype in (torch.bfloat16, torch.float32)[: 1 if options.smoke else 2]:
        name = str(dtype).removeprefix("torch.")
        with caught(options, Row("choice", options.model, name, 0)):
            for train in (True, False):
                setting = ChoiceSetting(options.device, dtype, train=train)
                model = create_model(options.model) if train else fuse(create_model(options.model))
                if options.device.type == "cuda":
                    load("cuda")
                    choice.choose(model, setting, KERNELS)
                else:
                    with patch.object(choice, "NUMBERS", 1):
                        choice.choose(model, setting, KERNELS, lambda step: time_step(step, options) * 1e3)
                identity, purpose = choice._identity(setting), "training" if train else "inference"
                for kind, times in choice._read(choice._path(identity), identity, setting.section).items():
                    for form, milliseconds in times.items():
                        options.write(Row("choice", f"{kind}, {name}, {purpose}", form, 0, milliseconds))


def operators(options: Options) -> None:
    """The layers alone: forward, and forward and backward, eager, compiled and by the kernels."""
    batch = 1 if options.smoke else 128
    dtype = torch.float32 if options.smoke else torch.bfloat16
    layers = list(LAYERS.items())[:: 3 if options.smoke else 1]
    # All layers without the compiler first, which takes a minute for each.
    for forms in (("eager", "kernels"), ("compiled", "compiled, kernels")):
        for name, (make, channels, side) in layers:
            side = 16 if options.smoke else side
            x = torch.randn(batch, channels, side, side, device=options.device)
            x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()

            def step_of(form: str, train: bool, make: Callable[[], nn.Module] = make, x: torch.Tensor = x) -> Callable[[], None]:
                layer = make().to(options.device, memory_format=torch.channels_last)
                use_kernels(layer, options.device.type, "kernels" in form)
                if "compiled" in form:
                    layer = torch.compile(layer, dynamic=False)
                return choice._step(layer, x, ChoiceSetting(options.device, dtype, train=train))

            for train in (False, True):
                title = f"{name}, {'forward and backward' if train else 'forward'}"
                in_turn("operators", [(title, form, partial(step_of, form, train)) for form in forms], batch, options)


def models(section: str, options: Options) -> None:
    """The model beside swin_t and convnext_tiny: eager, compiled, with the kernels."""
    import torchvision

    train, precision = section == "training", "fp32" if options.smoke else "bf16"
    if not options.smoke:
        peak = peak_flops(Setting(precision="bf16", device=options.device.type))
        options.write(Row(section, "a large product of matrices", f"{peak / 1e12:.0f} TFLOP/s in bf16", 0))
    ours, others = options.model, ("swin_t", "convnext_tiny")
    eager = [(ours, form) for form in ("eager", "kernels", "auto")]
    eager += [(ours, "auto, deterministic")] if train else []  # as `engine.determinism` has it
    eager += [(name, "eager") for name in others]
    compiled = [(ours, "compiled, kernels"), *((name, "compiled") for name in (ours, *others))]
    graphs = [(ours, "auto, CUDA graph"), *((name, "CUDA graph") for name in others)]
    built: dict[tuple[str, str], nn.Module] = {}

    def network(name: str, form: str) -> nn.Module:
        if (name, form) not in built:
            model = create_model(name) if name == ours else getattr(torchvision.models, name)()
            model = model.to(options.device) if train else fuse(model).to(options.device)
            if name == ours:
                enable = "auto" if form.startswith("auto") else "kernels" in form
                dtype = torch.float32 if options.smoke else torch.bfloat16
                use_kernels(model, options.device.type, enable, dtype=dtype, train=train)
            if "compiled" in form:
                compile_in_place(model)
            built[name, form] = model.train(train)
        return built[name, form]

    def step_of(name: str, form: str, batch: int) -> Callable[[], None]:
        setting = Setting((options.side, options.side), 3, batch, train, precision, device=options.device.type)
        images = torch.randn(batch, 3, options.side, options.side, device=options.device)
        step = make_step(network(name, form), images, torch.channels_last, setting)
        if "graph" in form:
            return captured(step, options.device)
        return deterministic(step, options) if "deterministic" in form else step

    def measure(pairs: list[tuple[str, str]], batch: int) -> None:
        in_turn(section, [(name, form, partial(step_of, name, form, batch)) for name, form in pairs], batch, options)

    first, *rest = sorted(options.batches, key=(128, 8, 1, 64, 256, 32, 2).index)  # what decides comes first
    measure(eager, first)
    if not train:  # small batches are bound by launches, which a graph of all of them does not pay one by one
        for batch in [size for size in rest if size <= 32][:2]:
            measure(eager + graphs, batch)
        rest = [size for size in rest if size > 32] + [size for size in rest if size <= 32][2:]
    later = []
    for batch in rest:
        if options.share_is_spent(COMPILING):
            later.append(batch)
        else:
            measure(eager, batch)
    for pair in compiled:  # one at a time, so that what is measured is written
        measure([pair], first)
    for batch in later:
        measure(eager, batch)


def deterministic(step: Callable[[], None], options: Options) -> Callable[[], None]:
    """Return a step with sums in a fixed order, as in training."""

    def ordered() -> None:
        with fixed_order(options.device), strict(options.device.type == "cuda"):
            step()

    return ordered


def loader(options: Options) -> None:
    """A training run with all of its augmentation beside its bare steps: what share of the GPU's speed the loader can feed."""
    from end_to_end import Alternating, write_photographs

    from stvit_cli import engine, tasks
    from stvit_cli.engine import trainer
    from stvit_cli.engine.session import Session
    from stvit_cli.recipe import io as recipe_io

    batch, steps = (2, 1) if options.smoke else (128, 6)
    cores = len(os.sched_getaffinity(0))
    workers = 0 if options.smoke else max(1, cores - 1)
    rounds = 2
    with caught(options, Row("loader", options.model, f"{workers} workers", batch)), tempfile.TemporaryDirectory() as folder:
        overrides = {
            "model.name": options.model,
            "data.dir": write_photographs(Path(folder) / "photographs", 16 if options.smoke else 512),
            "data.num_workers": workers,
            "data.image_size": options.side,
            "train.device": options.device.type,
            "train.global_batch_size": batch,
            "train.batch_size_per_device": batch,
            "train.precision": "fp32" if options.smoke else "bf16",
            "train.report": False,
            "schedule.steps": 2 * rounds * steps + 1,
            "train.eval_every_steps": 2 * rounds * steps + 1,
        }
        recipe = recipe_io.load("deit300", [f"{key}={value}" for key, value in overrides.items()])
        turns: list[Any] = []

        def alternating(session: Session) -> Any:
            turns.append(Alternating(session, steps))
            return turns[0]

        with patch.object(trainer, "TrainStep", alternating):
            engine.fit(tasks.build(recipe), recipe, Path(folder) / "run")
        for name, seconds in turns[0].seconds.items():
            middle = min(seconds) / steps  # the first turn starts the workers
            form = f"{workers} workers, {cores} cores" if name == "whole" else "without the loader"
            options.write(Row("loader", options.model, form, batch, 1e3 * middle, batch / middle))


SECTION: dict[str, Callable[[Options], None]] = {
    "choice": choose,
    "operators": operators,
    "inference": partial(models, "inference"),
    "training": partial(models, "training"),
    "loader": loader,
}


def write_results(output: Path, rows: list[dict[str, Any]], given: argparse.Namespace, seconds: float) -> None:
    """Write what is known so far as JSON and Markdown."""
    device = torch.device(given.device, 0) if given.device == "cuda" else torch.device("cpu")
    machine = {**choice.describe_gpu(device), "torch": torch.__version__, "triton": choice._triton_version()}
    content = {"machine": machine, "seconds": round(seconds), "smoke": given.smoke, "model": given.model, "rows": rows}
    output.with_name(f"{output.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [f"# {', '.join(f'{key} {value}' for key, value in machine.items())}", ""]
    if given.smoke:
        lines += ["A trial of the program on tiny models: these are no measurements.", ""]
    for section in dict.fromkeys(row["section"] for row in rows):
        lines += [f"## {section}", "", "| | form | batch | ms | images/s | MiB | |", "|---|---|---|---|---|---|---|"]
        for row in (row for row in rows if row["section"] == section):
            numbers = [_number(row[key]) for key in ("milliseconds", "images_per_second", "mebibytes")]
            lines.append(f"| {row['what']} | {row['form']} | {row['batch'] or ''} | {' | '.join(numbers)} | {row['note']} |")
        lines.append("")
    lines += [f"{line}\n" for line in conclusions(rows)]
    output.with_name(f"{output.name}.md").write_text("\n".join(lines))


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    """Say which layers `train.kernels=auto` gives the kernels, and what whole training steps say of that."""
    times: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["section"] == "choice" and row["milliseconds"]:
            times.setdefault(row["what"], {})[row["form"]] = row["milliseconds"]
    both = {kind: pair for kind, pair in times.items() if len(pair) == 2}
    chosen = [kind for kind, pair in both.items() if pair["kernels"] * choice.GAIN < pair["eager"]]
    said = [
        f"`train.kernels=auto` uses the kernels for {len(chosen)} of {len(both)} kinds of layers: {'; '.join(chosen) or 'none'}."
    ]
    steps = {
        (row["batch"], row["form"]): row["milliseconds"]
        for row in rows
        if row["section"] == "training" and row["milliseconds"] and row["what"].startswith("stvit")
    }
    for (batch, form), auto in steps.items():
        others = {other: steps[batch, other] for other in ("eager", "kernels") if (batch, other) in steps}
        if form == "auto" and others:
            best = min(others, key=lambda other: others[other])
            said.append(
                f"Training step at batch {batch}: auto {auto:.1f} ms, "
                + ", ".join(f"{other} {milliseconds:.1f}" for other, milliseconds in others.items())
                + (f". **auto is slower than {best}: read the tables above.**" if auto > 1.03 * others[best] else ".")
            )
    return said


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


if __name__ == "__main__":
    sys.exit(main())
