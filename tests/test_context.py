"""What an op costs inside a network: prices made up from entries, and which neighbours an op is measured between."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from torch import Tensor

from hwnas.ops import OpSpec, make_op
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.trace import Trace, trace_calls
from hwnas.profile import Boundary, Context, contexts, likely, parts, trace_entry
from hwnas.profile.context import price
from hwnas.runtime.engines.fake import BYTES_PER_MS, LAUNCH_MS, PEAK_MACS_PER_MS, RUN_MS, SAVING_MS, modelled_ms
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.spaces import Scale, Space, darts_space, trace_space

SPACE = darts_space(Scale(4, 3, (24, 32)), 5, nodes=2, head_channels=8)
X16 = (1, 16, 10, 10)  # as many channels as the neighbours have: a source costs exactly what a sink does


def conv(c_in: int, c_out: int) -> OpSpec:
    attrs = {"affine": True, "c_in": c_in, "c_out": c_out, "kernel": 1, "relu": False, "stride": 1}
    return OpSpec("conv_bn", tuple(attrs.items()), ((1, c_in, 10, 10),))


RELU = OpSpec("relu", (), (X16,))


def known(context: Context) -> dict[OpSpec, Context]:
    """Return the contexts that the price of an op takes: its own and, if it has one, that of its ending."""
    if context.ending is None:
        return {context.spec: context}
    last = Context(context.ending, (), source=len(context.out_shape) == 4, sink=False)
    return {context.spec: context, context.ending: last}


def weights(context: Context) -> dict[str, float]:
    return {part.key: weight for part, weight in parts(context, known(context)).items()}


def priced(context: Context) -> float:
    """Return what the model of the fake engine makes of the price of an op."""
    found = parts(context, known(context))
    took = {part.key: (modelled_ms(trace_entry("context", "k", part.trace(), None, None)), 0.0) for part in found}
    return price({part.key: weight for part, weight in found.items()}, took)[0]


def roofline(trace: Trace, at: int = 0) -> float:
    cost = trace.calls[at].cost
    return max(cost.macs / PEAK_MACS_PER_MS, cost.bytes / BYTES_PER_MS) + LAUNCH_MS


def alone(context: Context) -> float:
    """Return the roofline of the op itself."""
    return roofline(replace(context, source=False, sink=False, shared=False).trace())


def classifier() -> Trace:
    return trace_space(darts_space(Scale(4, 3, (32, 32)), 5, "cifar", "classification", nodes=2))


def plain(trace: Trace) -> dict[OpSpec, Context]:
    """Return the contexts of a network without open decisions."""
    return contexts([trace], [[1.0] * len(trace.calls)])


def every(space: Space = SPACE) -> list[Context]:
    traces = [trace_space(space.at(replace(space.scale, channels=c))) for c in (4, 8)]
    return list(contexts(traces, [likely(space, t) for t in traces]).values())


def chain(*specs: OpSpec) -> Trace:
    ops = [make_op(s.kind, dict(s.attrs)) for s in specs]

    def forward(x: Tensor) -> Tensor:
        for op in ops:
            x = op(x)
        return x

    return trace_calls(forward, {"image": specs[0].in_shapes[0]})


class TestPrice:
    @pytest.mark.parametrize("shared", [False, True])
    def test_a_relu_by_hand(self, shared: bool) -> None:
        """It reads and writes 1600 floats, so 12.8 kB at 10 MB/ms, and saves 2 of its 5 us behind another op."""
        assert priced(Context(RELU, X16, True, True, shared)) == pytest.approx(0.00128 + 0.005 - 0.002, rel=1e-9)

    @pytest.mark.parametrize("shared", [False, True])
    def test_every_op_of_a_space_costs_what_it_adds_to_a_network(self, shared: bool) -> None:
        found = every()
        assert len(found) > 50
        kinds = set()
        for c in found:
            if c.source and c.sink:
                # A second input of the run has a source that reads no other op: the model saves nothing there.
                extra = SAVING_MS * (len(c.sizes) - 1)
                # A source and a sink differ by the parameters of their BatchNorm, some hundred bytes.
                assert priced(replace(c, shared=shared)) == pytest.approx(alone(c) - SAVING_MS + extra, abs=6e-5), c.key
                kinds.add(c.spec.kind)
        assert kinds >= {"relu", "sep_conv", "dil_conv", "add", "concat", "max_pool", "conv_bn", "factorized_reduce"}
        strided = [c for c in found if c.source and c.sink and c.spec.in_shapes[0][2:] != c.out_shape[2:]]
        assert {c.spec.kind for c in strided} >= {"sep_conv", "max_pool", "factorized_reduce", "shift"}

    def test_what_a_run_costs_stays_with_what_reads_the_image(self) -> None:
        first, last = (Context(conv(16, 16), X16, *ends) for ends in ((False, True), (True, False)))
        assert priced(first) == pytest.approx(alone(first) + RUN_MS, rel=1e-9)
        assert priced(last) == pytest.approx(alone(last) - SAVING_MS, rel=1e-9)

    def test_the_prices_of_a_chain_are_its_latency(self) -> None:
        trace = chain(conv(3, 16), RELU, conv(16, 16), RELU, conv(16, 5))
        found = plain(trace)
        middle = (True, True)
        assert [(c.source, c.sink) for c in found.values()] == [(False, True), middle, middle, (True, False)]
        total_ms = sum(priced(found[c.spec]) for c in trace.calls)
        assert total_ms == pytest.approx(modelled_ms(trace_entry("net", "n", trace, None, None)), rel=1e-9)
        assert total_ms < 0.7 * sum(roofline(trace, i) + RUN_MS for i in range(len(trace.calls)))

    def test_an_op_like_a_neighbour_is_told_from_it(self) -> None:
        context = Context(conv(16, 16), X16, True, True)
        assert priced(context) == pytest.approx(alone(context) - SAVING_MS, rel=1e-9)
        assert [c.spec.kind for c in context.trace().calls] == ["conv_bn"] * 3 + ["global_pool"]

    def test_what_has_no_neighbours_is_measured_alone(self) -> None:
        """Convolutions make no vectors: what ends a classifier is charged a run, what it ends is measured with it."""
        found = {c.spec.kind: c for c in plain(classifier()).values()}
        for kind in ("linear", "argmax"):
            assert len(found[kind].spec.in_shapes[0]) == 2
            assert (found[kind].source, found[kind].sink, found[kind].neighbours) == (False, False, {})
        assert priced(found["argmax"]) == pytest.approx(alone(found["argmax"]) + RUN_MS, rel=1e-9)
        assert priced(found["linear"]) == pytest.approx(alone(found["linear"]) - SAVING_MS, rel=1e-9)

    def test_is_never_negative(self) -> None:
        context = Context(RELU, X16, True, True)
        one = Boundary(X16, "one").key
        assert price(weights(context), {context.key: (0.9, 0.1), one: (1.0, 0.2)}) == (
            0.0,
            pytest.approx(math.hypot(0.1, 0.2)),
        )

    def test_weights_by_hand(self) -> None:
        """With T of the context: what cancels is not needed, and its noise is not in the price."""
        other, small = (1, 8, 10, 10), (1, 16, 5, 5)

        def of(context: Context, **expected: float) -> None:
            found = weights(context)
            assert found.pop(context.key) == 1.0
            named = {"/".join(key.split("/")[1:]): weight for key, weight in found.items()}
            wanted = {key.replace("_", "/"): weight for key, weight in expected.items()}
            assert named == pytest.approx(wanted)

        of(Context(RELU, X16, True, True), one_1x16x10x10=-1)
        of(Context(RELU, X16, True, True, shared=True), fork_1x16x10x10=-1)
        # Of two shapes of one size, the mean of both.
        of(Context(conv(16, 8), other, True, True), one_1x16x10x10=-0.5, one_1x8x10x10=-0.5)
        # Two sources in a row are two pairs.
        of(Context(OpSpec("add", (("after_conv", True),), (X16, X16)), X16, True, True), two_1x16x10x10=-1)
        # Of two sizes: enter of the one, leave of the other, half a pair of each.
        of(
            Context(OpSpec("max_pool", (("stride", 2),), (X16,)), small, True, True),
            one_1x16x10x10=-2,
            fork_1x16x10x10=1,
            one_1x16x5x5=1,
            fork_1x16x5x5=-1,
        )
        of(Context(RELU, X16, False, True), fork_1x16x10x10=-1, one_1x16x10x10=1)
        of(Context(RELU, X16, True, False), one_1x16x10x10=-2, fork_1x16x10x10=1)
        of(Context(RELU, X16, False, False))

    def test_interval_by_hand(self) -> None:
        took = {"a": (3.0, 0.04), "b": (1.0, 0.03), "c": (0.5, 0.06)}
        assert price({"a": 1.0, "b": -1.0}, took) == pytest.approx((2.0, math.hypot(0.04, 0.03)))
        assert price({"a": 1.0, "b": -2.0, "c": 0.5}, took) == pytest.approx((1.25, math.hypot(0.04, 0.06, 0.03)))


class TestShared:
    """Whether an engine can merge an op into what comes before it."""

    def test_what_alone_reads_a_convolution_is_not(self) -> None:
        found = plain(chain(conv(3, 16), RELU, conv(16, 16), RELU, conv(16, 5)))
        assert not any(c.shared for c in found.values() if c.spec == RELU)

    def test_what_reads_no_convolution_is(self) -> None:
        pool = OpSpec("max_pool", (("stride", 1),), (X16,))
        found = plain(chain(conv(3, 16), pool, RELU, conv(16, 16), conv(16, 5)))
        assert (found[pool].shared, found[RELU].shared) == (False, True)

    def test_what_others_read_too_is_where_that_is_likely(self) -> None:
        first = make_op("conv_bn", dict(conv(3, 16).attrs))
        relu, pool, add = make_op("relu", {}), make_op("max_pool", {"stride": 1}), make_op("add", {"after_conv": True})

        def forward(x: Tensor) -> Tensor:
            x = first(x)
            y: Tensor = add(pool(x), relu(x))
            return y

        trace = trace_calls(forward, {"image": (1, 3, 10, 10)})
        assert [c.spec.kind for c in trace.calls] == ["conv_bn", "max_pool", "relu", "add"]
        for chance, shared in ((0.9, True), (0.1, False)):
            found = contexts([trace], [[1.0, chance, 1.0, 1.0]])
            assert found[RELU].shared is shared
            again = found[RELU].trace()
            assert len(again.outputs) == 1 + shared
            reads = [c.spec.kind for c in again.calls if again.calls[0].output in c.inputs]
            assert reads == ["relu"] + ["conv_bn"] * shared

    def test_two_results_are_two_outputs_that_an_engine_computes_apart(self) -> None:
        """Sinks of equal weights would be computed once, and a second reader would seem to be free."""
        for part in (Boundary(X16, "fork"), Context(RELU, X16, True, True, shared=True)):
            trace = part.trace()
            assert len(trace.outputs) == 2
            entry = trace_entry("context", "k", trace, None, None)
            assert entry.output_shapes() == {"output": (1, 16), "output1": (1, 16)}
            with open_onnx(OpExporter().network(trace).SerializeToString()) as runner:
                found = runner.run({"x0": np.random.default_rng(0).standard_normal(X16).astype(np.float32)})
            assert list(found) == ["output", "output1"]
            assert np.abs(found["output"] - found["output1"]).max() > 1e-4

    def test_activations_in_a_cell_are(self) -> None:
        """Nodes and preprocessed inputs are read by several edges; a sum reads what one edge made."""
        found = every(darts_space(Scale(8, 6, (48, 64)), 5))
        assert all(c.shared for c in found if c.spec.kind == "relu")
        for after_conv in (True, False):  # a sum with a convolution is merged into it
            sums = [c for c in found if c.spec.kind == "add" and dict(c.spec.attrs)["after_conv"] is after_conv]
            assert sums
            assert all(c.shared is not after_conv for c in sums if c.sink)
        assert not any(c.shared for c in found if not c.source or not c.sink)
