"""ONNX Runtime's CUDA engine on a GPU that is not there: the real session computes on the CPU, when the stream runs."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hwnas.errors import DeviceLost, HwnasError, MissingExtra
from hwnas.files import sha256
from hwnas.ops import OpSpec
from hwnas.ops.precision import to_half
from hwnas.profile import Calibration, make_plan
from hwnas.runtime.cuda import timing as cuda_timing
from hwnas.runtime.cuda.kernels import preprocess
from hwnas.runtime.deploy.bundle import open_application
from hwnas.runtime.engines import open_engine
from hwnas.runtime.engines.onnxruntime_cuda import ON_CPU, PROVIDER
from hwnas.runtime.engines.scopes import to_labels
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import Entry, load_plan, write_plan
from hwnas.runtime.measuring.results import collect
from hwnas.runtime.measuring.work import measure_plan
from hwnas.spaces import Scale, darts_space
from tests.contracts import ENDINGS, EngineContract
from tests.fake_gpu import FakeGpu
from tests.test_bundle import MEAN, STD, make, photo
from tests.test_engines import CASES

CPU = "CPUExecutionProvider"
RUN_US = 60.0
KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class Double(ModuleType):
    """An onnxruntime with the CUDA provider.

    Attributes:
        sessions: All that were made.
        available: Providers that it was built with.
        used: Providers that sessions come out with.
        fails: What the next run raises.
    """

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__("onnxruntime")
        self.__spec__ = ModuleSpec("onnxruntime", None)
        self.gpu, self.sessions = gpu, list[Session]()
        self.available, self.used = [PROVIDER, CPU], [PROVIDER, CPU]
        self.preloaded = 0
        self.fails: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcudnn.so.9")

    def InferenceSession(self, *arguments: Any, **more: Any) -> Session:
        self.sessions.append(Session(self, *arguments, **more))
        return self.sessions[-1]


class Session:
    """A session on the GPU that is not there."""

    def __init__(
        self, owner: Double, model: bytes, options: Any, providers: list[tuple[str, Any]], enable_fallback: int
    ) -> None:
        ((self.provider, self.provider_options),) = providers
        self.owner, self.options, self.enable_fallback = owner, options, enable_fallback
        self.real = onnxruntime.InferenceSession(model, providers=[CPU])
        self.bindings: list[Binding] = []
        self.run_options: Any = None

    def get_providers(self) -> list[str]:
        return self.owner.used

    def get_inputs(self) -> list[Any]:
        return list(self.real.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self.real.get_outputs())

    def io_binding(self) -> Binding:
        self.bindings.append(Binding())
        return self.bindings[-1]

    def run_with_iobinding(self, binding: Binding, run_options: Any) -> None:
        if self.owner.fails is not None:
            raise self.owner.fails
        self.run_options = run_options

        def compute() -> None:
            outputs = self.real.run(None, {name: view(*tensor) for name, tensor in binding.inputs.items()})
            for value, array in zip(self.get_outputs(), outputs, strict=True):
                view(*binding.outputs[value.name])[...] = array

        stream = int(self.provider_options["user_compute_stream"])
        assert self.owner.gpu.enqueue(stream, compute, RUN_US, "run_with_iobinding")


class Binding:
    """What was bound to what: (type, shape, address) by name."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Any, list[int], int]] = {}
        self.outputs: dict[str, tuple[Any, list[int], int]] = {}

    def bind_input(self, name: str, device: str, ordinal: int, dtype: Any, shape: list[int], address: int) -> None:
        assert (device, ordinal) == ("cuda", 0)
        self.inputs[name] = dtype, shape, address

    def bind_output(self, name: str, device: str, ordinal: int, dtype: Any, shape: list[int], address: int) -> None:
        assert (device, ordinal) == ("cuda", 0)
        self.outputs[name] = dtype, shape, address


def view(dtype: Any, shape: list[int], address: int) -> np.ndarray:
    """Return an array over memory of the device, which is that of the host."""
    memory = (ctypes.c_uint8 * (int(np.prod(shape)) * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


@pytest.fixture
def double(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Double:
    monkeypatch.setattr(cuda_timing, "SETTLE_S", (0.0, 0.02))
    monkeypatch.setattr(cuda_timing, "SETTLE_WINDOW_S", 0.002)
    made = Double(gpu)
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    return made


@pytest.fixture(params=["fp32"])
def engine(request: pytest.FixtureRequest, double: Double) -> Iterator[Any]:
    opened = open_engine("onnxruntime-cuda", precision=request.param)
    yield opened
    opened.close()  # type: ignore[attr-defined]


def an_entry(folder: Path, engine: Any, case: OpSpec = CASES["conv_bn"]) -> Entry:
    return EngineContract().entry(engine, case, folder)[0]


def graph_of(content: bytes, folder: Path, entry: Entry) -> Entry:
    """Return an entry of another file."""
    (folder / "op.onnx").write_bytes(content)
    return replace(entry, sha256=sha256(content))


class TestContract(EngineContract):
    @pytest.fixture(params=sorted(CASES))
    def op_case(self, request: pytest.FixtureRequest) -> OpSpec:
        return CASES[request.param]


class TestCalls:
    def test_a_session_is_on_our_stream_and_on_nothing_but_the_gpu(
        self, engine: Any, double: Double, tmp_path: Path
    ) -> None:
        with engine.load(an_entry(tmp_path, engine), tmp_path) as runner:
            runner.time(1)
            handle = engine.gpu.stream().handle
        (session,) = double.sessions
        assert session.provider == PROVIDER
        assert session.provider_options == {
            "device_id": "0", "user_compute_stream": str(handle), "do_copy_in_default_stream": "1", "use_tf32": "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE", "arena_extend_strategy": "kSameAsRequested",
        }  # fmt: skip
        assert session.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        assert session.options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert session.options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        assert not session.enable_fallback
        assert session.run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"

    def test_runs_read_and_write_our_memory(self, engine: Any, double: Double, tmp_path: Path) -> None:
        entry = an_entry(tmp_path, engine, ENDINGS["labels"])
        with engine.load(entry, tmp_path) as runner:
            memory = runner.loaded.build(0)[0].memory
            (binding,) = double.sessions[0].bindings
            assert binding.inputs == {"x0": (np.float32, [1, 3, 32, 48], memory["x0"].address)}
            assert binding.outputs == {"y": (np.uint8, [1, 32, 48], memory["y"].address)}

    def test_nothing_is_copied_allocated_or_captured_while_it_is_timed(
        self, engine: Any, gpu: FakeGpu, tmp_path: Path
    ) -> None:
        with engine.load(an_entry(tmp_path, engine), tmp_path) as runner:
            runner.time(2)
            gpu.reset()
            samples = runner.time(4)
            log = gpu.log()
        assert samples.about["launch"] == "enqueue"
        assert samples.latency_ms == pytest.approx(np.full(4, (RUN_US + 4) / 1000))
        assert samples.about["enqueue_ms"] == pytest.approx(samples.latency_ms[0])
        names = [name for name, _ in log]
        assert not [
            n for n in names if "Memcpy" in n or "Alloc" in n or "Create" in n or "Capture" in n or "Graph" in n
        ]
        begin = names.index("cuEventRecord")
        assert names[begin : begin + 3] == ["cuEventRecord", "run_with_iobinding", "cuEventRecord"]
        streams = {number for name, number in log if name in ("run_with_iobinding", "cuEventRecord", "l2_flush")}
        assert len(streams) == 1
        assert streams.isdisjoint({0, -1})

    def test_a_run_is_not_waited_for(self, engine: Any, gpu: FakeGpu, tmp_path: Path) -> None:
        with engine.load(an_entry(tmp_path, engine), tmp_path) as runner, engine.gpu.cuda:
            gpu.reset()
            runner.loaded.build(0)[0].enqueue()
            assert gpu.names() == ["run_with_iobinding"]
            engine.gpu.stream().synchronize()

    def test_libraries_that_pip_installed_are_loaded_without_a_word(
        self, engine: Any, double: Double, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert double.preloaded == 1
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize("engine", ["fp32", "tf32", "fp16"], indirect=True)
    def test_precision(self, engine: Any, double: Double, tmp_path: Path) -> None:
        """What is float16 is so in the file; TF32 is an option of the provider."""
        precision = engine.provenance()["precision"]
        entry, op = EngineContract().entry(engine, CASES["conv_bn"], tmp_path)
        if precision == "fp16":
            model = to_half(onnx.load_model_from_string((tmp_path / "op.onnx").read_bytes()))
            entry = graph_of(model.SerializeToString(), tmp_path, entry)
        x = np.random.default_rng(0).standard_normal(entry.inputs["x0"]).astype(np.float32)
        with engine.load(entry, tmp_path) as runner:
            got = runner.run({"x0": x})["y"]
        assert got.dtype == np.float32
        loose = 1e-2 if precision == "fp16" else 1e-5
        import torch

        np.testing.assert_allclose(got, op(torch.from_numpy(x)).detach().numpy(), rtol=loose, atol=loose)
        assert double.sessions[0].provider_options["use_tf32"] == ("1" if precision == "tf32" else "0")

    def test_it_says_what_it_is(self, engine: Any) -> None:
        about = engine.provenance()
        assert json.loads(json.dumps(about)) == about
        assert about["device"]["name"] == "Fake GPU 9000"
        assert (about["name"], about["clock"], about["version"]) == (
            "onnxruntime-cuda", "device", onnxruntime.__version__,
        )  # fmt: skip
        assert about["options"]["cudnn_conv_algo_search"] == "EXHAUSTIVE"
        assert about["options"]["use_tf32"] == "0"
        assert about["options"]["driver"] == "570.1"
        assert "user_compute_stream" not in about["options"]  # an address: another each time
        assert not engine.capabilities.on_host
        assert 0 < engine.free_memory_bytes() <= 8 << 30


def test_a_plan_is_measured(engine: Any, tmp_path: Path) -> None:
    space = darts_space(Scale(4, 3, (24, 32)), 5, nodes=2, head_channels=8)
    make_plan(space, [space.scale], tmp_path, Calibration(fit=4, test=4, isolated=False))
    write_plan(tmp_path, load_plan(tmp_path).entries[::8])  # some of all kinds
    results = measure_plan(tmp_path, engine.name, stop=StopRule(min_visits=2, max_visits=3, min_s=0.0))
    where, rows = collect(results, load_plan(tmp_path))
    assert (where["clock"], where["device"]["name"]) == ("device", "Fake GPU 9000")
    assert {row.status for row in rows} == {"ok"}
    for row in rows:
        assert row.measurement is not None
        assert row.measurement.about.keys() >= {"enqueue_ms", "cold_ms", "sm_mhz"}


@pytest.mark.parametrize("kind", ENDINGS)
def test_a_bundle_is_run_on_the_gpu_from_image_to_labels(
    kind: str, double: Double, gpu: FakeGpu, tmp_path: Path
) -> None:
    bundle = replace(make(tmp_path, kind), engine="onnxruntime-cuda")
    image = photo()
    with open_application(bundle) as application:
        gpu.reset()
        labels, names = application.labels(image), gpu.names()
        output = application.output(image)
    launched = ["preprocess_f32", "run_with_iobinding", *([] if kind == "labels" else ["upsample_argmax_f32"])]
    assert [n for n in names if n in ("preprocess_f32", "run_with_iobinding", "upsample_argmax_f32")] == launched
    expected = onnxruntime.InferenceSession(bundle.path).run(None, {"x0": preprocess(image[None], MEAN, STD)})[0]
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, to_labels(expected, bundle.input.size)[0])


class TestErrors:
    def test_without_the_package_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtra, match=r"onnxruntime is not installed; run: pip install 'hwnas\[gpu\]'"):
            open_engine("onnxruntime-cuda")

    def test_the_package_without_cuda_names_the_other(self, double: Double) -> None:
        double.available = ["AzureExecutionProvider", CPU]
        said = (
            r"has no CUDAExecutionProvider here; onnxruntime and onnxruntime-gpu overwrite each other.*'hwnas\[gpu\]'"
        )
        with pytest.raises(MissingExtra, match=said):
            open_engine("onnxruntime-cuda")

    def test_another_precision(self) -> None:
        with pytest.raises(HwnasError, match="computes in fp32, tf32, fp16, got 'int8'"):
            open_engine("onnxruntime-cuda", precision="int8")

    def test_a_session_on_the_cpu_is_refused(
        self, engine: Any, double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = an_entry(tmp_path, engine)
        said = r"onnxruntime would run op\.onnx on the CPU, .* either lacks an op of it or did not load"
        double.used = [CPU]
        with pytest.raises(HwnasError, match=said):
            engine.load(entry, tmp_path).__enter__()
        # In the words of the real one, which is without the provider here.
        real = onnxruntime.InferenceSession
        monkeypatch.setattr(
            Double,
            "InferenceSession",
            lambda self, model, options, providers, **more: real(model, options, providers=[], **more),
        )
        with pytest.raises(HwnasError, match=said) as refusal:
            engine.load(entry, tmp_path).__enter__()
        assert ON_CPU in str(refusal.value.__cause__)

    def test_a_model_it_cannot_read(self, engine: Any, tmp_path: Path) -> None:
        entry = graph_of(b"not a model", tmp_path, an_entry(tmp_path, engine))
        with pytest.raises(HwnasError, match=r"onnxruntime cannot run op\.onnx: .*") as refusal:
            engine.load(entry, tmp_path).__enter__()
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("kind", "node", "shape", "said"),
        [
            (TensorProto.FLOAT, "Relu", ["n", 4], r"input 'x0' has the shape \['n', 4\]; export with fixed sizes"),
            (TensorProto.INT64, "Abs", [1, 4], r"input 'x0' is tensor\(int64\); export with float32 inputs"),
            (
                TensorProto.FLOAT,
                "IsNaN",
                [1, 4],
                r"the result 'y' is tensor\(bool\) \[1, 4\]; export float32 or labels",
            ),
        ],
    )
    def test_tensors_that_cannot_be_bound(
        self, engine: Any, tmp_path: Path, kind: int, node: str, shape: list[Any], said: str
    ) -> None:
        out = TensorProto.BOOL if node == "IsNaN" else kind
        ends = [helper.make_tensor_value_info(n, k, shape) for n, k in (("x0", kind), ("y", out))]
        made = helper.make_graph([helper.make_node(node, ["x0"], ["y"])], "g", ends[:1], ends[1:])
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        entry = graph_of(model.SerializeToString(), tmp_path, an_entry(tmp_path, engine))
        with pytest.raises(HwnasError, match=rf"op\.onnx: {said}"):
            engine.load(entry, tmp_path).__enter__()

    def test_inputs_that_are_not_the_plans_are_refused(self, engine: Any, tmp_path: Path) -> None:
        entry = replace(an_entry(tmp_path, engine), inputs={"x0": (1, 4, 5, 5)})
        with pytest.raises(HwnasError, match=r"op\.onnx has the inputs .*, the plan says float32 .*\(1, 4, 5, 5\)"):
            engine.load(entry, tmp_path).__enter__()

    @pytest.mark.parametrize(
        ("code", "kind"), [("700: an illegal memory access was encountered", DeviceLost), ("2: out of memory", None)]
    )
    def test_an_error_of_a_run_names_the_file_and_a_lost_device(
        self, engine: Any, double: Double, tmp_path: Path, code: str, kind: type[HwnasError] | None
    ) -> None:
        state = onnxruntime.capi.onnxruntime_pybind11_state
        with engine.load(an_entry(tmp_path, engine), tmp_path) as runner:
            double.fails = state.Fail(f"[ONNXRuntimeError] : 1 : FAIL : CUDA failure {code} ; GPU=0 ;\n expr=launch()")
            with pytest.raises(HwnasError, match=r"onnxruntime cannot run op\.onnx: .*CUDA failure .* expr") as failure:
                runner.time(1)
        assert type(failure.value) is (kind or HwnasError)
        assert "\n" not in str(failure.value)

    def test_everything_is_given_back_when_loading_fails(self, engine: Any, tmp_path: Path, gpu: FakeGpu) -> None:
        entry = an_entry(tmp_path, engine)
        with engine.load(entry, tmp_path):
            pass  # the timer is there
        before = gpu.live
        for name in ("cuMemAlloc", "cuMemcpyHtoDAsync", "cuStreamSynchronize"):
            gpu.fail(name, 2)
            with pytest.raises(HwnasError, match="out of memory"), engine.load(entry, tmp_path) as runner:
                runner.time(1)
            assert gpu.live == before


def test_the_double_has_what_the_real_one_has() -> None:
    """Our calls are those of the installed release: its own Python takes these names."""
    import inspect

    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession, IOBinding

    assert "enable_fallback" in inspect.getsource(InferenceSession.__init__)
    for bind in (IOBinding.bind_input, IOBinding.bind_output):
        names = list(inspect.signature(bind).parameters)[1:]
        assert names == ["name", "device_type", "device_id", "element_type", "shape", "buffer_ptr"]
    inspect.signature(InferenceSession.run_with_iobinding).bind(SimpleNamespace(), "binding", "options")
