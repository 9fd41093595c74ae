"""How the model of a task runs on a device: with custom kernels, with compiled blocks, or eager."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stvit_cli.data.sampling import ClassBalance, ShuffleBlocks
from stvit_cli.errors import UserError
from stvit_cli.models.kernels import KernelsUnavailableError, choice, supports_dtype, use_kernels
from stvit_cli.models.optimize.inference import bf16_is_native
from stvit_cli.models.timm_models import is_timm_model
from stvit_cli.tasks.base import HasCompilableBlocks, Preparation


class PreparedModel:
    """The part of `tasks.base.Task` that chooses how ``model`` runs; each task inherits it."""

    model: nn.Module
    aspect_ratios: NDArray[np.float64] | None = None
    class_balance: ClassBalance | None = None
    shuffle_blocks: ShuffleBlocks | None = None
    evaluates_training_batches: bool = False
    is_deterministic: bool = False

    def prepare(
        self,
        device_type: str,
        dtype: torch.dtype,
        *,
        kernels: bool | Literal["auto"] | tuple[str, ...],
        compile_blocks: bool,
    ) -> Preparation:
        """See `tasks.base.Task.prepare`."""
        name = type(self.model).__name__
        try:
            uses_kernels = use_kernels(self.model, device_type, kernels, dtype=dtype, compiled=compile_blocks)
        except KernelsUnavailableError as error:
            raise UserError(f"train.kernels is true, but they cannot be had: {error}. Use train.kernels=auto.") from error
        if kernels is True and not uses_kernels:
            raise UserError(f"train.kernels: {name} has no part that they serve. Use train.kernels=auto.")
        if compile_blocks and not isinstance(self.model, HasCompilableBlocks) and not is_timm_model(self.model):
            raise UserError(f"train.compile: {name} has no blocks that can be compiled one by one. Use train.compile=false.")
        layers = choice.kinds_with_kernels(self.model) if device_type == "cuda" else ()
        return Preparation(uses_kernels, uses_kernels and supports_dtype(device_type, dtype), layers, _notes(device_type, dtype))

    def compile(self) -> None:
        """See `tasks.base.Task.compile`."""
        if is_timm_model(self.model):
            self.model.compile()  # as one: its blocks are timm's
            return
        assert isinstance(self.model, HasCompilableBlocks), "prepare has refused it"
        self.model.compile_blocks()


def _notes(device_type: str, dtype: torch.dtype) -> tuple[str, ...]:
    if dtype != torch.bfloat16 or bf16_is_native(torch.device(device_type)):
        return ()
    kind = "CPU" if device_type == "cpu" else "GPU"
    return (f"Note: this {kind} has no bf16 instructions: train.precision=fp32 is faster here.",)
