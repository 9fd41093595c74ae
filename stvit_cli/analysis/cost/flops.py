"""Multiply-adds of a model, counted by fvcore from a trace of one image, with nothing that has weight left out."""

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

# Operators that move data or touch each element once, with no product of matrices in them. fvcore leaves them out, and so do the
# published figures. An operator that is neither counted nor named here makes the figure incomplete, and is said.
ELEMENTWISE = re.compile(
    "aten::(abs|add_?|as_strided|bernoulli_|clone|copy_|div_?|exp|expand_as|feature_dropout|fill_|flip|floor_divide|gather|gelu|gt|index_select|le"
    "|lt|masked_fill|max_pool2d|minimum|mul_?|ne|neg|new_empty|new_zeros|ones_like|pad|pow|relu|remainder|repeat|roll|rsub|sigmoid|silu"
    "|softmax|sqrt|sub|sum|unfold|upsample_bicubic2d|zeros_like)"
)


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one image: in total, by operator (fvcore's names) and by module (dotted names, the model is "").

    ``uncounted`` maps operators that are neither counted nor elementwise to the number of their calls; empty where the total
    is complete.
    """

    total: int
    by_operator: dict[str, int]
    by_module: dict[str, int]
    uncounted: dict[str, int]


def count_flops(model: nn.Module, image_size: tuple[int, int], in_chans: int = 3) -> FlopCount:
    """Count the multiply-adds of ``model`` for one image of ``image_size`` (height, width), in eval mode, on its device."""
    was_training = model.training
    first = next(model.parameters())
    image = torch.zeros(1, in_chans, *image_size, device=first.device, dtype=first.dtype)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, about sizes that become constants: here they are meant to
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
    """Both products of softmax(Q K^T) V, for (..., N, d) queries and (..., M, d) keys."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    rows = torch.Size(query[:-1]).numel()
    return Counter({"matmul": rows * key[-2] * (query[-1] + value[-1])})


def _mean_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """One addition for each element, as fvcore counts pooling."""
    return Counter({"pooling": torch.Size(get_shape(inputs[0])).numel()})
