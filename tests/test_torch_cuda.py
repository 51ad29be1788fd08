"""PyTorch's GPU engines on a GPU that is not there, and what of them needs none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.errors import DeviceLost, HwnasError, MissingExtra
from hwnas.ops import OpSpec
from hwnas.profile import Calibration, make_plan, trace_entry
from hwnas.runtime.cuda import timing as cuda_timing
from hwnas.runtime.cuda.bindings import _Stream
from hwnas.runtime.engines import open_engine, torch_cuda
from hwnas.runtime.engines.torch import entry_module
from hwnas.runtime.engines.torch_cuda import to_dense, to_half
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import Call, Entry, load_plan, write_plan
from hwnas.runtime.measuring.results import collect
from hwnas.runtime.measuring.work import measure_plan
from hwnas.spaces import Scale, darts_space, sample, trace_space
from tests.contracts import ENDINGS, EngineContract
from tests.fake_gpu import FakeGpu
from tests.fake_torch_cuda import DEFAULT, RUN_US, TorchCuda
from tests.test_engines import CASES

NAMES = ("torch-cuda", "torch-cuda-graph", "torch-cuda-compiled")
GRAPHS = NAMES[1:]
SPACE = darts_space(Scale(4, 3, (24, 32)), 5, nodes=2, head_channels=8)
X = (1, 8, 13, 18)
BACKENDS: Any = torch.backends
FLOAT32 = (BACKENDS.cuda.matmul, BACKENDS.cudnn, BACKENDS.cudnn.conv)


@pytest.fixture
def double(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchCuda]:
    monkeypatch.setattr(cuda_timing, "SETTLE_S", (0.0, 0.02))
    monkeypatch.setattr(cuda_timing, "SETTLE_WINDOW_S", 0.002)
    monkeypatch.setattr(BACKENDS.cudnn, "benchmark", False)
    before = [(settings, settings.fp32_precision) for settings in FLOAT32]
    made = TorchCuda(gpu, monkeypatch)
    yield made
    for settings, precision in before:
        settings.fp32_precision = precision
    assert made.current == DEFAULT


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest, double: TorchCuda) -> Iterator[Any]:
    name, _, precision = request.param.partition(":")
    opened = open_engine(name, precision=precision or "fp32")
    yield opened
    opened.close()  # type: ignore[attr-defined]


def only(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("engine", names, indirect=True)


def an_entry(spec: OpSpec = CASES["conv_bn"]) -> Entry:
    """Return an entry without a file."""
    inputs = {f"x{i}": s for i, s in enumerate(spec.in_shapes)}
    call = Call(spec.kind, dict(spec.attrs), spec.in_shapes, tuple(inputs), "y", (1,), 1, 1)
    return Entry(spec.key, "op", None, None, (call,), inputs, ("y",))


def a_network() -> Entry:
    """Return a network of many ops, without a file."""
    entry = trace_entry("net", "net", trace_space(SPACE, sample(SPACE, np.random.default_rng(0))), None, None)
    assert len(entry.calls) > 20
    return entry


def inputs_of(entry: Entry, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in entry.inputs.items()}


class TestContract(EngineContract):
    @pytest.fixture(params=sorted(CASES))
    def op_case(self, request: pytest.FixtureRequest) -> OpSpec:
        return CASES[request.param]


class TestCalls:
    def test_what_is_launched_how(self, engine: Any, gpu: FakeGpu, tmp_path: Path) -> None:
        """By the rules of the fake: a launch takes 4 us, in a graph 1, and the graph itself 4."""
        with engine.load(an_entry(), tmp_path) as runner:
            samples = runner.time(4)
        launched = RUN_US + 4
        assert samples.about["enqueue_ms"] == pytest.approx(launched / 1000)
        if engine.name == "torch-cuda":
            assert samples.about["launch"] == "enqueue"
            assert samples.latency_ms == pytest.approx(np.full(4, launched / 1000))
            assert "cuGraphLaunch" not in gpu.names()
        else:
            assert samples.about["launch"] == "graph"
            assert samples.latency_ms == pytest.approx(np.full(4, (RUN_US + 1 + 4) / 1000))

    @only("torch-cuda-graph")
    def test_short_runs_share_a_graph(
        self, engine: Any, double: TorchCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tests.fake_torch_cuda.RUN_US", 2.0)
        with engine.load(an_entry(), tmp_path) as runner, engine.load(an_entry(), tmp_path) as other:
            samples, runs = runner.time(3), runner.loaded.build(0)[1]._runs
            other.time(1)
        assert 5 <= runs <= 30
        assert samples.latency_ms == pytest.approx(np.full(3, (3 + 4 / runs) / 1000))
        assert len(double.pools) == 4
        assert len(set(double.pools)) == 1  # their memory is shared

    def test_all_is_on_our_stream_and_nothing_is_copied_while_it_is_timed(
        self, engine: Any, gpu: FakeGpu, tmp_path: Path
    ) -> None:
        gpu.reset()
        with engine.load(an_entry(), tmp_path) as runner:
            runner.time(2)
            work = ("torch", "cuGraphLaunch", "cuEventRecord", "l2_flush", "cuMemcpyHtoDAsync")
            streams = {number for name, number in gpu.log() if name in work}
            gpu.reset()
            runner.time(2)
            names = gpu.names()
        assert len(streams) == 1
        assert streams.isdisjoint({0, -1})
        assert not [n for n in names if "Memcpy" in n or "Alloc" in n or "Create" in n or "Capture" in n]

    def test_a_runner_that_is_closed_leaves_the_others_on_our_stream(
        self, engine: Any, gpu: FakeGpu, tmp_path: Path
    ) -> None:
        with engine.load(an_entry(), tmp_path) as runner:
            with engine.load(an_entry(), tmp_path) as other:
                other.time(1)
            gpu.reset()
            runner.time(2)
            streams = {number for name, number in gpu.log() if name in ("torch", "cuGraphLaunch", "cuEventRecord")}
        assert len(streams) == 1
        assert streams.isdisjoint({0, -1})

    def test_torch_captures_and_our_stream_does_not(
        self, engine: Any, double: TorchCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_Stream, "capture", lambda *_: pytest.fail("our stream captured torch"))
        with engine.load(an_entry(), tmp_path) as runner:
            runner.time(1)
        assert len(double.pools) == (0 if engine.name == "torch-cuda" else 1)

    @only(*GRAPHS)
    @pytest.mark.parametrize("role", ["net", "copies", "application"])
    def test_a_graph_computes_what_a_run_does(self, engine: Any, tmp_path: Path, role: str) -> None:
        entry = replace(an_entry(ENDINGS["scores"]), role=role)
        with engine.load(entry, tmp_path) as runner, engine.gpu.cuda:
            network, stream, x = runner.loaded.build(0)[0], engine.gpu.stream(), inputs_of(entry)
            expected = runner.run(x)["y"]
            graph = engine.capture(network.enqueue)
            stream.copy_in(network.memory["x0"], 3 * x["x0"])
            graph.launch()
            got = np.empty_like(expected)
            stream.copy_out(got, network.memory["y"])
            stream.synchronize()
            graph.close()
            np.testing.assert_allclose(got, runner.run({"x0": 3 * x["x0"]})["y"], rtol=1e-5, atol=1e-6)
            assert abs(got - expected).max() > 0.1
            assert runner.time(2).about["launch"] == "graph"

    @only("torch-cuda-graph")
    def test_a_scope_is_captured_with_its_copies(self, engine: Any, gpu: FakeGpu, tmp_path: Path) -> None:
        entry = replace(an_entry(ENDINGS["scores"]), role="application")
        with engine.load(entry, tmp_path) as runner:
            runner.time(1)
            gpu.reset()
            with engine.gpu.cuda:
                runner.loaded.build(0)[1]._once.launch()
                engine.gpu.stream().synchronize()
            assert [n for n in gpu.names() if "Ctx" not in n] == ["cuGraphLaunch", "cuStreamSynchronize"]
            gpu.reset()
            with engine.gpu.cuda:
                engine.capture(runner.loaded.build(0)[1]._work).close()
        work = ["cuMemcpyHtoDAsync", "preprocess_f32", "torch", "upsample_argmax_f32", "cuMemcpyDtoHAsync"]
        assert [n for n in gpu.names() if n in work] == work

    def test_what_is_compiled(self, engine: Any, double: TorchCuda, tmp_path: Path) -> None:
        with engine.load(an_entry(), tmp_path):
            pass
        wanted = {"mode": "max-autotune-no-cudagraphs", "dynamic": False, "fullgraph": True}
        assert double.compiled == ([wanted] if engine.name == "torch-cuda-compiled" else [])


class TestPrecision:
    @only("torch-cuda:fp32", "torch-cuda:tf32", "torch-cuda:fp16")
    def test_float32_is_so_unless_tf32_is_asked_for(self, engine: Any, tmp_path: Path) -> None:
        with engine.load(an_entry(), tmp_path):
            wanted = "tf32" if engine.provenance()["precision"] == "tf32" else "ieee"
            assert [settings.fp32_precision for settings in FLOAT32] == [wanted] * 3
            assert BACKENDS.cudnn.benchmark

    @only("torch-cuda:fp16")
    @pytest.mark.parametrize("case", sorted(CASES))
    def test_half_is_half_inside_and_float32_outside(self, engine: Any, tmp_path: Path, case: str) -> None:
        entry = an_entry(CASES[case])
        inputs = inputs_of(entry)
        with torch.inference_mode():
            expected = entry_module(entry)(*map(torch.from_numpy, inputs.values()))[0].numpy()
        with engine.load(entry, tmp_path) as runner:
            module = runner.loaded.build(0)[0]._module
            got = runner.run(inputs)["y"]
        assert {p.dtype for p in module.parameters()} <= {torch.float16}
        assert got.dtype == expected.dtype
        if case == "argmax":
            assert (got == expected).mean() > 0.99  # but where two are equal in half
        else:
            np.testing.assert_allclose(got, expected, rtol=2e-2, atol=2e-2)

    @only("torch-cuda:fp16")
    def test_half_lies_channels_last(self, engine: Any, tmp_path: Path) -> None:
        module: Any = engine.module(a_network()).module
        weights = [p for p in module.parameters() if p.dim() == 4]
        assert weights
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
        seen: list[torch.Tensor] = []
        hooks = [m.register_forward_pre_hook(lambda _, args: seen.extend(args)) for m in module.children()]
        with torch.inference_mode():
            module(torch.zeros(1, 3, 24, 32))
        assert len(hooks) > 20
        maps = [x for x in seen if x.dim() == 4 and x.shape[1] > 1]
        assert {x.dtype for x in maps} == {torch.float16}
        assert {x.stride(1) for x in maps} == {1}
        assert engine.provenance()["options"]["memory_format"] == "channels_last"

    def test_what_is_read_and_given(self) -> None:
        x = torch.randn(1, 4, 3, 5)
        half = to_half(x)
        assert half.dtype == torch.float16
        assert half.is_contiguous(memory_format=torch.channels_last)
        assert to_half(torch.randn(1, 8)).shape == (1, 8)
        assert to_dense(x) is x  # nothing is done where nothing must be
        for odd in (half, x[:, :, 1:, 1:], half.argmax(dim=1).to(torch.uint8)[:, ::2]):
            dense = to_dense(odd)
            assert dense.is_contiguous()
            assert dense.dtype == (torch.float32 if odd.is_floating_point() else torch.uint8)
            assert torch.equal(dense.double(), odd.double())


class TestErrors:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_torch_without_cuda(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", None)
        said = rf"engine '{name}' needs a PyTorch with CUDA, got PyTorch .*; install the one from PyPI .*whl/cu126"
        with pytest.raises(MissingExtra, match=said) as refusal:
            open_engine(name)
        assert "\n" not in str(refusal.value)

    def test_a_torch_that_finds_no_gpu(self, double: TorchCuda, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(HwnasError, match=r"with CUDA 12\.8 finds no GPU that it can use; update NVIDIA's driver"):
            open_engine("torch-cuda")

    def test_another_precision(self) -> None:
        with pytest.raises(HwnasError, match="computes in fp32, tf32, fp16, got 'int8'"):
            open_engine("torch-cuda", precision="int8")

    @pytest.mark.parametrize(("code", "kind"), [(None, HwnasError), (2, HwnasError), (700, DeviceLost)])
    @pytest.mark.parametrize("when", ["loading", "running"])
    @only("torch-cuda-graph")
    def test_what_torch_raises_names_the_entry(
        self,
        engine: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        when: str,
        code: int | None,
        kind: type[HwnasError],
    ) -> None:
        error = RuntimeError("backend='inductor' raised:\nTritonMissing: Cannot find a working triton\n\n" + 900 * "x")
        if code is not None:
            error.error_code = code  # type: ignore[attr-defined] # as torch.AcceleratorError has it

        def fail(*_: object) -> None:
            raise error

        entry = an_entry()
        if when == "loading":
            monkeypatch.setattr(torch_cuda, "entry_module", fail)
        else:
            monkeypatch.setattr("tests.fake_torch_cuda.Deferred.forward", fail)
        with pytest.raises(HwnasError, match=r"torch cannot run conv_bn\(.*: backend=.* TritonMissing: ") as failure:
            engine.load(entry, tmp_path).__enter__()
        assert type(failure.value) is kind
        assert "\n" not in str(failure.value)
        assert len(str(failure.value)) < 500

    @only(*GRAPHS)
    def test_what_cannot_be_captured(self, engine: Any, tmp_path: Path) -> None:
        with engine.load(an_entry(), tmp_path) as runner:
            with pytest.raises(HwnasError, match="CUDA_ERROR"), engine.gpu.cuda:
                engine.capture(engine.gpu.stream().synchronize)
            assert runner.time(1).about["launch"] == "graph"  # the stream works again

    def test_everything_is_given_back_when_loading_fails(self, engine: Any, tmp_path: Path, gpu: FakeGpu) -> None:
        with engine.load(an_entry(), tmp_path):
            pass  # the timer is there
        before = gpu.live
        for name in ("cuMemcpyHtoDAsync", "cuStreamSynchronize"):
            gpu.fail(name, 2)
            with pytest.raises(HwnasError, match="out of memory"), engine.load(an_entry(), tmp_path) as runner:
                runner.time(1)
            assert gpu.live == before


@only(*NAMES, "torch-cuda:fp16", "torch-cuda-compiled:tf32")
def test_it_says_what_it_is(engine: Any) -> None:
    about = engine.provenance()
    assert json.loads(json.dumps(about)) == about
    assert (about["version"], about["clock"]) == (torch.__version__, "device")
    assert about["device"]["name"] == "Fake GPU 9000"
    options = about["options"]
    assert (
        options["mode"]
        == {
            "torch-cuda": "eager",
            "torch-cuda-graph": "eager, graph",
            "torch-cuda-compiled": "compiled: max-autotune-no-cudagraphs, graph",
        }[about["name"]]
    )
    assert options["memory_format"] == ("channels_last" if about["precision"] == "fp16" else "contiguous")
    assert (options["torch_cuda"], options["cudnn_benchmark"], options["driver"]) == ("12.8", True, "570.1")
    assert not engine.capabilities.merges
    assert not engine.capabilities.on_host
    assert 0 < engine.free_memory_bytes() <= 8 << 30


@only("torch-cuda-graph:fp16")
def test_a_plan_is_measured(engine: Any, tmp_path: Path) -> None:
    make_plan(SPACE, [SPACE.scale], tmp_path, Calibration(fit=4, test=4, isolated=False), precision="fp16")
    write_plan(tmp_path, load_plan(tmp_path).entries[::8], "fp16")  # some of all kinds
    results = measure_plan(tmp_path, engine.name, stop=StopRule(min_visits=2, max_visits=3, min_s=0.0))
    where, rows = collect(results, load_plan(tmp_path))
    assert (where["clock"], where["engine"]["precision"], where["merges"]) == ("device", "fp16", False)
    assert {row.status for row in rows} == {"ok"}
    for row in rows:
        assert row.measurement is not None
        assert row.measurement.about["enqueue_ms"] > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # of inductor's own
class TestCompile:
    """What `torch.compile` makes of our modules, with the real one; kernels are not built."""

    def test_a_network_is_one_graph(self) -> None:
        entry = a_network()
        module = entry_module(entry, give=to_dense)
        compiled: Any = torch.compile(module, backend="eager", dynamic=False, fullgraph=True)
        x = torch.from_numpy(inputs_of(entry)["image"])
        with torch.inference_mode():
            for got, expected in zip(compiled(x), module(x), strict=True):
                torch.testing.assert_close(got, expected)

    def test_each_module_is_compiled_for_itself(self) -> None:
        """`torch.compile` gives up on code that it has compiled for eight modules."""
        made = []
        for i in range(12):
            entry = an_entry(OpSpec("relu", (), ((1, 1, 1, i + 2),)))
            module: Any = torch.compile(entry_module(entry), backend="eager", dynamic=False, fullgraph=True)
            with torch.inference_mode():
                made.append(module(torch.ones(entry.inputs["x0"]))[0].shape[-1])
        assert made == list(range(2, 14))

    def test_equal_pools_are_not_merged(self) -> None:
        from torch._inductor.compile_fx import compile_fx

        pools = [Call("max_pool", {"stride": 1}, (X,), ("x0",), f"p{i}", X, 1, 1) for i in range(3)]
        entry = Entry("pools", "net", None, None, tuple(pools), {"x0": X}, ("p0", "p1", "p2"))
        kinds: list[str] = []

        def inner(graph: Any, inputs: Any, **_: Any) -> Any:
            kinds.extend(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        backend = partial(compile_fx, inner_compile=inner)
        compiled: Any = torch.compile(entry_module(entry), backend=backend, dynamic=False, fullgraph=True)
        with torch.inference_mode():
            compiled(torch.ones(X))
        assert sum("max_pool" in kind for kind in kinds) == 3
