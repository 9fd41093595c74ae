"""A GPU that is none: tensors that say they are on ``cuda:0``, are computed on the CPU, and refuse to meet tensors of the CPU.

PyTorch's own `FakeTensorMode` finds devices that mix in a forward pass. It has no values, so that nothing that looks at one
(a training step that checks its loss, metrics, detections) runs, and without a driver its backward pass does not either. Here
the values are real: complete runs are possible, with backward passes, evaluations and checkpoints.

What a GPU refuses is refused: operators on tensors of both devices, and NumPy arrays of a GPU's memory. Its numbers, its speed
and its memory are a CPU's. Autocast runs by the CPU's lists of operators.

Not a test; tests use `simulated_gpu`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
MEMORY = 2**36
aten = torch.ops.aten
MOVES = {aten.copy_.default, aten._to_copy.default}
TAKES_CPU_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""A GPU's tensor may be indexed by a CPU's: it is copied."""
STRICT = {aten.cat.default, aten.stack.default}
"""Here a single number of a CPU is refused too."""


class MixedDevicesError(RuntimeError):
    """An operator was given tensors of the CPU and of the GPU."""


class GpuTensor(Tensor):
    """A tensor that says it is on the GPU; its values are in ``values``, on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> GpuTensor:
        result = Tensor._make_wrapper_subclass(
            cls, values.size(), values.stride(), values.storage_offset(), dtype=values.dtype, device="cpu"
        )
        result.values = values
        return result

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.values})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        refuse_mixed(function, args, kwargs)
        result = function(*tree_map(_values, args), **tree_map(_values, kwargs))
        wrapped = tree_map(lambda leaf: GpuTensor(leaf) if isinstance(leaf, Tensor) else leaf, result)
        return return_and_correct_aliasing(function, args, kwargs, wrapped)


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, GpuTensor) else leaf


def refuse_mixed(function: Any, args: Any, kwargs: Any) -> None:
    """Raise MixedDevicesError where a GPU would refuse the arguments of an operator."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor)]
    if not on_cpu or len(on_cpu) == len(tensors) or function in MOVES:
        return
    if function in TAKES_CPU_INDICES and isinstance(args[0], GpuTensor):
        on_cpu = [tensor for tensor in on_cpu if all(tensor is not index for index in args[1])]
    if any(tensor.dim() or function in STRICT or tensor is tensors[0] for tensor in on_cpu):
        shapes = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise MixedDevicesError(f"{function}: expected all tensors on one device, found {shapes}")


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return GpuTensor(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _values(grads[0])


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.values.detach().clone()  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return GpuTensor(grads[0])


def to_gpu(x: Tensor) -> Tensor:
    """Return a tensor on the simulated GPU."""
    return x if isinstance(x, GpuTensor) else _ToGpu.apply(x)


def to_cpu(x: Tensor) -> Tensor:
    """Return a tensor on the CPU."""
    return _ToCpu.apply(x) if isinstance(x, GpuTensor) else x


def _device_of(leaf: Any) -> str | None:
    """Return the type of the device that an argument names, if it does."""
    if isinstance(leaf, torch.device):
        return leaf.type
    if isinstance(leaf, str) and leaf.partition(":")[0] in ("cpu", "cuda"):
        return leaf.partition(":")[0]
    return None


class _Operators(TorchDispatchMode):
    """Where Python code of PyTorch names the GPU, out of sight of `_Devices`: what it makes there is simulated."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _device_of(kwargs.get("device")) != "cuda":
            return function(*args, **kwargs)
        args, kwargs = tree_map(_values, (args, kwargs | {"device": torch.device("cpu")}))
        return tree_map(lambda leaf: GpuTensor(leaf) if isinstance(leaf, Tensor) else leaf, function(*args, **kwargs))


class _Devices(TorchFunctionMode):
    """Turns what names the GPU into the simulated one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "pin_memory":
            return args[0]
        if function is Tensor.backward:
            with self:  # for what is computed again, as activation checkpointing does
                gradient, given = kwargs.pop("gradient", None), kwargs
                return torch.autograd.backward(args[0], gradient, **given)
        if args and isinstance(args[0], GpuTensor) and name in ("numpy", "__array__", "tolist"):
            if name != "tolist":
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            return function(args[0].values)
        if name == "to" and isinstance(args[0], Tensor):
            return self._to(*args, **kwargs)
        if name in ("cuda", "cpu") and isinstance(args[0], Tensor):
            return to_gpu(args[0]) if name == "cuda" else to_cpu(args[0])
        if _device_of(kwargs.get("device")) == "cuda":
            kwargs["device"] = "cpu"
            result = function(*args, **kwargs)
            requires_grad = isinstance(result, Tensor) and result.requires_grad and result.is_leaf
            moved = tree_map(lambda leaf: to_gpu(leaf) if isinstance(leaf, Tensor) else leaf, result)
            return moved.detach().requires_grad_() if requires_grad else moved
        if _device_of(kwargs.get("device")) == "cpu":
            args, kwargs = tree_map(_values, (args, kwargs))
        return function(*args, **kwargs)

    def _to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        other = next((arg for arg in (*args, kwargs.get("other")) if isinstance(arg, Tensor)), None)
        if other is not None:
            device: str | None = other.device.type
            args, kwargs = (other.dtype,), {}
        else:
            device = next((found for found in map(_device_of, (*args, kwargs.get("device"))) if found), None)
            args = tuple(arg for arg in args if _device_of(arg) is None and arg is not None)
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        kwargs.pop("non_blocking", None)
        args = tuple(arg for arg in args if isinstance(arg, torch.dtype))  # non_blocking and copy may be given by position
        if device is not None:
            x = to_gpu(x) if device == "cuda" else to_cpu(x)
        dtype = next(iter(args), None) or kwargs.pop("dtype", None)
        kwargs = {key: value for key, value in kwargs.items() if value is not None and key != "dtype"}
        return Tensor.to(x, dtype or x.dtype, **kwargs)


_Generator = torch.Generator


class _IsGenerator(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Generator)


class _CpuGenerator(metaclass=_IsGenerator):
    """`torch.Generator`, on the CPU for any device."""

    def __new__(cls, device: object = None) -> Any:
        return _Generator()


@contextlib.contextmanager
def simulated_gpu() -> Iterator[torch.device]:
    """Within the block there is one GPU, ``cuda:0``, to PyTorch and to all that ask it; yields it."""
    autocast_init, autocast_on, autocast_dtype = torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype
    is_on, rng = (lambda device_type="cuda": "cpu" if device_type == "cuda" else device_type), torch.get_rng_state

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        autocast_init(self, is_on(device_type), *args, **kwargs)

    fakes: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_name": lambda device=None: "a simulated GPU",
        "get_rng_state": lambda device=None: rng(),
        "set_rng_state": lambda state, device=None: None,  # the CPU's was set before
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
    }
    with contextlib.ExitStack() as stack:
        for name, fake in fakes.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fake))
        stack.enter_context(mock.patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check"))
        stack.enter_context(mock.patch.object(torch, "Generator", _CpuGenerator))
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", autocast))
        stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", lambda kind="cuda": autocast_on(is_on(kind))))
        stack.enter_context(mock.patch.object(torch, "get_autocast_dtype", lambda kind: autocast_dtype(is_on(kind))))
        # Module.to would put the values of the simulated GPU into the CPU's parameters.
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.enter_context(_Operators())
        stack.enter_context(_Devices())
        yield GPU
