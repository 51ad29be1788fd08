"""ONNX from ops: each op is exported once, networks are stitched from them.

The whole-network file that ships, the networks a table is calibrated on and the ops it lists come from this one place,
so what is measured is what is deployed.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from onnx import ModelProto, TensorProto, helper

from hwnas.files import sha256
from hwnas.ops.registry import Op, OpSpec, Shape, make_op
from hwnas.ops.trace import Call, Trace

OPSET = 17  # what TensorRT 8.6, the last for Pascal GPUs, reads
IR_VERSION = 8  # of the ONNX release that brought opset 17


def export_op(op: Op, in_shapes: tuple[Shape, ...]) -> ModelProto:
    """Export one op in inference mode; inputs are ``x0, x1, ...``, the output is ``y``."""
    buffer = io.BytesIO()
    inputs = tuple(torch.zeros(s) for s in in_shapes)
    names = [f"x{i}" for i in range(len(inputs))]
    with warnings.catch_warnings():
        # Only the TorchScript-based exporter writes opset 17 by itself, and it takes 15 ms an op instead of 700.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Shapes are read as Python numbers on purpose: the file is for one input size.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined] # no __all__ there
        torch.onnx.export(
            op.eval(),
            inputs,
            cast(Any, buffer),
            opset_version=OPSET,
            dynamo=False,
            input_names=names,
            output_names=["y"],
        )
    return onnx.load_from_string(buffer.getvalue())


def stand_in(spec: OpSpec, repeat: int = 0) -> Op:
    """Build an op with random weights, the same for every call: latency depends on shapes, not on values.

    Args:
        spec: Of the op.
        repeat: How often the network called the same spec before; sets the `factor` on the kernels.
    """
    op = make_op(spec.kind, dict(spec.attrs))
    rng = np.random.default_rng(int(sha256(spec.key)[:8], 16))
    with torch.no_grad():
        for p in op.parameters():
            fan_in = max(1, p[0].numel())
            p.copy_(torch.from_numpy(rng.standard_normal(tuple(p.shape)) / np.sqrt(fan_in)))
            if p.dim() > 1:
                p.mul_(factor(repeat))
    return op.eval()


class OpExporter:
    """Exports ops with stand-in weights, each unique spec once."""

    def __init__(self) -> None:
        """Start with nothing exported."""
        self._models: dict[OpSpec, ModelProto] = {}

    def __call__(self, spec: OpSpec) -> ModelProto:
        """Return the op's model."""
        if spec not in self._models:
            self._models[spec] = export_op(stand_in(spec), spec.in_shapes)
        return self._models[spec]

    def network(self, trace: Trace) -> ModelProto:
        """Return all calls of a trace joined, with stand-in weights of its own for each call.

        Engines compute calls of equal weights and input once; trained networks have none such.
        """
        calls: Counter[OpSpec] = Counter()
        models = []
        for c in trace.calls:
            models.append(_scaled(self(c.spec), factor(calls[c.spec])) if has_weights(c.module) else self(c.spec))
            calls[c.spec] += 1
        return stitch(trace, models)


def has_weights(op: Op) -> bool:
    """Tell whether an op has parameters."""
    return next(op.parameters(), None) is not None


def factor(repeat: int) -> float:
    """Return what the kernels of an op are multiplied by where it is called for the (repeat + 1)-th time."""
    return 1 + repeat / 256


def _scaled(model: ModelProto, times: float) -> ModelProto:
    """Return a model with all kernels multiplied by a number."""
    if times == 1:
        return model
    out = ModelProto()
    out.CopyFrom(model)
    for tensor in out.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(times)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return out


def export_network(trace: Trace, output: str, metadata: Mapping[str, str]) -> ModelProto:
    """Export a network with its own weights.

    Args:
        trace: Of the network with its parameters, nothing mixed.
        output: Name of the file's output: ``"labels"`` or ``"logits"``.
        metadata: Text pairs stored in the file.
    """
    models = [export_op(c.module, c.spec.in_shapes) for c in trace.calls]
    model = stitch(trace, models, output)
    helper.set_model_props(model, dict(metadata))
    return model


def stitch(trace: Trace, models: Iterable[ModelProto], output: str = "output") -> ModelProto:
    """Join the models of a trace's calls into one.

    Args:
        trace: Nothing mixed.
        models: One per call, with inputs ``x0, x1, ...`` and output ``y``.
        output: Name for the result, with a number if there are several; the inputs are called as in the trace.

    Returns:
        A model checked by ``onnx.checker``; names of nodes start with the module path of the call they are from.
    """
    assert not trace.mixed, "a network with open decisions has no single graph"
    nodes, initializers = [], []
    results = output_names(trace, output)
    infos = {}
    for i, (call, model) in enumerate(zip(trace.calls, models, strict=True)):
        graph = _renamed(call, i, model, results)
        nodes += graph.node
        initializers += graph.initializer
        if call.output in results:
            kind = model.graph.output[0].type.tensor_type.elem_type
            infos[call.output] = helper.make_tensor_value_info(results[call.output], kind, call.out_shape)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in trace.inputs.items()]
    outputs = [infos[name] for name in trace.outputs]
    graph = helper.make_graph(nodes, "hwnas", inputs, outputs, initializers)
    stitched = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(stitched, full_check=True)
    return stitched


def output_names(trace: Trace, output: str) -> dict[str, str]:
    """Return what each result of a trace is called: `output`, with a number from the second on."""
    return {name: f"{output}{i or ''}" for i, name in enumerate(trace.outputs)}


def _renamed(call: Call, index: int, model: ModelProto, results: Mapping[str, str]) -> onnx.GraphProto:
    """Return a copy of an op's graph in the name space of the network."""
    prefix = f"{call.name}#{index}/"
    names = {f"x{n}": value for n, value in enumerate(call.inputs)}
    names["y"] = results.get(call.output, call.output)
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    for n, node in enumerate(graph.node):
        node.name = f"{prefix}{node.op_type}_{n}"
        node.input[:] = [names.get(v, prefix + v if v else "") for v in node.input]
        node.output[:] = [names.get(v, prefix + v if v else "") for v in node.output]
    for tensor in graph.initializer:
        tensor.name = prefix + tensor.name
    return graph
