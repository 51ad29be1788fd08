"""A TensorRT that computes, on a GPU that is not there: the double of a release, with ONNX Runtime behind it.

Which release is what the environment variable ``HWNAS_FAKE_TENSORRT`` names, one of `RELEASES`. What is put on a stream
runs when the stream does, reads and writes the memory that addresses were given of, and takes a time that follows from
the model. The model whose digest is in ``HWNAS_FAKE_ILLEGAL`` reads where it must not.

Heavy packages are imported when they are needed: builders do not need them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from hwnas.files import sha256
from tests import fake_gpu
from tests.trt_double import TrtDouble, answers

MAGIC = b"fake engine of "
KINDS = {1: ("FLOAT", np.float32), 2: ("UINT8", np.uint8)}  # by the number that ONNX gives a type
NODE_US, ELEMENTS_PER_US = 3.0, 20_000


def install(name: str) -> TrtDouble:
    """Make the double and let it be the module of this name."""
    release = os.environ.get("HWNAS_FAKE_TENSORRT", "tensorrt-10.16.1")
    double = make(release)
    double.__spec__ = ModuleSpec(name, None)
    sys.modules[name] = double
    return double


def make(release: str) -> TrtDouble:
    """Return the double of a release, which builds and runs."""
    trt = TrtDouble(release)
    model: list[bytes] = []
    trt.returns |= {
        "Builder.create_network": lambda flags: trt.INetworkDefinition(),
        "Builder.create_builder_config": lambda: _config(trt),
        "OnnxParser.parse": lambda content: model.append(content) or _parse(trt, content),
        "Builder.build_serialized_network": lambda network, config: MAGIC + release.encode() + b"\n" + model[-1],
        "Runtime.deserialize_cuda_engine": lambda content: _engine(trt, release, content),
    }
    trt.OnnxParser.num_errors = 1
    return trt


def _config(trt: TrtDouble) -> Any:
    config = trt.IBuilderConfig()
    cache = answers(trt.ITimingCache(), serialize=b"timings")
    return answers(config, create_timing_cache=cache, set_timing_cache=True, get_timing_cache=cache)


def _parse(trt: TrtDouble, content: bytes) -> bool:
    """Refuse a model with an op that no TensorRT has."""
    if b"Det" not in content:
        return True
    import onnx

    for i, node in enumerate(onnx.load_model_from_string(content).graph.node):
        if node.op_type == "Det":
            error = trt.ParserError()
            told: dict[str, object] = {"desc": "no such op", "node": i, "node_name": node.name, "node_operator": "Det"}
            known = {name: value for name, value in told.items() if hasattr(error, name)}
            trt.returns["OnnxParser.get_error"] = answers(error, **known)
            return False
    return True


def _engine(trt: TrtDouble, release: str, content: bytes) -> Any:
    head, _, model = content.partition(b"\n")
    if head != MAGIC + release.encode():
        return None
    import onnx

    graph = onnx.load_model_from_string(model).graph
    tensors = [(v, True) for v in graph.input] + [(v, False) for v in graph.output]
    names = [v.name for v, _ in tensors]
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v, _ in tensors}
    kinds = {v.name: KINDS[v.type.tensor_type.elem_type] for v, _ in tensors}
    reads = {v.name: reads for v, reads in tensors}
    engine = trt.ICudaEngine()
    context = _context(trt, model, shapes, {name: kind for name, (_, kind) in kinds.items()}, reads)
    told = '{"Layers": [' + ", ".join(f'{{"Name": "{node.name}"}}' for node in graph.node) + "]}"
    more: dict[str, object] = {}
    if hasattr(engine, "create_runtime_config") and hasattr(trt, "IRuntimeCache"):
        cache = answers(trt.IRuntimeCache(), serialize=b"kernels", deserialize=True)
        more["create_runtime_config"] = answers(trt.IRuntimeConfig(), create_runtime_cache=cache)
    return answers(
        engine,
        num_io_tensors=len(names),
        get_tensor_name=lambda i: names[i],
        get_tensor_shape=lambda name: shapes[name],
        get_tensor_dtype=lambda name: getattr(trt.DataType, kinds[name][0]),
        get_tensor_mode=lambda name: trt.TensorIOMode.INPUT if reads[name] else trt.TensorIOMode.OUTPUT,
        create_execution_context=lambda *config: context,
        create_engine_inspector=answers(trt.EngineInspector(), get_engine_information=lambda kind: told),
        **more,
    )


def _context(
    trt: TrtDouble, model: bytes, shapes: dict[str, tuple[int, ...]], kinds: dict[str, Any], reads: dict[str, bool]
) -> Any:
    addresses: dict[str, int] = {}
    us = _us(model)

    def view(name: str) -> Any:
        size = int(np.prod(shapes[name])) * np.dtype(kinds[name]).itemsize
        memory = (ctypes.c_uint8 * size).from_address(addresses[name])
        return np.frombuffer(memory, kinds[name]).reshape(shapes[name])

    def compute() -> None:
        outputs = _runner(model).run({name: view(name) for name in shapes if reads[name]})
        for name, array in outputs.items():
            view(name)[...] = array

    def execute(stream: int) -> bool:
        assert addresses.keys() == shapes.keys(), "a tensor has no address"
        if sha256(model) == os.environ.get("HWNAS_FAKE_ILLEGAL"):
            fake_gpu.there().fail("cuStreamSynchronize", 700)
        return fake_gpu.there().enqueue(stream, compute, us, "execute_async_v3")

    def set_address(name: str, address: int) -> bool:
        addresses[name] = address
        return name in shapes

    context = answers(trt.IExecutionContext(), execute_async_v3=execute, set_tensor_address=set_address)
    return answers(context, is_stream_capturable=True) if hasattr(context, "is_stream_capturable") else context


@cache
def _runner(model: bytes) -> Any:
    from hwnas.runtime.engines.onnxruntime import open_onnx

    return open_onnx(model).__enter__()


def _us(model: bytes) -> float:
    """Return what a model takes: something for each node, and for each number that it makes."""
    import onnx
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(onnx.load_model_from_string(model)).graph
    values = [*graph.value_info, *graph.output]
    elements = sum(np.prod([max(1, d.dim_value) for d in v.type.tensor_type.shape.dim]) for v in values)
    return float(NODE_US * len(graph.node) + elements / ELEMENTS_PER_US)
