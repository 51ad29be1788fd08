"""The smallest part of a model that fails: one op, a pair that fails together, in few tries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.precision import to_half
from hwnas.runtime.engines.base import random_inputs
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.engines.reduce import ops_in, smallest_failing
from hwnas.spaces import Scale, darts_space, sample, trace_space

SPACE = darts_space(Scale(4, 3, (24, 32)), 5, nodes=2, head_channels=8)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return OpExporter().network(trace_space(SPACE, sample(SPACE, np.random.default_rng(0))))


def kinds(part: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(part).graph.node]


class Refuses:
    """Fails where a part has all of some kinds of node; counts how often it was asked."""

    def __init__(self, *wanted: str) -> None:
        self.wanted, self.tries = wanted, 0

    def __call__(self, part: bytes) -> bool:
        self.tries += 1
        onnx.checker.check_model(onnx.load_model_from_string(part), full_check=True)
        return set(self.wanted) <= set(kinds(part))


def test_one_op_that_fails_is_found_alone(model: onnx.ModelProto) -> None:
    part, names = smallest_failing(model.SerializeToString(), Refuses("ArgMax"))
    assert kinds(part) == ["ArgMax", "Cast"]
    assert ops_in(" ".join(names)) == ["head.argmax"]


def test_what_was_said_is_tried_first(model: onnx.ModelProto) -> None:
    name = next(node.name for node in model.graph.node if node.op_type == "ArgMax")
    refuses = Refuses("ArgMax")
    smallest_failing(model.SerializeToString(), refuses, f"node {name}: no such op")
    assert refuses.tries == 1


def test_ops_that_only_fail_together_are_found(model: onnx.ModelProto) -> None:
    part, names = smallest_failing(model.SerializeToString(), Refuses("Resize", "ArgMax"))
    found = ops_in(" ".join(names))
    assert found[-1] == "head.argmax"
    assert kinds(part).count("Resize") == 1
    assert len(found) < 6


@pytest.mark.parametrize("form", [lambda m: m, to_half], ids=["fp32", "fp16"])
def test_a_part_runs(model: onnx.ModelProto, form: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Every cut is a model of its own, with all it reads as inputs."""
    ran = 0

    def fails(part: bytes) -> bool:
        nonlocal ran
        graph = onnx.load_model_from_string(part).graph
        if all(v.type.tensor_type.elem_type == 1 for v in graph.input):
            shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.input}
            with open_onnx(part) as runner:
                assert runner.run(random_inputs(shapes))
            ran += 1
        return False

    whole, names = smallest_failing(form(model).SerializeToString(), fails)
    assert ran >= (20 if form is not to_half else 2)
    assert len(names) == len(form(model).graph.node)  # nothing failed, so nothing was cut off
    assert kinds(whole) == [node.op_type for node in form(model).graph.node]
