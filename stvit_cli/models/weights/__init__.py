"""Weights files: read, written, described, converted; the built-in safetensors form and the authors' checkpoints."""

from stvit_cli.models.weights.file import (
    LoadReport,
    WeightsFile,
    describe,
    load_weights,
    read_info,
    read_state_dict,
    read_weights,
    save_weights,
)
from stvit_cli.models.weights.info import WeightsInfo

__all__ = [
    "LoadReport",
    "WeightsFile",
    "WeightsInfo",
    "describe",
    "load_weights",
    "read_info",
    "read_state_dict",
    "read_weights",
    "save_weights",
]
