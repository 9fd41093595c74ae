"""What PyTorch does on a GPU before an operator runs, for a model on the meta device: see `operator_trace`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from stvit_cli.models.kernels import KERNELS, operators

# The functions of vision models among those that autocast runs in its own precision, and in float32, on a GPU:
# https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
REDUCED = {"__matmul__", "addmm", "baddbmm", "bmm", "conv2d", "einsum", "linear", "matmul", "mm", "scaled_dot_product_attention"}
RAISED = {"cross_entropy", "group_norm", "layer_norm", "log_softmax", "norm", "normalize", "pow", "softmax", "sum"}


class GpuFunctions(TorchFunctionMode):
    """What PyTorch does on a GPU before an operator runs: the casts of autocast, and the choice of a fused attention.

    Args:
        dtype: of autocast; None for float32.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if self.dtype is not None and (name in REDUCED or name in RAISED):
            dtype = self.dtype if name in REDUCED else torch.float32
            args, kwargs = tree_map(lambda value: self._cast(value, dtype), (args, kwargs))
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Convert a tensor; a parameter only once, as autocast does."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = value, value.to(dtype)
        return self._casts[id(value)][1]


class GpuKernels(type(KERNELS)):  # type: ignore[misc]
    """The custom kernels as on a GPU: for every precision, without self-attention, where PyTorch's is fused already."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def supports(self, x: Tensor, channels: int | None = None) -> bool:
        return True

    def supports_self_attention(self, x: Tensor, head_dim: int) -> bool:
        return False

    def sample(self, x: Tensor, grid_size: tuple[int, int], num_iters: int) -> tuple[Tensor, Tensor]:
        return operators.sample(x if self.dtype is None else x.to(self.dtype), grid_size, num_iters)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **others: Any
) -> Tensor:
    """Run PyTorch's fused attention: FlashAttention for half precision without a mask, else the memory-efficient one."""
    y: Tensor
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        y = flash(query, key, value, dropout_p, scale=others.get("scale"))[0]
    else:
        bias = None if attn_mask is None else attn_mask.expand(*query.shape[:-1], key.shape[-2])
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        y = efficient(query, key, value, bias, torch.is_grad_enabled(), dropout_p)[0]
    return y
