"""Measure the throughput of models side by side: interleaved rounds, medians, and the machine's peak for comparison.

Timings on a shared machine drift. Therefore all models are built and warmed up first, then timed in turn, round after round, and
compared within one run. Each model runs in the faster of the two memory layouts.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from stvit_cli.analysis.cost.flops import count_flops
from stvit_cli.analysis.cost.profile import build
from stvit_cli.models.kernels import use_kernels
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.mkldnn import pack
from stvit_cli.tasks.base import HasCompilableBlocks

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's messages on standard error

LAYOUTS = (torch.contiguous_format, torch.channels_last)  # built-in models are made for the second
TURN = 0.2  # seconds per turn of a model: a single step of milliseconds would measure cold caches and waking threads
BACKWARD = 2  # forward passes that a backward pass costs: gradients of the inputs and of the weights


@dataclass(frozen=True)
class Setting:
    """What is timed: a forward pass without gradients, or a training step (forward, backward, AdamW).

    Attributes:
        image_size: height and width in pixels.
        in_chans: channels of the images.
        batch_size: images per step.
        train: time training steps instead of inference.
        precision: bf16 uses autocast.
        compile: use ``torch.compile``.
        kernels: custom kernels; ``auto`` uses them where they are faster; see `use_kernels`.
        rounds: turns of each model.
        device: ``cpu`` or ``cuda``.
    """

    image_size: tuple[int, int] = (224, 224)
    in_chans: int = 3
    batch_size: int = 8
    train: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    kernels: bool | Literal["auto"] = "auto"
    rounds: int = 7
    device: str = "cpu"


@dataclass
class Candidate:
    """A model that is ready to be timed.

    Attributes:
        name: for the report.
        step: runs one step.
        flops: multiply-adds of the forward pass for one image.
        layout: memory layout.
        compile_seconds: duration of the first, compiling step.
        kernels: whether custom kernels ran in the step.
    """

    name: str
    step: Callable[[], None]
    flops: int
    layout: str = ""
    compile_seconds: float | None = None
    kernels: bool = False


def measure(names: list[str], setting: Setting) -> dict[str, dict[str, Any]]:
    """Measure the throughput of models in interleaved rounds.

    Args:
        names: models of this package, torchvision or timm.
        setting: what is timed.

    Returns:
        For each name: images_per_second (median over the rounds), spread (images_per_second of the slowest and fastest round),
        ms_per_image, seconds_per_step, peak_memory_bytes (allocated during a step), share_of_peak (fraction of the machine's
        measured peak, see `peak_flops`), memory_layout, compile_seconds (duration of the first step if compiled), kernels
        (whether custom kernels ran), and the setting.

    Raises:
        UserError: unknown model.

    Example:
        >>> setting = Setting(image_size=(32, 32), batch_size=1, rounds=1)
        >>> measure(["stvit-nano"], setting)["stvit-nano"]["images_per_second"]  # doctest: +SKIP
        412.3
    """
    candidates = [prepare(name, build(name), setting) for name in names]
    return time_in_turn(candidates, setting)


def time_in_turn(candidates: list[Candidate], setting: Setting) -> dict[str, dict[str, Any]]:
    """Measure prepared candidates in interleaved rounds; see `measure`."""
    memory = {candidate.name: _peak_memory(candidate.step, setting.device) for candidate in candidates}
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(setting.rounds):
        for candidate in candidates:
            seconds[candidate.name].append(_time(candidate.step, setting.device, at_least=TURN))
    peak = peak_flops(setting)
    results = {}
    for candidate in candidates:
        rates = sorted(setting.batch_size / second for second in seconds[candidate.name])
        median = statistics.median(rates)
        work = 2 * candidate.flops * (1 + BACKWARD * setting.train)
        results[candidate.name] = {
            "images_per_second": median,
            "spread": [rates[0], rates[-1]],
            "ms_per_image": 1e3 / median,
            "seconds_per_step": setting.batch_size / median,
            "peak_memory_bytes": memory[candidate.name],
            "share_of_peak": median * work / peak,
            "memory_layout": candidate.layout,
            "batch_size": setting.batch_size,
            "mode": "train" if setting.train else "inference",
            "precision": setting.precision,
            "compiled": setting.compile,
            "compile_seconds": candidate.compile_seconds,
            "kernels": candidate.kernels,
            "device": machine(setting.device),
        }
    return results


def prepare(name: str, model: nn.Module, setting: Setting) -> Candidate:
    """Optimize a model for the setting and choose the faster memory layout (channels-last if compiled).

    Built-in models are fused for inference, use custom kernels, and have packed weights on a CPU in float32.

    Args:
        name: for the report.
        model: any model for images (B, C, H, W); it is moved and modified in place, apart from the fused copy.
        setting: what is timed.
    """
    flops = count_flops(model, setting.image_size, setting.in_chans).total
    if not setting.train:
        model = fuse(model)
    model = model.to(setting.device).train(setting.train)
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    kernels = use_kernels(model, setting.device, setting.kernels, dtype=dtype, compiled=setting.compile)
    if setting.compile:
        compile_in_place(model)
    elif not setting.train and setting.device == "cpu" and setting.precision == "fp32":
        pack(model)
    images = torch.randn(setting.batch_size, setting.in_chans, *setting.image_size, device=setting.device)
    steps, first_seconds = [], 0.0
    for layout in LAYOUTS[setting.compile :]:  # compiling for both layouts would take twice as long
        step = make_step(model, images, layout, setting)
        first_seconds = _time(step, setting.device)
        steps.append((min(_time(step, setting.device) for _ in range(2)), layout))
    best = min(steps, key=lambda pair: pair[0])[1]
    step = make_step(model, images, best, setting)
    layout_name, compile_seconds = str(best).removeprefix("torch."), first_seconds if setting.compile else None
    return Candidate(name, step, flops, layout_name, compile_seconds, kernels and ran_kernels(step))


def ran_kernels(step: Callable[[], None]) -> bool:
    """Run a step and return whether custom kernels ran in it; they can be enabled but not apply to its tensors."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        step()
    return any(event.key.startswith("stvit::") for event in recorded.key_averages())


def compile_in_place(model: nn.Module) -> None:
    """Compile a model in place: built-in models one block at a time, others as a whole."""
    if isinstance(model, HasCompilableBlocks):
        model.compile_blocks()
    else:
        model.compile(dynamic=False)


def make_step(model: nn.Module, images: Tensor, layout: torch.memory_format, setting: Setting) -> Callable[[], None]:
    """Return a function that runs one step on images (B, C, H, W) in a memory layout."""
    model.to(memory_format=layout)
    images = images.contiguous(memory_format=layout)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(setting.device, torch.bfloat16) if setting.precision == "bf16" else nullcontext()

    def infer() -> None:
        with torch.inference_mode(), autocast():
            model(images)

    if not setting.train:
        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def train() -> None:
        with autocast():
            loss = model(images).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train


def peak_flops(setting: Setting) -> float:
    """Measure the machine's peak in floating-point operations per second, with a large matmul and 1 x 1 convolution.

    On some processors the two use different libraries, one of which is twice as fast; the faster one counts.
    """
    num_tokens, width = (8192, 1024) if setting.device == "cpu" else (65536, 4096)
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    tokens = torch.randn(num_tokens, width, device=setting.device, dtype=dtype)
    weight = torch.randn(width, width, device=setting.device, dtype=dtype)
    image = tokens.reshape(8, num_tokens // 256, 32, width).permute(0, 3, 1, 2)  # channels-last
    kernel = weight.reshape(width, width, 1, 1)
    products: list[Callable[[], Any]] = [lambda: tokens @ weight, lambda: F.conv2d(image, kernel)]
    with torch.inference_mode():
        return max(2 * num_tokens * width**2 / min(_time(product, setting.device) for _ in range(5)) for product in products)


def machine(device: str) -> str:
    """Return the name of the processor and its number of threads, or of the GPU."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def _time(step: Callable[[], Any], device: str, at_least: float = 0.0) -> float:
    """Return the mean seconds per step, running steps for ``at_least`` seconds and at least once."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    start, steps, elapsed = time.perf_counter(), 0, -1.0
    while elapsed < at_least:
        step()
        if device != "cpu":
            torch.cuda.synchronize(device)
        steps, elapsed = steps + 1, time.perf_counter() - start
    return elapsed / steps


def _peak_memory(step: Callable[[], None], device: str) -> int:
    """Return the peak of memory allocated during a step, in bytes beyond what was allocated before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        step()
    assert recorded.profiler is not None
    assert recorded.profiler.kineto_results is not None
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    peak: int = max(accumulate((event.nbytes() for event in changes), initial=0))
    return peak
