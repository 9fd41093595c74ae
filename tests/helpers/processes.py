"""The same training by one process and by two that torchrun starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def train_by_one_and_by_two(recipe: str, folder: Path, words: Sequence[str]) -> tuple[Path, Path]:
    """Train by a shipped recipe with ``words``, and return the run directories, below ``folder``."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for name, start in (("one", []), ("two", torchrun)):
        command = [sys.executable, "-m", *start, "stvit_cli", "train", "--recipe", recipe, "--output", str(folder / name), *words]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder / "one", folder / "two"
