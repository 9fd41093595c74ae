"""Read checkpoints of ``torch.save`` (.pth) without executing code in them.

A pickle is a program. It is read by `torch.load` with ``weights_only=True``; beside tensors and simple values one class is
allowed, `argparse.Namespace`, in which the authors' script keeps its arguments. There is no fallback.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stvit_cli.errors import UserError
from stvit_cli.recipe.field_types import MAX_SIDE
from stvit_cli.utils.machine_failures import machine_failure
from stvit_cli.utils.text import shortened

# The keys that hold the weights of a checkpoint, the first one found is read. state_dict_ema is timm's.
CONTAINERS = ("model", "model_ema", "state_dict", "state_dict_ema")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
PROGRAM_PARTS = ("constants.pkl", "archive_format")  # of TorchScript and .pt2 archives


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a checkpoint under their keys in the file.

    Attributes:
        tensors: the weights.
        container: the key that held them; empty for a bare state dict.
        others: the other keys of the file that hold weights.
        image_size: side of the images in pixels, if the file has the arguments of the authors' script.
    """

    tensors: dict[str, Tensor]
    container: str = ""
    others: tuple[str, ...] = ()
    image_size: int | None = None


def read_checkpoint(path: Path, container: str | None = None) -> Checkpoint:
    """Read a checkpoint, its tensors memory-mapped.

    Args:
        path: the file.
        container: the key of the weights to read from a file with several (``model_ema``).

    Raises:
        UserError: the file is damaged, has no weights, or more than weights and simple values.
    """
    try:
        is_archive = _check_beginning(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except UserError:
        raise
    except Exception as error:  # a damaged or malicious file can fail in any way
        if machine_failure(error) is not None:
            raise
        raise UserError(f"{path}: {_reason(error)}") from error
    there = {key: content[key] for key in CONTAINERS if _is_state_dict(content.get(key))} if isinstance(content, dict) else {}
    if container is not None and container not in there:
        raise UserError(f"{path}: no weights under '{container}'. Found: {', '.join(there) or 'a bare state dict, or none'}.")
    name = container or next(iter(there), "")
    state_dict = there.get(name, content)
    if not _is_state_dict(state_dict):
        raise UserError(f"{path}: has no weights: expected a state dict, or a checkpoint with one under {', '.join(CONTAINERS)}.")
    tensors = {key: value for key, value in state_dict.items() if isinstance(key, str) and isinstance(value, Tensor)}
    _check_tensors(path, tensors)
    others = tuple(key for key in there if key != name)
    return Checkpoint(tensors, name, others, _image_size(content.get("args")))


def _check_beginning(path: Path) -> bool:
    """Return whether the file is an archive (checkpoints since 2020) and not a bare pickle; refuse other files."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: truncated: the end of the archive is missing. Download the file again.")
        _check_archive(path)
        return True
    if not head.startswith(b"\x80"):
        found = f"it starts with {head!r}" if head else "it is empty"
        raise UserError(f"{path}: not a checkpoint: {found}. Expected a .pth file of torch.save, or .safetensors.")
    return False


def _check_archive(path: Path) -> None:
    """Refuse an archive that `torch.save` would not write: programs, compressed (thus of any size), or damaged parts."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = {part.filename.split("/", 1)[-1] for part in parts}
        if "data.pkl" not in names or names.intersection(PROGRAM_PARTS):
            raise UserError(
                f"{path}: not a checkpoint, but a program (.pt2, TorchScript) or another archive. Expected a .pth file."
            )
        if (
            any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            or sum(p.file_size for p in parts) > path.stat().st_size
        ):
            raise UserError(f"{path}: compressed, or larger than the file, which torch.save never writes.")
        damaged = archive.testzip()  # torch.load does not check the checksums
    if damaged is not None:
        raise UserError(f"{path}: damaged: the checksum of {damaged} is wrong. Download the file again.")


def _check_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not dense numbers on a CPU: useless as weights, and able to fail or to grow when copied."""
    for name, tensor in tensors.items():
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.dtype not in DTYPES:
            found = f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}"
            raise UserError(f"{path}: {shortened(name)} is not a dense tensor of numbers ({found}).")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {shortened(name)} claims to be larger than its data in the file.")


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _image_size(arguments: Any) -> int | None:
    size = getattr(arguments, "input_size", None)
    return size if type(size) is int and 32 <= size <= MAX_SIDE else None


def _reason(error: Exception) -> str:
    """Return one line on why a file was not read; of torch's long text on unsafe files, the class that was found."""
    text = str(error)
    if found := re.search(r"(?:GLOBAL|class|type|function) ([\w.]+\.[\w.]+)", text):
        return f"holds {found[1]}, which is not a weight and could run code. Expected tensors and simple values."
    detail = "" if "weights_only" in text else (text.splitlines() or [""])[0].split(". ")[0][:120].rstrip(".")
    return f"a damaged checkpoint, or one that cannot be read safely ({detail or type(error).__name__}). Download the file again."
