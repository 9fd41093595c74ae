"""How fast models run beside each other: interleaved rounds, medians, and what the machine could do at best.

Timings on a shared machine drift. So all models are built and warmed up first, then timed in turn, round after round, and what
is compared comes from one run. Each model runs in the memory layout that suits it best.
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

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own notes on standard error

LAYOUTS = (torch.contiguous_format, torch.channels_last)  # the second is ours
TURN = 0.2  # seconds of a model's turn: a single run of milliseconds would time caches and threads waking up
BACKWARD = 2  # a backward pass costs two forward passes: products for the gradient of the input and of the weights


@dataclass(frozen=True)
class Setting:
    """What is timed: one forward pass without gradients, or one training step (forward, backward, AdamW)."""

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
    """A model with its step, ready to be timed."""

    name: str
    step: Callable[[], None]
    flops: int  # multiply-adds of one image, forward
    layout: str = ""
    compile_seconds: float | None = None  # of the first step, where it compiles
    kernels: bool = False  # whether custom kernels ran in the step


def measure(names: list[str], setting: Setting) -> dict[str, dict[str, Any]]:
    """Time models (ours, torchvision's, timm's, by name) in turn.

    Returns:
        For each name: images_per_second (median over the rounds), spread (slowest and fastest round), ms_per_image,
        seconds_per_step, peak_memory_bytes (tensors of a step beyond what was held before it), share_of_peak (of the measured
        matrix-product peak), memory_layout, compile_seconds (of the first step, where it compiles) and the setting.

    Raises:
        UserError: a name that neither we nor torchvision nor timm know.
    """
    candidates = [prepare(name, build(name), setting) for name in names]
    return time_in_turn(candidates, setting)


def time_in_turn(candidates: list[Candidate], setting: Setting) -> dict[str, dict[str, Any]]:
    """Time prepared candidates in turn; see `measure`."""
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
    """Make a model as fast as it gets in this setting and choose the faster memory layout (compiled: channels-last).

    Ours is fused for inference, runs by our kernels, and on a CPU in float32 with packed weights.
    """
    flops = count_flops(model, setting.image_size, setting.in_chans).total
    if not setting.train:
        model = fuse(model)
    model = model.to(setting.device).train(setting.train)
    kernels = use_kernels(model, setting.device, setting.kernels)
    if setting.compile:
        compile_in_place(model)
    elif not setting.train and setting.device == "cpu" and setting.precision == "fp32":
        pack(model)
    images = torch.randn(setting.batch_size, setting.in_chans, *setting.image_size, device=setting.device)
    steps, first_seconds = [], 0.0
    for layout in LAYOUTS[setting.compile :]:  # compiling for the other layout too would take as long again
        step = make_step(model, images, layout, setting)
        first_seconds = _time(step, setting.device)
        steps.append((min(_time(step, setting.device) for _ in range(2)), layout))
    best = min(steps, key=lambda pair: pair[0])[1]
    step = make_step(model, images, best, setting)
    layout_name, compile_seconds = str(best).removeprefix("torch."), first_seconds if setting.compile else None
    return Candidate(name, step, flops, layout_name, compile_seconds, kernels and ran_kernels(step))


def ran_kernels(step: Callable[[], None]) -> bool:
    """Take a step and return whether custom kernels ran in it: they may be switched on and serve none of its tokens."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        step()
    return any(event.key.startswith("stvit::") for event in recorded.key_averages())


def compile_in_place(model: nn.Module) -> None:
    """Compile a model, which stays the module it was: ours a block at a time, another one whole."""
    getattr(model, "compile_blocks", lambda: model.compile(dynamic=False))()


def make_step(model: nn.Module, images: Tensor, layout: torch.memory_format, setting: Setting) -> Callable[[], None]:
    """Return what is timed, for images (B, C, H, W) in a memory layout."""
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
    """Measure this machine's best matrix product, in floating-point operations a second: by matmul and by 1 x 1 convolution.

    On some processors the two go to different libraries, of which one is twice as fast.
    """
    places, width = (8192, 1024) if setting.device == "cpu" else (65536, 4096)
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    tokens = torch.randn(places, width, device=setting.device, dtype=dtype)
    weight = torch.randn(width, width, device=setting.device, dtype=dtype)
    image = tokens.reshape(8, places // 256, 32, width).permute(0, 3, 1, 2)  # channels-last
    kernel = weight.reshape(width, width, 1, 1)
    products: list[Callable[[], Any]] = [lambda: tokens @ weight, lambda: F.conv2d(image, kernel)]
    with torch.inference_mode():
        return max(2 * places * width**2 / min(_time(product, setting.device) for _ in range(5)) for product in products)


def machine(device: str) -> str:
    """Say what the figures were measured on."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def _time(step: Callable[[], Any], device: str, at_least: float = 0.0) -> float:
    """Seconds of a step: the mean of as many as ``at_least`` seconds take, at least one."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    began, steps, passed = time.perf_counter(), 0, -1.0
    while passed < at_least:
        step()
        if device != "cpu":
            torch.cuda.synchronize(device)
        steps, passed = steps + 1, time.perf_counter() - began
    return passed / steps


def _peak_memory(step: Callable[[], None], device: str) -> int:
    """Bytes of tensors that a step holds at most beyond what was held before it."""
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
