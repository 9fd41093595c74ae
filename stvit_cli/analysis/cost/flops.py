"""Count the multiply-adds of a model with fvcore from the trace of one image, and report operators that are not counted."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore's use of torch.jit.script
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

# Operators that move data or work on single elements, without matrix products. fvcore does not count them, and neither do
# published numbers. An operator that is neither counted nor listed here makes the count incomplete: see `FlopCount.uncounted`.
ELEMENTWISE = re.compile(
    "aten::(abs|add_?|as_strided|bernoulli_|clone|copy_|div_?|exp|expand_as|feature_dropout|fill_|flip|floor_divide|gather|gelu|gt|index_select|le"
    "|lt|masked_fill|max_pool2d|minimum|mul_?|ne|neg|new_empty|new_zeros|ones_like|pad|pow|relu|remainder|repeat|roll|rsub|sigmoid|silu"
    "|softmax|sqrt|sub|sum|unfold|upsample_bicubic2d|zeros_like)"
)


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of a model for one image.

    Attributes:
        total: of the model.
        by_operator: by fvcore's name of the operator, such as ``conv``; they sum to ``total``.
        by_module: by dotted name of the module; the model itself is ``""``.
        uncounted: number of calls of operators that are neither counted nor elementwise; empty if the count is complete.
    """

    total: int
    by_operator: dict[str, int]
    by_module: dict[str, int]
    uncounted: dict[str, int]


def count_flops(model: nn.Module, image_size: tuple[int, int], in_chans: int = 3) -> FlopCount:
    """Count the multiply-adds of a model for one image.

    Args:
        model: traced in eval mode on its device; its mode is restored.
        image_size: height and width in pixels.
        in_chans: channels of the image.

    Returns:
        Multiply-adds in total, by operator and by module, as in Table I of the supplement.

    Example:
        >>> from stvit_cli import create_model
        >>> count = count_flops(create_model("stvit-nano"), (64, 64))
        >>> count.total == sum(count.by_operator.values()), count.uncounted
        (True, {})
    """
    was_training = model.training
    first = next(model.parameters())
    image = torch.zeros(1, in_chans, *image_size, device=first.device, dtype=first.dtype)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about sizes that become constants, as intended
            analysis = FlopCountAnalysis(model.eval(), image)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops, "aten::mean", _mean_flops)
            by_operator = {name: round(flops) for name, flops in analysis.by_operator().most_common()}
            return FlopCount(
                total=round(analysis.total()),
                by_operator=by_operator,
                by_module={name: round(flops) for name, flops in analysis.by_module().items()},
                uncounted={name: n for name, n in analysis.unsupported_ops().items() if not ELEMENTWISE.fullmatch(name)},
            )
    finally:
        model.train(was_training)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count both products of softmax(Q K^T) V for queries (..., N, d) and keys (..., M, d)."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    rows = torch.Size(query[:-1]).numel()
    return Counter({"matmul": rows * key[-2] * (query[-1] + value[-1])})


def _mean_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count one addition per element, as fvcore does for pooling."""
    return Counter({"pooling": torch.Size(get_shape(inputs[0])).numel()})
