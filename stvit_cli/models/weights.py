"""Weight files: ours (safetensors with a description) and the authors' published layout (.pth), read without running code."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from stvit_cli.errors import UserError, nearest

PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put before a key
CONTAINERS = ("model", "model_ema", "state_dict")  # where a checkpoint keeps its weights
STEM_WEIGHT = "stem.0.conv.weight"

# The published names and ours. The first match is taken; a name that none matches is ours already or foreign.
RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^patch_embed\.proj\.(\d+)\.", "stem.{layer}."),
        (r"^layers\.(\d+)\.downsample\.proj\.0\.", "stages.{next_stage}.downsample.conv."),
        (r"^layers\.(\d+)\.downsample\.proj\.1\.", "stages.{next_stage}.downsample.norm."),
        (r"^layers\.(\d+)\.", "stages.{stage}."),
    )
)
BLOCK_RENAMES = (
    (".pos_embed.conv.", ".cpe.conv."),
    (".norm1.norm.", ".norm1."),
    (".attn.stoken_refine.", ".attn."),
    (".mlp2.", ".mlp."),
    (".gamma_1", ".ls1.gamma"),
    (".gamma_2", ".ls2.gamma"),
)
IDENTITY_KERNELS = (".attn.unfold.weights", ".attn.fold.weights")


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself; kept in its metadata, so that it can be used without any other word."""

    model: str
    task: str = "classification"
    num_classes: int = 1000
    class_names: tuple[str, ...] = ()
    in_chans: int = 3
    image_size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float | None = None
    interpolation: str = "bicubic"
    recipe_hash: str = ""
    licence: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did. ``renamed`` maps the file's names to ours; ``reset`` was left as initialised on request."""

    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)


def save_weights(path: str | Path, weights: nn.Module | dict[str, Tensor], info: WeightsInfo) -> None:
    """Write a safetensors file with ``info`` in its metadata; to the side, flushed, then renamed.

    Raises:
        OSError: the file cannot be written; an older one is intact.
    """
    state_dict = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # One copy in plain memory order: equal weights give equal files whatever layout they are used in.
    tensors = {name: tensor.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format) for name, tensor in state_dict.items()}
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    try:
        save_file(tensors, aside, metadata={"format": "pt", "stvit": json.dumps(asdict(info))})
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_info(path: str | Path) -> WeightsInfo:
    """Return what the safetensors file says of itself.

    Raises:
        UserError: the file is missing, damaged, or not one of ours.
    """
    with _opened(Path(path)) as file:
        text = (file.metadata() or {}).get("stvit")
    if text is None:
        raise UserError(f"{path}: a safetensors file, but not written by stvit: it has no description of its model.")
    values: dict[str, Any] = json.loads(text)
    return WeightsInfo(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the file's tensors under our names, and the names that were changed (theirs to ours).

    Reads ours and the published layout, as ``.safetensors`` or ``.pth``. Nothing in the file is executed.

    Raises:
        UserError: missing, damaged, or holding no weights.
    """
    path = Path(path)
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state_dict: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    for name, tensor in raw.items():
        ours = our_name(name)
        if ours is None:
            continue
        state_dict[ours] = tensor.flatten() if ours.endswith(".gamma") else tensor
        if ours != name:
            renamed[name] = ours
    return state_dict, renamed


def our_name(name: str) -> str | None:
    """Return our name for a published one; None for the identity kernels of unfold and fold, which are no weights here."""
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    if name.endswith(IDENTITY_KERNELS):
        return None
    for pattern, target in RENAMES:
        if match := pattern.match(name):
            number, rest = int(match[1]), name[match.end() :]
            if target.startswith("stem"):  # conv, GELU, norm: three places of the published Sequential for each layer
                rest = ("norm." if number % 3 else "conv.") + rest
            name = target.format(layer=number // 3, stage=number, next_stage=number + 1) + rest
            break
    for theirs, ours in BLOCK_RENAMES:
        name = name.replace(theirs, ours)
    return name


def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> LoadReport:
    """Load a weights file into ``model`` and report every name.

    Everything is checked before the first weight changes. With ``new_head`` a classifier of another size stays as initialised
    and a stem for another number of channels is adapted (the kernels repeated and scaled, as timm does).

    Raises:
        UserError: the file cannot be read, is of another architecture, or has tensors of other shapes.
    """
    state_dict, renamed = read_state_dict(path)
    own = model.state_dict()
    reset: list[str] = []
    if new_head:
        _fit_stem(state_dict, own)
        reset = [name for name in ("head.weight", "head.bias") if name in own and name in state_dict and own[name].shape != state_dict[name].shape]
        for name in reset:
            del state_dict[name]
    common = [name for name in own if name in state_dict]
    if len(common) < len(own) // 2:
        known = nearest(next(iter(state_dict), ""), own)
        raise UserError(f"{path}: these are no weights of this model: {len(common)} of its {len(own)} tensors are there.{known}")
    wrong = [name for name in common if own[name].shape != state_dict[name].shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: {name} is {tuple(state_dict[name].shape)}, the model's is {tuple(own[name].shape)} ({len(wrong)} such tensors).\n"
            "Give the model that the file was made for, or fine-tune to make a new classifier."
        )
    model.load_state_dict({name: state_dict[name] for name in common}, strict=False)
    return LoadReport(
        loaded=common,
        renamed=renamed,
        missing=[name for name in own if name not in state_dict and name not in reset],
        unexpected=[name for name in state_dict if name not in own],
        reset=reset,
    )


def _fit_stem(state_dict: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    if STEM_WEIGHT in state_dict and STEM_WEIGHT in own and state_dict[STEM_WEIGHT].shape[1] == 3:
        state_dict[STEM_WEIGHT] = adapt_input_conv(own[STEM_WEIGHT].shape[1], state_dict[STEM_WEIGHT])


def _require_file(path: Path) -> None:
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"{path}: no such weights file.{near}")


def _opened(path: Path) -> Any:
    _require_file(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({error}).") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    _require_file(path)
    try:
        # The authors' checkpoints hold an argparse.Namespace; nothing else beyond tensors and plain values is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a checkpoint that can be read safely, or a damaged one ({first_line[:120]}).") from error
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: holds no weights: expected a state dict, or a checkpoint with one under {', '.join(CONTAINERS)}.")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
