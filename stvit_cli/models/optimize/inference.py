"""The fastest copy of a model for a device, in float32 or bfloat16."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from stvit_cli.models.kernels import use_kernels
from stvit_cli.models.layers import PatchMerging, Stem
from stvit_cli.models.optimize.fuse import fuse
from stvit_cli.models.optimize.mkldnn import can_pack, cpu_has_bf16
from stvit_cli.models.optimize.pack import pack
from stvit_cli.models.precision import DTYPES
from stvit_cli.models.stvit import Block, STViT

Precision = Literal["fp32", "bf16"]


def for_inference(
    model: nn.Module, device: torch.device, precision: Precision = "fp32", *, kernels: bool | Literal["auto"] = "auto"
) -> nn.Module:
    """Return a fused copy (`fuse`) on a device, in channels-last memory.

    It has the custom kernels where they are faster: on a GPU, by the forward pass alone (`models.kernels.choice`). On a CPU it
    also has packed weights; such a copy cannot be copied, compiled or exported.

    Args:
        model: any model with STViT layers, left unchanged.
        device: where the copy runs.
        precision: ``bf16``: STViT's layers have weights and tokens in bfloat16, with sums in float32, and other layers run under
            autocast. Images are taken in float32 or bfloat16; results are float32. See `bf16_is_native`.
        kernels: whether it has the custom kernels; ``auto``: where they are faster.

    Example:
        >>> from stvit_cli import create_model
        >>> fast = for_inference(create_model("stvit-nano", num_classes=2), torch.device("cpu"))
        >>> with torch.inference_mode():
        ...     fast(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 2])
    """
    fast = fuse(model).to(device).to(memory_format=torch.channels_last)
    dtype = DTYPES[precision]
    if device.type == "cpu":
        use_kernels(fast, device.type, kernels, dtype=dtype)
        pack(fast, dtype)
    if precision == "bf16":
        _run_in_bf16(fast, device)
    if device.type == "cuda":  # after the weights have their dtype, as the layers are measured with them
        use_kernels(fast, device.type, kernels, dtype=dtype, train=False)
    return fast


def bf16_is_native(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 by instructions of its own; without them fp32 is faster.

    Args:
        device: a CPU or a GPU.

    Example:
        >>> isinstance(bf16_is_native(torch.device("cpu")), bool)
        True
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or cpu_has_bf16()


def _run_in_bf16(fast: nn.Module, device: torch.device) -> None:
    """Let a fused copy compute in bfloat16 and return float32, in place."""
    is_packed = device.type == "cpu" and can_pack()
    for module in fast.modules():
        if isinstance(module, STViT):
            module.output_dtype = torch.float32
            if not is_packed and isinstance(module.proj, nn.Conv2d):
                module.proj.to(torch.bfloat16)
        elif isinstance(module, (Stem, Block, PatchMerging)) and not is_packed:
            for part in module.modules():
                if isinstance(part, nn.Conv2d):
                    part.to(torch.bfloat16)  # autocast would convert them at every call
    if is_packed and isinstance(fast, STViT):
        return  # every product is packed
    forward = fast.forward

    def forward_in_bf16(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return _in_float32(forward(*args, **kwargs))

    fast.forward = forward_in_bf16


def _in_float32(result: Any) -> Any:
    """Convert all bfloat16 tensors of a result to float32: of lists, tuples and dicts too."""
    if isinstance(result, Tensor):
        return result.float() if result.dtype == torch.bfloat16 else result
    if isinstance(result, dict):
        return cast(Any, type(result))({key: _in_float32(value) for key, value in result.items()})
    if type(result) in (list, tuple):
        return type(result)(_in_float32(value) for value in result)
    return result
