"""Every engine under the engine contract, with every op of the registry."""

from __future__ import annotations

import pytest

from hwnas.ops import OpSpec, registered_ops
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.base import Engine
from tests.contracts import EngineContract

X = (1, 8, 13, 18)
# One small case per op; an op without one fails the test below.
CASES = {
    "relu": OpSpec("relu", (), (X,)),
    "conv_bn": OpSpec("conv_bn", (("c_in", 8), ("c_out", 6), ("kernel", 3), ("relu", True), ("stride", 2)), (X,)),
    "sep_conv": OpSpec("sep_conv", (("c", 8), ("kernel", 5), ("stride", 2)), (X,)),
    "dil_conv": OpSpec("dil_conv", (("c", 8), ("kernel", 3), ("stride", 1)), (X,)),
    "factorized_reduce": OpSpec("factorized_reduce", (("c_in", 8), ("c_out", 7)), (X,)),
    "max_pool": OpSpec("max_pool", (("stride", 2),), (X,)),
    "avg_pool": OpSpec("avg_pool", (("stride", 1),), (X,)),
    "batch_norm": OpSpec("batch_norm", (("c", 8),), (X,)),
    "add": OpSpec("add", (), (X, X)),
    "concat": OpSpec("concat", (), (X, (1, 4, 13, 18), X)),
    "resize": OpSpec("resize", (("height", 29), ("width", 35)), (X,)),
    "context": OpSpec("context", (("c_in", 8), ("c_out", 5)), (X,)),
    "classifier": OpSpec("classifier", (("c_in", 8), ("classes", 11)), (X,)),
    "global_pool": OpSpec("global_pool", (), (X,)),
    "linear": OpSpec("linear", (("c_in", 8), ("c_out", 10)), ((1, 8),)),
    "argmax": OpSpec("argmax", (), (X,)),
}


def test_every_op_has_a_case() -> None:
    assert CASES.keys() == registered_ops().keys()


@pytest.fixture(params=sorted(CASES))
def op_case(request: pytest.FixtureRequest) -> OpSpec:
    return CASES[request.param]


class TestOnnxRuntime(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("onnxruntime")


class TestTorch(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("torch")


class TestFake(EngineContract):
    COMPUTES = False

    @pytest.fixture
    def engine(self) -> Engine:
        return open_engine("fake")
