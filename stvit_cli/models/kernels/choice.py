"""Which layers run by the custom kernels on a GPU: those that were measured to be faster with them, on this GPU.

A layer is measured in its eager form and with the kernels, forward and backward for training, forward alone for inference: once
for each kind of layer (its class and widths) and each GPU, versions and precision. The result is kept in the user's cache. Where
a kernel cannot be compiled or run, its layers keep their eager form, and a warning says so once. As `triton.autotune` and
PyTorch's compiler do, but with PyTorch's operators among the candidates.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stvit_cli.models.accelerated import Accelerated, Kernels
from stvit_cli.models.layers import ConvFFN, ConvPosEnc
from stvit_cli.models.super_token import SuperTokenAttention
from stvit_cli.utils.files import cache_dir, replace_file
from stvit_cli.utils.strict_json import dumps, read_object

logger = logging.getLogger(__name__)

Step = Callable[[], None]
Timer = Callable[[Step], float]
"""Returns the milliseconds of a step."""

GAIN = 1.03
"""The kernels are chosen where they are faster by this factor: below it lies what two measurements of one program differ by."""
NUMBERS = 2**25
"""Size of the widest tensor of a measured layer: far beyond the GPU's caches, as in training."""
ROUNDS = 2
"""How often each form is timed, in turns; the fastest counts."""


@dataclass(frozen=True)
class Setting:
    """What a measurement holds for, beside the kind of layer.

    Attributes:
        device: the GPU.
        dtype: what a step computes in: float32, or that of autocast.
        compiled: the layers are compiled by `torch.compile`.
        train: a step is forward and backward; False: forward alone.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    train: bool = True

    @property
    def section(self) -> str:
        """The part of a cache file that holds its milliseconds; a file of before inference was measured has the first alone."""
        return "milliseconds" if self.train else "inference milliseconds"


def kind_of(layer: Accelerated) -> str:
    """Return the kind of a layer: layers of a kind are equally fast on equal tokens.

    Example:
        >>> kind_of(SuperTokenAttention(64, num_heads=2, grid_size=8))
        'SuperTokenAttention 64, 2 heads, grid 8 x 8, 1 iterations'
    """
    name = type(layer).__name__
    if isinstance(layer, SuperTokenAttention):
        h, w = layer.grid_size
        return f"{name} {channels_of(layer)}, {layer.num_heads} heads, grid {h} x {w}, {layer.num_iters} iterations"
    if isinstance(layer, ConvFFN):
        return f"{name} {channels_of(layer)}, {layer.fc1.out_channels} hidden"
    return f"{name} {channels_of(layer)}"


def channels_of(layer: Accelerated) -> int:
    """Return the number of channels of a layer's tokens."""
    return next(conv.in_channels for conv in layer.modules() if isinstance(conv, nn.Conv2d))


def served(model: nn.Module) -> list[Accelerated]:
    """Return the layers of a model that have a kernel on a GPU, without those inside another such layer.

    Attention among all tokens has none there, as PyTorch's is fused already.
    """

    def has_kernel(layer: Accelerated) -> bool:
        if isinstance(layer, SuperTokenAttention):
            return layer.grid_size != (1, 1) and layer.num_iters > 0 and not layer.association_grad
        return not isinstance(layer, ConvFFN) or isinstance(layer.conv, ConvPosEnc)

    layers = [module for module in model.modules() if isinstance(module, Accelerated)]
    inner = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if id(layer) not in inner and has_kernel(layer)]


def attach(model: nn.Module, kinds: Iterable[str], kernels: Kernels) -> tuple[str, ...]:
    """Attach kernels to the layers of these kinds, and detach them from all others; return the kinds that the model has."""
    for module in model.modules():
        if isinstance(module, Accelerated):
            module.kernels = None
    wanted, found = set(kinds), set()
    for layer in served(model):
        if kind_of(layer) in wanted:
            _use(layer, kernels)
            found.add(kind_of(layer))
    return tuple(sorted(found))


def kinds_with_kernels(model: nn.Module) -> tuple[str, ...]:
    """Return the kinds of layers of a model that have kernels attached."""
    return tuple(sorted({kind_of(layer) for layer in served(model) if layer.kernels is not None}))


def choose(model: nn.Module, setting: Setting, kernels: Kernels, timer: Timer | None = None) -> tuple[str, ...]:
    """Return the kinds of layers of a model that are faster with the kernels; measure those that are not in the cache.

    Args:
        model: any model with STViT layers; it is not changed.
        setting: what the choice is for.
        kernels: what is measured against the eager form.
        timer: times a step; default by events of the GPU.
    """
    kinds = {kind_of(layer): layer for layer in served(model)}
    if not kinds:
        return ()
    identity = _identity(setting)
    path = _path(identity)
    known = _read(path, identity, setting.section)
    missing = {kind: layer for kind, layer in kinds.items() if kind not in known}
    if missing:
        purpose = "training" if setting.train else "inference"
        what = f"{len(missing)} kinds of layers for {purpose} in {str(setting.dtype).removeprefix('torch.')}"
        duration = "some minutes, as they are compiled" if setting.compiled else "some seconds"
        logger.info("Measuring the custom kernels on %s, once: %s, %s", identity["gpu"], what, duration)
        found = _measure(missing, setting, kernels, timer or gpu_time)
        if found:  # what another process has stored meanwhile counts for both
            known = known | found | _read(path, identity, setting.section)
            _write(path, identity, setting.section, known)
    return tuple(sorted(kind for kind in kinds if kind in known and known[kind]["kernels"] * GAIN < known[kind]["eager"]))


def gpu_time(step: Step) -> float:
    """Return the median milliseconds of a step by events of the GPU, whose caches are emptied before each."""
    from triton.testing import do_bench

    return float(do_bench(step, warmup=10, rep=40, return_mode="median"))


def _measure(layers: dict[str, Accelerated], setting: Setting, kernels: Kernels, timer: Timer) -> dict[str, dict[str, float]]:
    """Return milliseconds by kind and form. A kind that cannot be measured is missing, and the first reason is a warning."""
    result: dict[str, dict[str, float]] = {}
    failure = ""
    gpus = [setting.device] if setting.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):  # a run's random numbers do not depend on whether it has measured
        for kind, layer in layers.items():
            try:
                result[kind] = _measure_layer(layer, setting, kernels, timer)
            except Exception as error:  # such as a compiler's
                failure = failure or f"{kind} cannot run by the custom kernels ({_first_line(error)})"
    gc.collect()
    if gpus:
        torch.cuda.empty_cache()
    if failure:
        logger.warning("%s. The eager form runs instead.", failure)
    return result


def _measure_layer(layer: Accelerated, setting: Setting, kernels: Kernels, timer: Timer) -> dict[str, float]:
    tokens = _tokens(layer, setting)
    steps = {}
    for form, used in (("eager", None), ("kernels", kernels)):
        timed = copy.deepcopy(layer).to(setting.device).train(setting.train)
        _use(timed, used)
        steps[form] = _step(timed, tokens, setting)
        steps[form]()  # compiles
    rounds = [{form: timer(step) for form, step in steps.items()} for _ in range(ROUNDS)]
    return {form: min(times[form] for times in rounds) for form in steps}


def _tokens(layer: Accelerated, setting: Setting) -> Tensor:
    """Return tokens (B, C, H, W) for a layer, seven cells down and across as in the paper's models at 224 pixels."""
    h, w = layer.grid_size if isinstance(layer, SuperTokenAttention) and layer.grid_size != (1, 1) else (4, 4)
    height, width = 7 * h, 7 * w
    widest = max(conv.out_channels for conv in layer.modules() if isinstance(conv, nn.Conv2d))
    images = max(1, NUMBERS // (widest * height * width))
    x = torch.randn(images, channels_of(layer), height, width, device=setting.device, dtype=setting.dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def _step(layer: nn.Module, tokens: Tensor, setting: Setting) -> Step:
    """Return a function that runs a layer forward and, to train, backward."""
    function = torch.compile(layer, dynamic=False) if setting.compiled else layer
    mixed = setting.dtype != torch.float32
    upstream = torch.randn_like(tokens)

    def autocast() -> torch.autocast:
        return torch.autocast(setting.device.type, setting.dtype if mixed else torch.bfloat16, enabled=mixed)

    def forward() -> None:
        with torch.inference_mode(), autocast():
            function(tokens)

    def step() -> None:
        tokens.grad = None
        layer.zero_grad(set_to_none=True)
        with autocast():
            y = function(tokens)
        y.backward(upstream.to(y.dtype))

    return step if setting.train else forward


def _use(layer: Accelerated, kernels: Kernels | None) -> None:
    for part in layer.modules():
        if isinstance(part, Accelerated):
            part.kernels = kernels


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _identity(setting: Setting) -> dict[str, Any]:
    """Return all that a measurement depends on beside the kind of layer."""
    from stvit_cli import __version__

    return {
        **describe_gpu(setting.device),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "stvit": __version__,
        "sources": _sources(),
        "dtype": str(setting.dtype).removeprefix("torch."),
        "compiled": setting.compiled,
    }


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Return name, compute capability and driver of a GPU, for the cache and for a benchmark's table."""
    if device.type != "cuda":
        return {"gpu": device.type}
    properties = torch.cuda.get_device_properties(device)
    version = getattr(torch._C, "_cuda_getDriverVersion", None)  # only some builds of PyTorch have it
    driver = version() if version is not None and torch.version.hip is None else 0
    return {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}", "driver": driver}


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def _sources() -> str:
    """Return a hash of the kernels' sources."""
    files = sorted(Path(__file__).with_name("triton").glob("*.py"))
    return hashlib.blake2b(b"".join(path.read_bytes() for path in files), digest_size=8).hexdigest()


def _path(identity: dict[str, Any]) -> Path | None:
    key = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()
    try:
        return cache_dir() / "kernels" / f"choice-{key}.json"
    except OSError:
        return None


def _read(path: Path | None, identity: dict[str, Any], section: str) -> dict[str, dict[str, float]]:
    """Return the milliseconds by kind and form in a section of the cache; without what is missing or damaged."""
    content = read_object(path) if path is not None else {}
    layers = content.get(section)
    if content.get("identity") != identity or not isinstance(layers, dict):
        return {}
    return {kind: times for kind, times in layers.items() if _are_times(times)}


def _are_times(times: object) -> bool:
    forms = ("eager", "kernels")
    return isinstance(times, dict) and all(isinstance(times.get(form), float) and times[form] > 0 for form in forms)


def _write(path: Path | None, identity: dict[str, Any], section: str, known: dict[str, dict[str, float]]) -> None:
    if path is None:
        return
    sections = [Setting(torch.device("cpu"), train=train).section for train in (True, False)]
    content = {name: _read(path, identity, name) for name in sections} | {section: known}
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_file(path, dumps({"identity": identity, **content}, indent=1).encode() + b"\n")
    except OSError as error:
        logger.info("%s cannot be written (%s); the kernels are measured again next time.", path, error.strerror or error)
