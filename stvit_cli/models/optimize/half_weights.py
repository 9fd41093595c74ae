"""ONNX files with weights in half precision: half the size, computed in float32 by runtimes that have nothing better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from stvit_cli.models.precision import DTYPES

if TYPE_CHECKING:
    import onnx

HalfPrecision = Literal["fp16", "bf16"]


def halve_weights(model: onnx.ModelProto, precision: HalfPrecision) -> None:
    """Store the weights of a graph in half precision, in place, each converted to float32 by a Cast where it is used.

    Runtimes without arithmetic in half precision convert the weights once, as they load the file. As in a safetensors file,
    tensors of one dimension (biases, norms, statistics) stay in float32.

    Args:
        model: a graph with weights in float32.
        precision: of the stored weights.

    Raises:
        OverflowError: a weight is beyond the range of ``precision``; the message is its name.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    stored_as = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        half = torch.from_numpy(numpy_helper.to_array(tensor).copy()).to(DTYPES[precision])
        if not half.isfinite().all():
            raise OverflowError(name)
        raw = half.view(torch.int16).numpy().tobytes()
        tensor.CopyFrom(onnx.TensorProto(name=f"{name}_{precision}", data_type=stored_as, dims=tensor.dims, raw_data=raw))
        casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}_float", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
