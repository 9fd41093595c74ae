"""Measure the throughput of models side by side: interleaved rounds, medians, and the machine's peak for comparison.

Timings on a shared machine drift. Therefore all models are built and warmed up first, then timed in turn, round after round, and
compared within one run. Each model runs in the faster of the two memory layouts.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from stvit_cli.analysis.cost.flops import count_flops
from stvit_cli.analysis.cost.machine import describe_machine, machine, versions
from stvit_cli.analysis.cost.profile import build
from stvit_cli.analysis.cost.timing import measure_peak_flops, peak_memory, seconds_per_step
from stvit_cli.models.accelerated import Accelerated
from stvit_cli.models.kernels import is_available, supports_dtype, use_kernels
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.inference import for_inference
from stvit_cli.models.precision import DTYPES
from stvit_cli.tasks.base import HasCompilableBlocks
from stvit_cli.utils.runtimes import require_runtimes

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
        precision: bf16 is autocast in training, and weights in bfloat16 for inference.
        compile: use ``torch.compile``.
        kernels: custom kernels; ``auto`` uses them where they are faster; see `use_kernels`.
        rounds: turns of each model.
        device: ``cpu`` or ``cuda``.
        runtimes: onnxruntime and openvino, to time the models in beside PyTorch, on a CPU; see `runtimes`.
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
    runtimes: tuple[str, ...] = ()


@dataclass
class Candidate:
    """A model that is ready to be timed.

    Attributes:
        name: for the report.
        step: runs one step.
        flops: multiply-adds of the forward pass for one image; None: not known.
        layout: memory layout.
        compile_seconds: duration of the first, compiling step.
        kernels: whether custom kernels ran in the step.
        served_by: what ran the model: custom kernels, or PyTorch and why, or another runtime.
        precision: what it computes in; None: that of the setting.
        in_pytorch: its memory can be measured.
    """

    name: str
    step: Callable[[], object]
    flops: int | None
    layout: str = ""
    compile_seconds: float | None = None
    kernels: bool = False
    served_by: str = "PyTorch"
    precision: str | None = None
    in_pytorch: bool = True


def measure(
    names: list[str], setting: Setting, files: Sequence[Path] = (), say: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, Any]]:
    """Measure the throughput of models in interleaved rounds.

    Args:
        names: models of this package, torchvision or timm.
        setting: what is timed.
        files: ONNX files to time in the runtimes of the setting beside them.
        say: called with what cannot be timed.

    Returns:
        For each name: images_per_second (median over the rounds), spread (images_per_second of the slowest and fastest round),
        ms_per_image, seconds_per_step, peak_memory_bytes (allocated during a step), share_of_peak (fraction of the machine's
        measured peak, see `peak_flops`), memory_layout, compile_seconds (duration of the first step if compiled), kernels
        (whether custom kernels ran), served_by (custom kernels, or PyTorch and why they did not run), machine (see
        `describe_machine`), and the setting. With runtimes also ``runtimes``: the same by runtime, such as ``openvino bf16``; for
        each file this alone.

    Raises:
        UserError: unknown model; a runtime that is unknown or not installed; a file that cannot be run.

    Example:
        >>> setting = Setting(image_size=(32, 32), batch_size=1, rounds=1)
        >>> measure(["stvit-nano"], setting)["stvit-nano"]["images_per_second"]  # doctest: +SKIP
        412.3
    """
    if not setting.runtimes:
        return time_in_turn([prepare(name, build(name), setting) for name in names], setting)
    from stvit_cli.analysis.cost import runtimes

    require_runtimes(setting.runtimes)
    with TemporaryDirectory(prefix="stvit-onnx-") as folder:
        own = [prepare(name, build(name), setting) for name in names]
        flops = {candidate.name: candidate.flops for candidate in own}
        sources = {str(path): path for path in files}
        for number, name in enumerate(names):
            path = Path(folder) / f"{number}.onnx"
            failure = runtimes.export(name, path, setting.batch_size, setting.image_size)
            if failure is None:
                sources[name] = path
            else:
                say(f"{name} is not timed in {', '.join(setting.runtimes)}: it cannot be exported as ONNX: {failure}")
        others, notes = {}, dict[str, None]()
        for name, path in sources.items():
            others[name] = list(_in_runtimes(name, path, flops.get(name), setting, lambda line: notes.update({line: None})))
        for note in notes:  # once, not for every model
            say(note)
        timed = time_in_turn([*own, *(candidate for group in others.values() for candidate in group)], setting)
    results = {name: timed[name] for name in names}
    for name, group in others.items():
        labels = {candidate.name: candidate.name.removeprefix(f"{name}, ") for candidate in group}
        results.setdefault(name, {})["runtimes"] = {label: timed[key] for key, label in labels.items()}
    return results


def _in_runtimes(name: str, path: Path, flops: int | None, setting: Setting, say: Callable[[str], None]) -> Iterator[Candidate]:
    """Yield an ONNX file in each runtime, as ``NAME, RUNTIME``, with PyTorch's number of threads."""
    from stvit_cli.analysis.cost import runtimes

    shape = runtimes.image_shape(path, setting.batch_size, setting.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).numpy()
    for runtime in setting.runtimes:
        for found in runtimes.runnables(path, runtime, images, torch.get_num_threads(), say):
            served_by = f"{runtime} {versions()[runtime]}"
            yield Candidate(
                f"{name}, {found.label}", found.step, flops, served_by=served_by, precision=found.precision, in_pytorch=False
            )


def time_in_turn(candidates: list[Candidate], setting: Setting) -> dict[str, dict[str, Any]]:
    """Measure prepared candidates in interleaved rounds; see `measure`."""
    memory = {candidate.name: _memory(candidate, setting.device) for candidate in candidates}
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    for _ in range(setting.rounds):
        for candidate in candidates:
            seconds[candidate.name].append(seconds_per_step(candidate.step, setting.device, at_least=TURN))
    precisions = {candidate.precision or setting.precision for candidate in candidates if candidate.flops is not None}
    peaks = {name: peak_flops(replace(setting, precision="bf16" if name == "bf16" else "fp32")) for name in precisions}
    described, results = describe_machine(setting.device), {}
    for candidate in candidates:
        precision = candidate.precision or setting.precision
        rates = sorted(setting.batch_size / second for second in seconds[candidate.name])
        median = statistics.median(rates)
        share = None
        if candidate.flops is not None:
            share = median * 2 * candidate.flops * (1 + BACKWARD * setting.train) / peaks[precision]
        results[candidate.name] = {
            "images_per_second": median,
            "spread": [rates[0], rates[-1]],
            "ms_per_image": 1e3 / median,
            "seconds_per_step": setting.batch_size / median,
            "peak_memory_bytes": memory[candidate.name],
            "share_of_peak": share,
            "memory_layout": candidate.layout,
            "batch_size": setting.batch_size,
            "mode": "train" if setting.train else "inference",
            "precision": precision,
            "compiled": setting.compile and candidate.in_pytorch,
            "compile_seconds": candidate.compile_seconds,
            "kernels": candidate.kernels,
            "served_by": candidate.served_by,
            "device": machine(setting.device),
            "machine": described,
        }
    return results


def prepare(name: str, model: nn.Module, setting: Setting) -> Candidate:
    """Optimize a model for the setting and choose the faster memory layout (channels-last if compiled).

    For inference a model is what `for_inference` makes of it, or, to be compiled, what `fuse` does. In bf16 a model of another
    library is also tried with its weights converted: under autocast they are converted at every call.

    Args:
        name: for the report.
        model: any model for images (B, C, H, W); it is moved and modified in place, apart from the fused copy.
        setting: what is timed.
    """
    flops = count_flops(model, setting.image_size, setting.in_chans).total
    forms, is_prepared = _forms(model, setting), not (setting.train or setting.compile)
    images = torch.randn(setting.batch_size, setting.in_chans, *setting.image_size, device=setting.device)
    steps, first_seconds = [], 0.0
    for form in forms:
        for layout in LAYOUTS[setting.compile :]:  # compiling for both layouts would take twice as long
            step = make_step(form, images, layout, setting, has_own_precision=is_prepared)
            first_seconds = seconds_per_step(step, setting.device)
            steps.append((min(seconds_per_step(step, setting.device) for _ in range(2)), form, layout))
    _, best, layout = min(steps, key=lambda found: found[0])
    step = make_step(best, images, layout, setting, has_own_precision=is_prepared)
    layout_name, compile_seconds = str(layout).removeprefix("torch."), first_seconds if setting.compile else None
    ran = ran_kernels(step)
    return Candidate(name, step, flops, layout_name, compile_seconds, ran, served_by(best, setting, ran=ran))


def _forms(model: nn.Module, setting: Setting) -> list[nn.Module]:
    """Return the forms of a model of which the fastest is timed."""
    device, dtype = torch.device(setting.device), DTYPES[setting.precision]
    if setting.train or setting.compile:
        model = (model if setting.train else fuse(model)).to(device).train(setting.train)
        use_kernels(model, device.type, setting.kernels, dtype=dtype, compiled=setting.compile, train=setting.train)
        if setting.compile:
            compile_in_place(model)
        return [model]
    fast = for_inference(model, device, setting.precision, kernels=setting.kernels if device.type == "cuda" else "auto")
    if setting.kernels != "auto" and device.type != "cuda":
        use_kernels(fast, device.type, setting.kernels, dtype=dtype)
    is_built_in = any(isinstance(module, Accelerated) for module in model.modules())
    return [fast] if setting.precision == "fp32" or is_built_in else [fast, _Converted(fuse(model).to(device, dtype))]


class _Converted(nn.Module):
    """A model with its weights in bfloat16, for images and outputs in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.bfloat16())
        return logits.float()


def served_by(model: nn.Module, setting: Setting, *, ran: bool) -> str:
    """Return what runs a built-in model in PyTorch: ``custom kernels``, or PyTorch and the reason why they do not.

    Args:
        model: as it is timed.
        setting: what is timed.
        ran: custom kernels ran in the step.
    """
    layers = [module for module in model.modules() if isinstance(module, Accelerated)]
    if ran:
        return "custom kernels"
    if not layers:
        return "PyTorch"
    if setting.kernels is False:
        why = "custom kernels are turned off"
    elif not is_available(setting.device):
        why = "there are no custom kernels here"
    elif all(layer.kernels is None for layer in layers):
        why = f"custom kernels are not faster on this {'CPU' if setting.device == 'cpu' else 'GPU'}"
    elif not supports_dtype(setting.device, DTYPES[setting.precision]):
        why = f"custom kernels do not compute in {setting.precision}"
    else:
        why = "custom kernels do not take these sizes"
    return f"PyTorch: {why}"


def ran_kernels(step: Callable[[], object]) -> bool:
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


def make_step(
    model: nn.Module, images: Tensor, layout: torch.memory_format, setting: Setting, *, has_own_precision: bool = False
) -> Callable[[], None]:
    """Return a function that runs one step on images (B, C, H, W) in a memory layout.

    In bf16 it runs under autocast, unless the model `has_own_precision` as one of `for_inference` has.
    """
    model.to(memory_format=layout)
    images = images.contiguous(memory_format=layout)

    def autocast() -> AbstractContextManager[Any]:
        is_cast = setting.precision == "bf16" and not has_own_precision
        return torch.autocast(setting.device, torch.bfloat16) if is_cast else nullcontext()

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
    """Measure the machine's peak on the device and in the precision of a setting; see `measure_peak_flops`."""
    return measure_peak_flops(setting.device, setting.precision)


def _memory(candidate: Candidate, device: str) -> int | None:
    """Run a step, the first of a model in another runtime, whose memory is not known."""
    if candidate.in_pytorch:
        return peak_memory(candidate.step, device)
    candidate.step()
    return None
