"""Precision as part of the file: TensorRT since 11 and TensorRT-RTX take it from the types in the ONNX alone."""

from __future__ import annotations

from collections.abc import MutableSequence

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import ModelProto, NodeProto, TensorProto, helper

from hwnas.errors import HwnasError

HALF_MAX = 65504.0  # the largest float16
# Inputs that are float32 whatever the data is: the region and the scales of a resize, mean and variance of a BatchNorm.
FLOAT_INPUTS = {"Resize": (1, 2), "BatchNormalization": (3, 4)}


def to_half(model: ModelProto) -> ModelProto:
    """Return a model that computes in float16, with float32 inputs and outputs.

    Args:
        model: In float32, as `hwnas.ops.onnx_graph.stitch` makes it.

    Raises:
        HwnasError: If a weight is too large for float16; names it.
    """
    out = ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    keep = {name for n in graph.node for i, name in enumerate(n.input) if i in FLOAT_INPUTS.get(n.op_type, ())}
    for tensor in graph.initializer:
        if tensor.name not in keep:
            _halve(tensor, tensor.name)
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] not in keep:
            for attribute in node.attribute:
                _halve(attribute.t, node.name)
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            node.attribute[0].i = TensorProto.FLOAT16
    inputs = {v.name: f"{v.name}/half" for v in graph.input if _is_float(v.type.tensor_type.elem_type)}
    outputs = {v.name: f"{v.name}/half" for v in graph.output if _is_float(v.type.tensor_type.elem_type)}
    for node in graph.node:
        _rename(node.input, {**inputs, **outputs})
        _rename(node.output, outputs)
    before = [_cast(name, half, TensorProto.FLOAT16) for name, half in inputs.items()]
    after = [_cast(half, name, TensorProto.FLOAT) for name, half in outputs.items()]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(out, full_check=True)
    return out


def _halve(tensor: TensorProto, name: str) -> None:
    if not _is_float(tensor.data_type):
        return
    values = onnx.numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0.0) > HALF_MAX:
        raise HwnasError(f"{name} has the weight {np.abs(values).max():.3g}, float16 ends at 65504; export it in fp32")
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name))


def _is_float(kind: int) -> bool:
    return kind == TensorProto.FLOAT


def _rename(names: MutableSequence[str], new: dict[str, str]) -> None:
    names[:] = [new.get(name, name) for name in names]


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)
