"""Checkpoints: a directory of safetensors files and one JSON file, complete or absent.

``checkpoints/step_00001250/`` holds ``state.json`` (written last, with the size and SHA-256 of every other file and of itself)
and one safetensors file for each group of tensors. It is written under another name, flushed, and renamed when complete.
Nothing in it is pickled: reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from stvit_cli.engine.damage import DamagedError, check_envelope
from stvit_cli.errors import UserError
from stvit_cli.utils.files import remove_leftovers, sync_directory, write_synced, writing
from stvit_cli.utils.machine_failures import machine_failure

Tensors = Mapping[str, Tensor]

FORMAT = 1
STATE = "state.json"
NAME = re.compile(r"step_(\d{1,15})$")


@dataclass(frozen=True)
class Checkpoint:
    """What was read: groups of tensors (on the CPU), the state, and the damaged checkpoints that were skipped, with reasons."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    skipped_damaged: dict[Path, str] = field(default_factory=dict)


def save(folder: Path, step: int, groups: Mapping[str, Tensors], state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint, then delete all but the newest ``keep``.

    Args:
        folder: where the checkpoints are.
        step: how many steps were taken.
        groups: tensors by group and name; each group becomes a file.
        state: anything JSON can hold exactly.
        keep: how many checkpoints stay.

    Raises:
        UserError: the directory cannot be written or the disk is full; the older checkpoints are intact.
    """
    path = folder / f"step_{step:08d}"
    temporary = folder / f".{path.name}.writing"
    with writing(path):
        remove_leftovers(folder)
        try:
            temporary.mkdir(parents=True)
            files = {}
            for group, tensors in groups.items():
                data = safetensors.torch.save({name: _plain(tensor) for name, tensor in tensors.items()})
                write_synced(temporary / f"{group}.safetensors", data)
                files[f"{group}.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            counts = {group: len(tensors) for group, tensors in groups.items()}
            content = {"format": FORMAT, "step": step, "files": files, "tensors": counts, "state": dict(state)}
            write_synced(temporary / STATE, json.dumps(content | {"sha256": _digest(content)}, indent=1).encode())
            sync_directory(temporary)
            if path.exists():  # a damaged one that was skipped when the run was resumed
                quarantine(path)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(folder)
        for old in checkpoints(folder)[:-keep]:
            _remove(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the directories that claim to be checkpoints, the newest last."""
    found = [path for path in folder.glob("step_*") if NAME.match(path.name) and path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def load_newest(folder: Path, check: Callable[[Checkpoint], None] | None = None) -> Checkpoint:
    """Read the newest complete checkpoint.

    Args:
        folder: the checkpoints of a run.
        check: raises DamagedError where the content is not what the run needs; then an older one is read.

    Raises:
        UserError: there is none, or every one is damaged.
    """
    candidates = checkpoints(folder)
    if not candidates:
        raise UserError(
            f"{folder} holds no checkpoint, so there is nothing to resume.\nStart the run again, into another directory."
        )
    skipped_damaged: dict[Path, str] = {}
    for path in reversed(candidates):
        try:
            tensors, content = read(path)
            found = Checkpoint(path, content["step"], tensors, content["state"], skipped_damaged)
            if check is not None:
                check(found)
        except DamagedError as error:
            skipped_damaged[path] = str(error)
            continue
        return found
    reasons = [f"{path.name}: {reason}" for path, reason in skipped_damaged.items()]
    raise UserError("\n".join([f"Every checkpoint in {folder} is damaged:", *reasons[:4]]))


def newest_micro_batch_size(folder: Path) -> int | None:
    """Return the size of a micro-batch in the newest checkpoint, which may be damaged; None where it does not say it."""
    newest = checkpoints(folder)[-1:]
    try:
        size = json.loads(_content_of(newest[0], STATE))["state"]["micro_batch_size"]
        return size if type(size) is int and size > 0 else None
    except (DamagedError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read and check one checkpoint: its tensors by group, and the content of its ``state.json``. Raises DamagedError."""
    try:
        content = json.loads(_content_of(path, STATE))
        claimed = content.pop("sha256")
        if claimed != _digest(content):
            raise DamagedError(f"{STATE} is not as it was written")
        if content["format"] != FORMAT and type(content["format"]) is int:
            raise UserError(f"{path} has format {content['format']}; this version of stvit reads format {FORMAT}.")
        check_envelope(content, int(match[1]) if (match := NAME.match(path.name)) else None)
        tensors = {}
        for name, expected in content["files"].items():
            data = _content_of(path, name)
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise DamagedError(f"{name} is not as it was written ({len(data)} of {expected['bytes']} bytes)")
            group = name.removesuffix(".safetensors")
            tensors[group] = safetensors.torch.load(data)
            count = content.get("tensors", {}).get(group, len(tensors[group]))  # version 0.1.0 did not count them
            if len(tensors[group]) != count:
                raise DamagedError(f"{name} holds {len(tensors[group])} of {count} tensors")
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        failure = machine_failure(error)
        # Without memory or files to read it with, a checkpoint is not damaged; one that the disk cannot read is skipped.
        if isinstance(error, UserError) or (failure is not None and failure.kind != "disk"):
            raise
        raise DamagedError(f"cannot be read ({error})") from error
    return tensors, content


def _content_of(folder: Path, name: str) -> bytes:
    """Return the content of a file of a checkpoint: one that lies in its folder, and that can be read without waiting."""
    path = folder / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DamagedError(f"{name} is no file of this folder")
    return path.read_bytes()


def quarantine(path: Path) -> None:
    """Rename a damaged checkpoint to ``NAME.damaged``, so that it is neither counted nor read again."""
    target = path.with_name(path.name + ".damaged")
    _remove(target)
    path.rename(target)


def _remove(path: Path) -> None:
    """Delete a checkpoint; of one that is a link to another disk the link, as what is there was put there by somebody."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _plain(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU and contiguous, as safetensors requires."""
    return tensor.detach().cpu().contiguous()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
