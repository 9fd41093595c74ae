"""Register the Triton kernels as the implementation of the operators on a GPU; importing this needs the package triton."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stvit_cli.models.kernels.operators import library
from stvit_cli.models.kernels.triton.attention import aggregate, associate_and_aggregate, upsample
from stvit_cli.models.kernels.triton.convolution import (
    conv_pos_enc,
    conv_pos_enc_backward,
    gelu_conv_pos_enc,
    gelu_conv_pos_enc_backward,
)

DEVICE = "CPU" if os.environ.get("TRITON_INTERPRET") == "1" else "CUDA"  # Triton's interpreter runs on tensors of a CPU


def on_device_of_tokens(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return an operator that launches its kernels on the GPU of its first tensor: Triton takes the current one."""

    @functools.wraps(operator)
    def run(first: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):
            return operator(first, *rest)

    return run


for operator in (
    associate_and_aggregate,
    aggregate,
    upsample,
    conv_pos_enc,
    conv_pos_enc_backward,
    gelu_conv_pos_enc,
    gelu_conv_pos_enc_backward,
):
    library.impl(operator.__name__, on_device_of_tokens(operator), DEVICE)
