"""Record the operators of a step as a GPU would run them, with the bytes and floating-point operations of each, without a GPU.

The model is on the meta device, where tensors have shapes and no memory. What depends on the device is done as PyTorch does it on
a GPU: here convolutions that keep channels-last memory, add their bias in a pass of its own and compute the gradients of input,
weight and bias one after the other (cuDNN), and batch norm that reads its input twice; in `gpu_functions` autocast and attention.

Counted are the inputs that an operator reads and the outputs that it writes, once each. Views are free. FLOPs are those of
matrix products, convolutions and attention, two for each multiply-add; single elements are not counted, as memory bounds them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

Unit = Literal["matrix", "vector"]

FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted", "detach", "lift_fresh"}
FREE |= {"_unsafe_view", "_reshape_alias", "alias", "promote_types", "_local_scalar_dense"}  # views, and work on the host
OVERWRITTEN = {"copy_", "fill_", "zero_"}  # in place, but what was there is not read

FAMILIES = {
    "copy": "clone _to_copy copy_ cat stack constant_pad_nd roll index select_backward slice_backward unfold_backward repeat "
    "fill_ zero_ zeros_like",
    "reduction": "sum mean var_mean amax _adaptive_avg_pool2d avg_pool2d max_pool2d_with_indices",
    "softmax": "_softmax _safe_softmax _log_softmax _softmax_backward_data",
}
FAMILY = {name: family for family, names in FAMILIES.items() for name in names.split()}


@dataclass
class Operator:
    """An operator of a step.

    Attributes:
        name: of PyTorch, such as ``convolution``, or of a custom kernel.
        family: what it is grouped under in a table.
        phase: ``forward``, ``backward`` or ``optimizer``.
        reads: bytes by tensor; the keys identify the memory.
        writes: the same, of what it writes.
        extra_bytes: read again, or passed on within the operator.
        flops: two for each multiply-add.
        unit: the tensor cores, or the vector units (depth-wise convolutions).
        launches: kernels that it launches.
        fusible: whether a compiler can compute it together with its neighbours.
    """

    name: str
    family: str
    phase: str
    reads: dict[int, int] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=dict)
    extra_bytes: int = 0
    flops: int = 0
    unit: Unit = "matrix"
    launches: int = 1
    fusible: bool = False

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values()) + self.extra_bytes


def nbytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's memory; elements of expanded tensors and overlapping windows count once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class OperatorTrace(TorchDispatchMode):
    """Records the operators that run under it, in order, as ``operators``. Set ``phase`` between the phases of a step."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "forward"
        self.operators: list[Operator] = []
        self._alive: list[Any] = []  # keeps the keys of memory unique

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        library, name = function._schema.name.split("::")
        if name in ("convolution", "convolution_backward"):
            return self._convolution(function, name, args)
        result = function(*args, **kwargs)
        if library in ("aten", "stvit") and not function.is_view and name not in FREE:
            self._record(function, name, args, kwargs, result)
        return result

    def _key(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        return int(storage._cdata)

    def _bytes(self, tensors: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                key = self._key(tensor)
                found[key] = max(found.get(key, 0), nbytes(tensor))
        return found

    def _record(self, function: Any, name: str, args: Any, kwargs: Any, result: Any) -> None:
        arguments = [*zip(function._schema.arguments, args, strict=False)]
        arguments += [(argument, kwargs[argument.name]) for argument in function._schema.arguments if argument.name in kwargs]
        mutated = [value for argument, value in arguments if argument.alias_info is not None and argument.alias_info.is_write]
        read = [value for _, value in arguments if not (name in OVERWRITTEN and any(value is other for other in mutated))]
        operator = Operator(name, _family(name, function), self.phase, self._bytes(read))
        operator.writes = self._bytes(mutated or result)
        formula = _FORMULAS.get(name) or flop_registry.get(function.overloadpacket)
        if formula is not None:
            operator.flops = formula(*args, **kwargs, out_val=result)
        operator.fusible = not operator.flops and not name.startswith(("max_pool2d", "_scaled_dot_product"))
        if name in ("conv_pos_enc", "conv_pos_enc_backward", "gelu_conv_pos_enc", "gelu_conv_pos_enc_backward"):
            operator.unit = "vector"
        operator.launches = LAUNCHES.get(name, 1)
        if name in ("native_batch_norm", "native_batch_norm_backward"):
            trained = args[5] if name == "native_batch_norm" else args[7]
            again = args[:1] if name == "native_batch_norm" else args[:2]
            operator.extra_bytes = sum(nbytes(tensor) for tensor in again) if trained else 0  # statistics first, then the result
        if name in ("associate_and_aggregate", "aggregate"):
            total = result[0] if isinstance(result, tuple) else result
            operator.extra_bytes = 2 * 9 * nbytes(total)  # each cell's contributions to its nine super tokens, written and read
        if name in ("conv_pos_enc_backward", "gelu_conv_pos_enc_backward"):
            operator.extra_bytes = 2 * _bytes_of_sums(args[1])
        self.operators.append(operator)

    def _convolution(self, function: Any, name: str, args: Any) -> Any:
        """Run a convolution or its backward pass as cuDNN does, and record it as the kernels that this takes."""
        backward = name == "convolution_backward"
        x, weight = args[1:3] if backward else args[:2]
        groups = args[9] if backward else args[8]
        layout = torch.channels_last if _is_channels_last(x) or _is_channels_last(weight) else torch.contiguous_format
        family, unit = _describe_convolution(weight, groups)
        if not backward:
            x, weight, bias, *rest = args
            y = function(x, weight, None, *rest).contiguous(memory_format=layout)
            flops = conv_flop_count(list(x.shape), list(weight.shape), list(y.shape), rest[3])
            self._add("convolution", family, (x, weight), y, flops, unit)
            if bias is not None:
                self._add("bias of a convolution", "bias of a convolution", (y, bias), y)
            return y
        grad, bias_sizes, mask = args[0], args[3], args[10]
        results = [None if result is None else result.contiguous() for result in function(*args)]
        if results[0] is not None:
            results[0] = results[0].contiguous(memory_format=layout)
        flops = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), args[7])
        if mask[2] and bias_sizes is not None:
            self._add("bias of a convolution", "bias of a convolution", grad, results[2])
        if mask[0]:
            self._add("convolution, gradient of the input", family, (grad, weight), results[0], flops, unit)
        if mask[1]:
            self._add("convolution, gradient of the weight", family, (grad, x), results[1], flops, unit)
        return tuple(results)

    def _add(self, name: str, family: str, reads: Any, writes: Any, flops: int = 0, unit: Unit = "matrix") -> None:
        operator = Operator(name, family, self.phase, self._bytes(reads), self._bytes(writes), 0, flops, unit)
        operator.fusible = not flops
        self.operators.append(operator)

    def add_optimizer(self, model: nn.Module) -> None:
        """Record AdamW's fused update: it reads weight, gradient and both moments, and writes all but the gradient."""
        size = sum(nbytes(parameter) for parameter in model.parameters() if parameter.requires_grad)
        reads = {-1: 4 * size}
        self.operators.append(Operator("fused AdamW", "optimizer", "optimizer", reads, {-2: 3 * size}, launches=ADAMW_LAUNCHES))


def _bytes_of_sums(x: Tensor) -> int:
    """Return the bytes of the sums that the programs of a position encoding's backward pass write, 0 without Triton."""
    if importlib.util.find_spec("triton") is None:
        return 0
    from stvit_cli.models.kernels.triton import convolution

    (programs, _), *_ = convolution._plan(x.permute(0, 2, 3, 1))
    return int(programs * convolution.SUMS.value * x.shape[1] * 4)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and tensor.shape[1] > 1


def _describe_convolution(weight: Tensor, groups: int) -> tuple[str, Unit]:
    """Return the family of a convolution, and the unit that computes it."""
    kernel = " x ".join(map(str, weight.shape[2:]))
    if groups > 1 and weight.shape[1] == 1:
        return f"depth-wise convolution {kernel}", "vector"
    return f"convolution {kernel}", "matrix"


def _family(name: str, function: Any) -> str:
    if function.namespace == "stvit":
        return "custom kernel"
    if name in FAMILY:
        return FAMILY[name]
    if "norm" in name:
        return "batch norm" if "batch" in name else "layer norm"
    if "attention" in name:
        return "attention"
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        return "matrix product"
    return "elementwise"


def _neighbour_flops(products: int) -> Callable[..., int]:
    """Return the FLOPs of products of each token with its nine super tokens, over all channels."""

    def count(*args: Any, out_val: Any, **_: Any) -> int:
        tokens = max((leaf for leaf in tree_leaves((args, out_val)) if isinstance(leaf, Tensor) and leaf.dim() == 4), key=nbytes)
        return products * 2 * 9 * tokens.numel()

    return count


def _depthwise_flops(passes: int) -> Callable[..., int]:
    """Return the FLOPs of depth-wise 3 x 3 convolutions of a custom kernel."""

    def count(x: Tensor, *args: Any, **_: Any) -> int:
        return passes * 2 * 9 * prod(x.shape)

    return count


_FORMULAS: dict[str, Callable[..., int]] = {
    "conv_pos_enc": _depthwise_flops(1),
    "conv_pos_enc_backward": _depthwise_flops(2),
    "gelu_conv_pos_enc": _depthwise_flops(1),
    "gelu_conv_pos_enc_backward": _depthwise_flops(2),
    "associate_and_aggregate": _neighbour_flops(2),
    "aggregate": _neighbour_flops(1),
    "upsample": _neighbour_flops(1),
}
# The kernels that an operator launches where that is not one: the functions of `models.kernels.triton`, and PyTorch's own.
LAUNCHES = {"conv_pos_enc_backward": 5, "gelu_conv_pos_enc_backward": 5, "associate_and_aggregate": 2, "aggregate": 2}
LAUNCHES |= {"native_layer_norm_backward": 2, "_scaled_dot_product_flash_attention_backward": 3}
ADAMW_LAUNCHES = 10  # fused over lists of tensors, some hundred chunks of them in a launch
