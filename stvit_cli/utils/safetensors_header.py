"""The header of a safetensors file, read without the library and without torch, which take seconds to import."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

METADATA = "__metadata__"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of the names of batch norm's statistics and counters, which are no parameters."""


def read_header(path: Path) -> dict[str, Any]:
    """Return the header: the shape, dtype and place of each tensor by name, and the metadata as `METADATA`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header is no object")
    return header


def num_parameters(path: Path) -> int:
    """Return the number of parameters in a file, without batch norm's statistics and counters. Raises as `read_header`."""
    tensors = {name: tensor for name, tensor in read_header(path).items() if name != METADATA}
    return sum(math.prod(tensor["shape"]) for name, tensor in tensors.items() if name.rpartition(".")[2] not in BUFFERS)
