"""The roofline of a step on a GPU that need not be there: what bounds each operator, and the time that no implementation beats.

The operators are recorded without a GPU (`operator_trace`). Each takes at least its bytes over the memory's bandwidth, and at
least its FLOPs over the peak; the longer of the two bounds it. Their sum is the least time of the step on the device. The host
needs `LAUNCH_SECONDS` for each kernel, at the same time. A real step is slower than both; tensors that stay in the GPU's cache
from one operator to the next are the exception.

| form | operators |
|---|---|
| eager | PyTorch's, one after the other |
| compiled | neighbours in the program that are no convolution, matrix product or attention run as one generated kernel |
| kernels | PyTorch's and the custom kernels, as `models.kernels.triton` implements them |
| compiled, kernels | both |
| products | convolutions, matrix products and attention alone, as if all else were computed within them |

A generated kernel reads each of its inputs once and writes what is used after it. A batch norm in training begins a new one: it
needs its statistics first. Convolutions that are computed by the vector units (depth-wise) are none of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from stvit_cli.analysis.cost.gpu_functions import GpuFunctions, GpuKernels
from stvit_cli.analysis.cost.operator_trace import Operator, OperatorTrace
from stvit_cli.analysis.cost.profile import build, require_image_size
from stvit_cli.errors import UserError
from stvit_cli.models.accelerated import Accelerated
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.precision import DTYPES
from stvit_cli.utils.text import did_you_mean

LAUNCH_SECONDS = 5e-6  # for one kernel from eager PyTorch; an assumption, to be replaced by a measurement


@dataclass(frozen=True)
class Gpu:
    """Peaks of a GPU by its data sheet.

    Attributes:
        title: its name.
        matrix: FLOP/s of dense matrix products by precision, without sparsity. For fp32 as PyTorch computes by default: matrix
            products in float32, though convolutions may use TF32.
        vector: FLOP/s of the vector units in float32.
        bandwidth: bytes per second of its memory.
        source: the data sheet.
    """

    title: str
    matrix: dict[str, float]
    vector: float
    bandwidth: float
    source: str


GPUS = {
    "h100": Gpu(
        "NVIDIA H100 SXM", {"bf16": 989.4e12, "fp32": 66.9e12}, 66.9e12, 3.35e12, "https://www.nvidia.com/en-us/data-center/h100/"
    ),
    "h200": Gpu(
        "NVIDIA H200 SXM", {"bf16": 989.4e12, "fp32": 66.9e12}, 66.9e12, 4.8e12, "https://www.nvidia.com/en-us/data-center/h200/"
    ),
    "a100": Gpu(
        "NVIDIA A100 SXM 80 GB",
        {"bf16": 312e12, "fp32": 19.5e12},
        19.5e12,
        2.039e12,
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
}


def find_gpu(name: str) -> Gpu:
    """Return a GPU of `GPUS` by name.

    Raises:
        UserError: unknown name.
    """
    if name.lower() not in GPUS:
        raise UserError(f"--roofline {name}: no such GPU.{did_you_mean(name.lower(), list(GPUS))} There are: {', '.join(GPUS)}.")
    return GPUS[name.lower()]


def trace_step(
    model: nn.Module,
    image_size: tuple[int, int] = (224, 224),
    batch_size: int = 128,
    in_chans: int = 3,
    precision: Literal["fp32", "bf16"] = "bf16",
    train: bool = True,
    kernels: bool = False,
) -> list[Operator]:
    """Record the operators of a step as a GPU would run them.

    Args:
        model: on the meta device; set to training or evaluation mode.
        image_size: height and width in pixels.
        batch_size: images.
        in_chans: channels of the images.
        precision: bf16 in training is autocast, with weights in float32; in inference the weights are bfloat16 too.
        train: forward, backward and AdamW; otherwise a forward pass.
        kernels: built-in layers use the custom kernels.

    Example:
        >>> with torch.device("meta"):
        ...     model = nn.Conv2d(3, 8, 1, bias=False)
        >>> (product,) = trace_step(model, (4, 4), batch_size=2, precision="fp32", train=False)
        >>> product.name, product.flops, product.bytes
        ('convolution', 1536, 1504)
    """
    dtype = DTYPES[precision]
    autocast = dtype if train and precision == "bf16" else None
    if not train:
        model = model.to(dtype)
    for module in model.train(train).modules():
        if isinstance(module, Accelerated):
            module.kernels = GpuKernels(autocast) if kernels else None
    images = torch.empty(batch_size, in_chans, *image_size, device="meta").contiguous(memory_format=torch.channels_last)
    images = images if train else images.to(dtype)
    trace = OperatorTrace()
    with trace, torch.set_grad_enabled(train):
        with GpuFunctions(autocast):
            y = model(images)
        if train:
            loss = y.float().square().mean()
            trace.phase = "backward"
            loss.backward()
            trace.phase = "optimizer"
            trace.add_optimizer(model)
    return trace.operators


def fuse_neighbours(operators: Sequence[Operator]) -> list[Operator]:
    """Return the operators of a compiled step: runs of fusible operators as one kernel each (see the module).

    A result that is read again later, in the backward pass too, is written; nothing is computed twice.
    """
    last_read: dict[int, int] = {}
    for index, operator in enumerate(operators):
        last_read.update(dict.fromkeys(operator.reads, index))
    fused: list[Operator] = []
    run: list[Operator] = []

    def close(end: int) -> None:
        if run:
            fused.append(_fuse(run, last_read, end))
            run.clear()

    for index, operator in enumerate(operators):
        starts_new = operator.family == "batch norm" and operator.extra_bytes
        if not operator.fusible or starts_new or (run and run[0].phase != operator.phase):
            close(index)
        if operator.fusible:
            run.append(operator)
        else:
            fused.append(operator)
    close(len(operators))
    return fused


def _fuse(run: list[Operator], last_read: dict[int, int], end: int) -> Operator:
    """Return one operator for a run that ends before index ``end`` of the step."""
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for operator in run:
        for key, size in operator.reads.items():
            if key not in writes:
                reads[key] = max(reads.get(key, 0), size)
        for key, size in operator.writes.items():
            writes[key] = max(writes.get(key, 0), size)
    kept = {key: size for key, size in writes.items() if last_read.get(key, end) >= end}
    extra = sum(operator.extra_bytes for operator in run)
    launches = 1 + bool(extra)
    return Operator("generated", "generated by the compiler", run[0].phase, reads, kept, extra, launches=launches, fusible=True)


def least_seconds(operator: Operator, gpu: Gpu, precision: str) -> tuple[float, str]:
    """Return the least time of an operator, and what bounds it: ``memory``, ``matrix`` or ``vector`` units.

    Example:
        >>> copy = Operator("clone", "copy", "forward", {0: 335}, {1: 335}, flops=0)
        >>> seconds, bound = least_seconds(copy, GPUS["h100"], "bf16")
        >>> round(seconds * 1e12), bound
        (200, 'memory')
    """
    peak = gpu.matrix[precision] if operator.unit == "matrix" else gpu.vector
    computing, moving = operator.flops / peak, operator.bytes / gpu.bandwidth
    return (computing, operator.unit) if computing > moving else (moving, "memory")


def roofline(
    names: list[str],
    gpu_name: str,
    image_size: tuple[int, int] = (224, 224),
    batch_size: int = 128,
    precision: Literal["fp32", "bf16"] = "bf16",
    train: bool = True,
) -> list[dict[str, Any]]:
    """Return the roofline of a step of models with 1000 classes, without stochastic depth.

    Args:
        names: models of this package, torchvision or timm.
        gpu_name: a key of `GPUS`.
        image_size: height and width in pixels.
        batch_size: images in a step.
        precision: see `trace_step`.
        train: forward, backward and AdamW, or a forward pass of the fused model.

    Returns:
        For each model: model, gpu, batch_size, precision, mode, and forms: for each form (see the module) flops, bytes, launches,
        device_ms (the sum of the operators' least times), launch_ms (of the host), share_of_peak (FLOPs of the products over what
        the peak would compute in device_ms), images_per_second (at the longer of the two times), and operators: rows by phase and
        family with calls, launches, flops, bytes, intensity (FLOPs per byte), bound and ms.

    Raises:
        UserError: unknown model or GPU.
    """
    gpu = find_gpu(gpu_name)
    require_image_size(image_size)
    rows = []
    for name in names:
        with torch.device("meta"):
            model = without_stochastic_depth(build(name))
        if not train:
            model = fuse(model)
        has_kernels = any(isinstance(module, Accelerated) for module in model.modules())
        forms: dict[str, list[Operator]] = {}
        for kernels in (False, True)[: 1 + has_kernels]:
            step = trace_step(model, image_size, batch_size, precision=precision, train=train, kernels=kernels)
            forms["kernels" if kernels else "eager"] = step
            forms["compiled, kernels" if kernels else "compiled"] = fuse_neighbours(step)
        products = [operator for operator in forms["eager"] if operator.flops and operator.unit == "matrix"]
        forms["products"] = [replace(operator, launches=0) for operator in products]
        flops = sum(operator.flops for operator in products)
        rows.append(
            {
                "model": name,
                "gpu": gpu.title,
                "image_size": list(image_size),
                "batch_size": batch_size,
                "precision": precision,
                "mode": "train" if train else "inference",
                "forms": {form: _describe(step, gpu, precision, batch_size, flops) for form, step in forms.items()},
            }
        )
    return rows


def without_stochastic_depth(model: nn.Module) -> nn.Module:
    """Set the rates of stochastic depth and dropout of a model to 0, in place: they differ from recipe to recipe."""
    for module in model.modules():
        for rate in ("p", "drop_prob"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def _describe(step: list[Operator], gpu: Gpu, precision: str, batch_size: int, flops: int) -> dict[str, Any]:
    groups: dict[tuple[str, str], list[Operator]] = {}
    for operator in step:
        groups.setdefault((operator.phase, operator.family), []).append(operator)
    rows: list[dict[str, Any]] = []
    for (phase, family), group in groups.items():
        bounds: dict[str, float] = {}
        for operator in group:
            seconds, bound = least_seconds(operator, gpu, precision)
            bounds[bound] = bounds.get(bound, 0.0) + seconds
        moved, computed = sum(operator.bytes for operator in group), sum(operator.flops for operator in group)
        rows.append(
            {
                "phase": phase,
                "family": family,
                "calls": len(group),
                "launches": sum(operator.launches for operator in group),
                "flops": computed,
                "bytes": moved,
                "intensity": computed / moved if moved else 0.0,
                "bound": max(bounds, key=lambda bound: bounds[bound]),
                "ms": 1e3 * sum(bounds.values()),
            }
        )
    device_ms, launches = sum(row["ms"] for row in rows), sum(row["launches"] for row in rows)
    launch_ms = 1e3 * launches * LAUNCH_SECONDS
    return {
        "flops": sum(row["flops"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "launches": launches,
        "device_ms": device_ms,
        "launch_ms": launch_ms,
        "share_of_peak": flops / (gpu.matrix[precision] * device_ms / 1e3) if device_ms else 0.0,
        "images_per_second": 1e3 * batch_size / max(device_ms, launch_ms),
        "operators": rows,
    }
