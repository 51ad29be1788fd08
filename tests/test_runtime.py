"""Measuring: plans, engines, the stop rule, and whole runs that are killed, crash or hang."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import HwnasError, MissingExtra, ProvenanceError
from hwnas.files import sha256
from hwnas.runtime.__main__ import main
from hwnas.runtime.device import cpu_identity, device_name, provenance, same_device
from hwnas.runtime.engines import ENGINES, open_engine
from hwnas.runtime.engines.fake import LAUNCH_MS, RUN_MS, SAVING_MS, modelled_ms
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.journal import Journal, read_journal
from hwnas.runtime.measure import Measurement, Samples, StopRule, measure, median_interval, timed
from hwnas.runtime.plan import Call, Entry, load_plan, write_plan
from hwnas.runtime.supervise import supervise
from hwnas.runtime.work import Progress, Row, collect, measure_plan, settled

ROOT = Path(__file__).parents[1]
SHAPE = (1, 4, 9, 8)
OUT_SHAPE = (1, 6, 9, 8)


def conv_relu(folder: Path, name: str = "conv", height: int | str = 9) -> tuple[str, np.ndarray]:
    """Write an ONNX file of a 1x1 convolution and a ReLU; return its path in the folder and the weights."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(1).standard_normal((6, 4, 1, 1)).astype(np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x0", "w"], ["c"]), onnx.helper.make_node("Relu", ["c"], ["v1"])],
        name,
        [value("x0", onnx.TensorProto.FLOAT, [1, 4, height, 8])],
        [value("v1", onnx.TensorProto.FLOAT, [1, 6, height, 8])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / f"{name}.onnx")
    return f"{name}.onnx", weight


def conv_entry(key: str, folder: Path | None = None, file: str | None = None, macs: int = 1728) -> Entry:
    call = Call("conv", {"kernel": 1}, (SHAPE,), ("x0",), "v1", OUT_SHAPE, macs, 2976)
    digest = sha256((folder / file).read_bytes()) if folder is not None and file is not None else None
    return Entry(key, "op", file, digest, (call,), {"x0": SHAPE}, ("v1",))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of four entries without files."""
    folder = tmp_path / "plan"
    write_plan(folder, [conv_entry(f"op{i}", macs=10**6 * (i + 1)) for i in range(4)])
    return folder


# --- plan


def test_plan_round_trip(tmp_path: Path) -> None:
    file, _ = conv_relu(tmp_path)
    entries = [conv_entry("a", tmp_path, file), conv_entry("b")]
    written = write_plan(tmp_path, entries)
    assert load_plan(tmp_path) == written
    assert written.entries == tuple(entries)
    assert written.entries[0].output_shapes() == {"v1": OUT_SHAPE}
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["schema"] == 1
    assert content["id"] == sha256(json.dumps(content["entries"], sort_keys=True, separators=(",", ":")))


def test_plan_says_which_file_of_which_entry_is_wrong(tmp_path: Path) -> None:
    file, _ = conv_relu(tmp_path)
    write_plan(tmp_path, [conv_entry("a", tmp_path, file)])
    content = bytearray((tmp_path / file).read_bytes())
    content[-1] ^= 1
    (tmp_path / file).write_bytes(bytes(content))
    with pytest.raises(HwnasError, match=r"conv\.onnx of entry 'a' does not match its checksum"):
        load_plan(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(HwnasError, match=r"cannot read .*conv\.onnx of entry 'a': No such file"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(schema=2), "has schema 2, this version reads 1"),
        (lambda p: p["entries"][0].update(key="zz"), "its id does not match its entries"),
        (lambda p: p["entries"][0]["calls"][0].update(macs=5), "its id does not match its entries"),
        (lambda p: p["entries"][0].update(key="op1"), "entry 'op1': the key occurs twice"),
        (lambda p: p["entries"][0].update(role="block"), "entry 'op0': role must be one of op, net, got 'block'"),
        (lambda p: p["entries"][0].update(onnx="../a.onnx", sha256="0"), "must be a path inside the plan folder"),
        (lambda p: p["entries"][0].update(onnx="/a.onnx", sha256="0"), "must be a path inside the plan folder"),
        (lambda p: p["entries"][0].update(onnx="a.onnx"), "onnx and sha256 go together"),
        (lambda p: p["entries"][0].update(outputs=["v9"]), "outputs must name values that its calls make"),
        (lambda p: p["entries"][0]["inputs"].update(x0=[1, 0]), "positive integers, got"),
        (lambda p: p["entries"][0]["calls"][0].update(bytes=-1), "bytes must be an integer and not negative, got -1"),
        (lambda p: p["entries"][0].pop("calls"), "entry 'op0': expected an object with calls, inputs"),
        (lambda p: p.pop("id"), "expected an object with schema, id and entries"),
        (lambda p: p.update(entries={}), "entries must be a list, got dict"),
    ],
)
def test_plan_that_was_changed_is_refused(plan: Path, change: Any, message: str) -> None:
    content = json.loads((plan / "plan.json").read_text())
    change(content)
    (plan / "plan.json").write_text(json.dumps(content))
    with pytest.raises(HwnasError, match=message):
        load_plan(plan)


def test_write_plan_refuses_what_load_would(tmp_path: Path) -> None:
    with pytest.raises(HwnasError, match="entry 'a': the key occurs twice"):
        write_plan(tmp_path, [conv_entry("a"), conv_entry("a")])
    assert not (tmp_path / "plan.json").exists()


# --- engines: the contract of all


def make_runner(name: str, folder: Path) -> Any:
    file = conv_relu(folder)[0] if name == "onnxruntime" else None
    return open_engine(name).load(conv_entry("a", folder, file), folder)


@pytest.mark.parametrize("name", ["onnxruntime", "fake"])
def test_engine_contract(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    runner = make_runner(name, tmp_path)
    with pytest.raises(HwnasError, match="is new; use it inside a with block"):
        runner.time(1)
    with runner as inside:
        assert inside.run({"x0": x})["v1"].shape == OUT_SHAPE
        for n in (1, 5):
            samples = inside.time(n)
            assert samples.latency_ms.shape == samples.wall_ms.shape == (n,)
            assert (samples.latency_ms > 0).all()
            assert (samples.wall_ms > 0).all()
        with pytest.raises(HwnasError, match=r"takes the inputs .*got \{'x1'"):
            inside.run({"x1": x})
        with pytest.raises(HwnasError, match="float64"):
            inside.run({"x0": x.astype(np.float64)})
        with pytest.raises(HwnasError, match="was entered before"):
            runner.__enter__()
        assert inside.time(1).latency_ms.shape == (1,)
    for use in (lambda: runner.run({"x0": x}), lambda: runner.time(1)):
        with pytest.raises(HwnasError, match="is closed; use it inside a with block"):
            use()
    with pytest.raises(HwnasError, match="was entered before"):
        runner.__enter__()


@pytest.mark.parametrize("name", ["onnxruntime", "fake"])
def test_engine_provenance_is_json(name: str) -> None:
    pytest.importorskip("onnxruntime")
    engine = open_engine(name, threads=2)
    about = engine.provenance()
    assert json.loads(json.dumps(about)) == about
    assert about.keys() >= {"name", "version", "precision", "threads", "clock", "options"}
    assert (engine.name, about["name"], about["threads"], about["clock"]) == (name, name, 2, engine.clock)
    assert engine.merges


def test_open_engine_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HwnasError, match="unknown engine 'onnxruntim'; did you mean 'onnxruntime'"):
        open_engine("onnxruntim")
    with pytest.raises(HwnasError, match="unknown engine 'json:nothing'"):
        open_engine("json:nothing")
    with pytest.raises(HwnasError, match="threads must be at least 1, got 0"):
        open_engine("fake", threads=0)
    (tmp_path / "needy_engine.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match="'needy_engine:E' needs the module no_such_package, which is not installed"):
        open_engine("needy_engine:E")
    assert set(ENGINES) == {"onnxruntime", "fake", "torch"}


def test_onnxruntime_agrees_with_numpy(tmp_path: Path) -> None:
    file, weight = conv_relu(tmp_path)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    want = np.maximum(np.einsum("nchw,kc->nkhw", x, weight[:, :, 0, 0]), 0)
    with open_engine("onnxruntime").load(conv_entry("a", tmp_path, file), tmp_path) as runner:
        runner.time(3)
        np.testing.assert_allclose(runner.run({"x0": x})["v1"], want, rtol=1e-5, atol=1e-6)
    with open_onnx(tmp_path / file, threads=2) as runner:
        np.testing.assert_allclose(runner.run({"x0": x})["v1"], want, rtol=1e-5, atol=1e-6)
        assert (runner.time(3).latency_ms > 0).all()


def test_onnxruntime_clock_follows_threads() -> None:
    pytest.importorskip("onnxruntime")
    assert open_engine("onnxruntime", 1).clock == "thread_cpu"
    assert open_engine("onnxruntime", 2).clock == "wall"


def test_onnxruntime_errors_name_the_file(tmp_path: Path) -> None:
    file, _ = conv_relu(tmp_path)
    symbolic, _ = conv_relu(tmp_path, "symbolic", height="H")
    with pytest.raises(HwnasError, match=r"symbolic\.onnx: input 'x0' has the shape .*export with fixed sizes"):
        open_onnx(tmp_path / symbolic).__enter__()
    with pytest.raises(HwnasError, match=r"cannot read an ONNX file at .*none\.onnx: No such file"):
        open_onnx(tmp_path / "none.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(HwnasError, match=r"onnxruntime cannot run .*junk\.onnx: .*INVALID_PROTOBUF"):
        open_onnx(tmp_path / "junk.onnx").__enter__()
    entry = conv_entry("a", tmp_path, file)
    with pytest.raises(HwnasError, match=r"conv\.onnx has the inputs .* the plan says \{'x0': \(1, 4, 5, 5\)\}"):
        open_engine("onnxruntime").load(replace(entry, inputs={"x0": (1, 4, 5, 5)}), tmp_path).__enter__()
    with pytest.raises(HwnasError, match="does not match its checksum"):
        open_engine("onnxruntime").load(replace(entry, sha256="0" * 64), tmp_path)
    with pytest.raises(HwnasError, match="entry 'b' has no ONNX file"):
        open_engine("onnxruntime").load(conv_entry("b"), tmp_path)


def test_fake_is_a_roofline_that_does_not_add_up() -> None:
    first = Call("conv", {}, (SHAPE,), ("x0",), "v1", OUT_SHAPE, macs=50_000_000, bytes=1000)
    second = Call("pool", {}, (OUT_SHAPE,), ("v1",), "v2", OUT_SHAPE, macs=0, bytes=20_000_000)
    op1 = Entry("1", "op", None, None, (first,), {"x0": SHAPE}, ("v1",))
    op2 = Entry("2", "op", None, None, (replace(second, inputs=("x0",)),), {"x0": OUT_SHAPE}, ("v2",))
    net = Entry("net", "net", None, None, (first, second), {"x0": SHAPE}, ("v2",))
    assert modelled_ms(op1) == pytest.approx(1.0 + LAUNCH_MS + RUN_MS)
    assert modelled_ms(op2) == pytest.approx(2.0 + LAUNCH_MS + RUN_MS)
    assert modelled_ms(net) == pytest.approx(3.0 + 2 * LAUNCH_MS + RUN_MS - SAVING_MS)
    with open_engine("fake").load(net, Path()) as runner:
        times = runner.time(50).latency_ms
        np.testing.assert_array_equal(times, runner.time(50).latency_ms)
        np.testing.assert_array_equal(runner.run({"x0": np.zeros(SHAPE, np.float32)})["v2"], np.zeros(OUT_SHAPE))
    assert np.abs(times / modelled_ms(net) - 1).max() <= 0.002
    assert len(set(times)) == 50


# --- device


ARM = """processor\t: 0
Features\t: fp asimd evtstrm aes sve i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd0c
CPU revision\t: 1

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd05

Hardware\t: Board
"""
X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 207
model name\t: Intel(R) Xeon(R) Processor
stepping\t: 2
cpu MHz\t\t: 2300.000
flags\t\t: fpu sse sse4_2 smep fma avx avx2 avx512f avx512_vnni amx_tile
"""


def test_cpu_identity_from_files(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    cache = tmp_path / "sys/devices/system/cpu/cpu0/cache/index0"
    cache.mkdir(parents=True)
    for name, text in {"level": "1\n", "type": "Data\n", "size": "48K\n"}.items():
        (cache / name).write_text(text)
    (tmp_path / "proc/cpuinfo").write_text(X86)
    intel = cpu_identity(tmp_path)
    assert [intel[k] for k in ("vendor", "family", "model", "stepping")] == ["GenuineIntel", "6", "207", "2"]
    assert intel["instruction_sets"] == ["amx_tile", "avx", "avx2", "avx512_vnni", "avx512f", "fma", "sse4_2"]
    assert intel["caches"] == {"L1-data": "48K"}
    assert device_name({"device": intel}) == "intel-6-207-2-avx512"
    (tmp_path / "proc/cpuinfo").write_text(ARM)
    arm = cpu_identity(tmp_path)
    assert [arm["vendor"], arm["model"], arm["stepping"]] == ["0x41", "0xd05+0xd0c", "1"]
    assert device_name({"device": arm}) == "arm-8-0xd05-0xd0c-1-sve"
    assert not same_device({"device": intel}, {"device": arm})
    assert same_device({"device": intel}, {"device": {**intel, "logical_cpus": 96}})
    assert not same_device({"device": intel}, {"device": {**intel, "stepping": "3"}})


def test_cpu_identity_elsewhere(tmp_path: Path) -> None:
    coarse = cpu_identity(tmp_path)
    assert coarse["kind"] == "cpu"
    assert coarse["architecture"]
    assert "instruction_sets" not in coarse
    assert device_name({"device": coarse})


def test_provenance_names_the_fake_device_or_this_cpu() -> None:
    pytest.importorskip("onnxruntime")
    fake = provenance(open_engine("fake"))
    assert device_name(fake) == "fake-roofline-1"
    assert fake["engine"]["name"] == "fake"
    assert "device" not in fake["engine"]
    real = provenance(open_engine("onnxruntime"))
    assert real["device"] == cpu_identity()
    assert (
        real.keys()
        == fake.keys()
        == {
            "device",
            "engine",
            "clock",
            "batch",
            "merges",
            "os",
            "python",
            "hwnas",
        }
    )
    assert (real["clock"], real["batch"]) == ("thread_cpu", 1)
    assert real == provenance(open_engine("onnxruntime"))
    assert not same_device(fake, real)


# --- measure


class Scripted:
    """A runner that gives times from a list, over and over."""

    def __init__(self, latency_ms: list[float], wall_factor: float = 1.0, sleep_s: float = 0.0) -> None:
        self._times = itertools.cycle(latency_ms)
        self._wall_factor, self._sleep_s = wall_factor, sleep_s
        self.batches: list[int] = []

    def time(self, repeats: int) -> Samples:
        self.batches.append(repeats)
        time.sleep(self._sleep_s * repeats)
        latency_ms = np.array([next(self._times) for _ in range(repeats)])
        return Samples(latency_ms, latency_ms * self._wall_factor)


def test_steady_times_stop_at_once() -> None:
    runner = Scripted([2.0, 2.001, 1.999])
    m = measure(runner, StopRule(warmup_s=0, min_runs=9), clock="wall")
    assert runner.batches == [2, 9]  # two to warm up
    assert (m.stop, m.n, m.latency_ms, m.doubtful) == ("ci", 9, 2.0, False)
    assert m.ci_ms[0] <= m.latency_ms <= m.ci_ms[1]
    assert m.latency_ms == m.p50_ms <= m.p90_ms <= m.p99_ms
    assert m.spread == pytest.approx(0.002 / 2, rel=0.01)


def test_noisy_times_take_more_samples_until_precise() -> None:
    rng = np.random.default_rng(0)
    noisy = Scripted(list(1 + 0.05 * rng.standard_normal(5000)))
    m = measure(noisy, StopRule(warmup_s=0, max_s=30), clock="wall")
    assert m.stop == "ci"
    assert 30 < m.n < 3000
    assert (m.ci_ms[1] - m.ci_ms[0]) / 2 / m.latency_ms <= 0.01
    assert m.latency_ms == pytest.approx(1, abs=0.03)


def test_time_out_is_told_and_a_hopeless_interval_is_doubtful() -> None:
    start_s = time.perf_counter()
    m = measure(Scripted([1.0, 9.0], sleep_s=0.001), StopRule(warmup_s=0, max_s=0.1))
    assert 0.1 <= time.perf_counter() - start_s < 1.0
    assert (m.stop, m.doubtful) == ("timeout", True)
    near = measure(Scripted([1.0, 1.06], sleep_s=0.001), StopRule(warmup_s=0, max_s=0.05))
    assert (near.stop, near.doubtful) == ("timeout", False)


def test_min_runs_are_taken_past_the_time_limit() -> None:
    runner = Scripted([5.0, 6.0], sleep_s=0.01)
    assert measure(runner, StopRule(warmup_s=0, min_runs=8, max_s=0.001)).n == 8


def test_warm_up_lasts_as_long_as_asked() -> None:
    runner = Scripted([1.0], sleep_s=0.002)
    start_s = time.perf_counter()
    measure(runner, StopRule(warmup_s=0.06))
    assert sum(runner.batches[:-1]) * 0.002 >= 0.03
    assert time.perf_counter() - start_s >= 0.06
    model = Scripted([1.0])
    measure(model, clock="model")
    assert model.batches == [7]  # a formula has nothing to warm up


@pytest.mark.parametrize(
    ("clock", "factor", "doubtful"),
    [
        ("thread_cpu", 1.19, False),
        ("thread_cpu", 1.21, True),
        ("device", 1.5, False),
    ],
)
def test_a_wall_clock_far_from_the_cpu_clock_is_doubtful(clock: str, factor: float, doubtful: bool) -> None:
    m = measure(Scripted([1.0], wall_factor=factor), StopRule(warmup_s=0), clock)
    assert m.doubtful is doubtful
    assert m.wall_ms == pytest.approx(factor)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(bad: float) -> None:
    with pytest.raises(HwnasError, match="the engine gave a latency_ms of .*; expected a positive number"):
        measure(Scripted([1.0, bad]), StopRule(warmup_s=0))


def test_stop_rule_is_checked() -> None:
    with pytest.raises(HwnasError, match="min_runs must be at least 6 for an interval of the median, got 5"):
        StopRule(min_runs=5)
    with pytest.raises(HwnasError, match="must be positive"):
        StopRule(relative_ci=0)


@pytest.mark.parametrize("n", [7, 9, 10, 20, 51, 200])
def test_the_interval_holds_the_median_in_95_of_100_cases(n: int) -> None:
    rng = np.random.default_rng(n)
    samples = np.sort(rng.exponential(size=(4000, n)), axis=1)
    held = [low <= np.log(2) <= high for low, high in map(median_interval, samples)]
    assert 0.93 < np.mean(held) < 0.995


def test_short_runs_are_timed_in_blocks() -> None:
    calls = []
    ticks = itertools.count(step=20_000)  # every call of the clock is 20 us later
    samples = timed(lambda: calls.append(1), 4, lambda: next(ticks))
    assert len(calls) == 1 + 4 * 3  # 20 us: one run to see that, then blocks of three
    np.testing.assert_allclose(samples.latency_ms, 0.020 / 3)
    calls.clear()
    ticks = itertools.count(step=60_000)
    samples = timed(lambda: calls.append(1), 4, lambda: next(ticks))
    assert len(calls) == 4
    np.testing.assert_allclose(samples.latency_ms, 0.060)


def test_timed_reads_the_time_that_passed() -> None:
    samples = timed(lambda: time.sleep(0.01), 3, time.thread_time_ns)
    assert samples.wall_ms.max() > 5  # below 50 us of CPU time the sleeps come in blocks
    assert samples.latency_ms.max() < 5  # sleeping costs no CPU time


def test_measurement_round_trip_and_refusals() -> None:
    m = measure(Scripted([1.0, 1.001]), StopRule(warmup_s=0))
    values = json.loads(json.dumps(m.to_dict()))
    assert Measurement.from_dict({**values, "other": 1}) == m
    with pytest.raises(HwnasError, match="a measurement needs wall_ms"):
        Measurement.from_dict({k: v for k, v in values.items() if k != "wall_ms"})
    for bad in ({"p90_ms": -1}, {"n": True}, {"ci_ms": [1, float("nan")]}, {"latency_ms": "1"}):
        with pytest.raises(HwnasError, match=f"{next(iter(bad))} must be a finite number and not negative"):
            Measurement.from_dict({**values, **bad})
    with pytest.raises(HwnasError, match="ci_ms must be a pair"):
        Measurement.from_dict({**values, "ci_ms": 1})
    with pytest.raises(HwnasError, match="stop must be"):
        Measurement.from_dict({**values, "stop": "luck"})


# --- whole runs


def samples_of(results: Path) -> list[tuple[str, int]]:
    return [(r["key"], r["pass"]) for r in read_journal(results)[1] if r["type"] == "sample"]


def test_every_entry_is_measured_once_a_pass_in_another_order(plan: Path) -> None:
    told: list[Progress] = []
    results = measure_plan(plan, "fake", passes=3, on_record=told.append)
    assert results == plan / "results.jsonl"
    done = samples_of(results)
    passes = [[key for key, pass_ in done if pass_ == p] for p in range(3)]
    assert [sorted(keys) for keys in passes] == [["op0", "op1", "op2", "op3"]] * 3
    assert len({tuple(keys) for keys in passes}) > 1
    assert [(p.done, p.total) for p in told] == [(i, 12) for i in range(1, 13)]
    where, rows = collect(results)
    assert where == provenance(open_engine("fake"))
    assert [row.key for row in rows] == ["op0", "op1", "op2", "op3"]
    for row, entry in zip(rows, load_plan(plan).entries, strict=True):
        assert row.latency_ms == pytest.approx(modelled_ms(entry), rel=0.002)
        assert (row.status, row.n, row.passes, row.doubtful, row.pass_spread) == ("ok", 21, 3, False, 0)


def test_a_seed_gives_an_order(plan: Path, tmp_path: Path) -> None:
    orders = []
    for i, seed in enumerate([0, 0, 1]):
        orders.append(samples_of(measure_plan(plan, "fake", seed=seed, results=tmp_path / f"{i}" / "r.jsonl")))
    assert orders[0] == orders[1] != orders[2]


def test_what_is_there_is_not_measured_again(plan: Path) -> None:
    results = measure_plan(plan, "fake", passes=1)
    before = results.read_bytes()
    measure_plan(plan, "fake", passes=1)
    assert results.read_bytes() == before
    measure_plan(plan, "fake", passes=2)
    assert results.read_bytes().startswith(before)
    assert len(samples_of(results)) == len(set(samples_of(results))) == 8


def test_time_limit_stops_and_another_run_goes_on(plan: Path) -> None:
    results = measure_plan(plan, "fake", minutes=0)
    assert samples_of(results) == []
    measure_plan(plan, "fake", minutes=5)
    assert len(samples_of(results)) == 12


def test_results_of_other_conditions_are_refused(plan: Path) -> None:
    measure_plan(plan, "fake")
    with pytest.raises(ProvenanceError, match=r"where\.engine\.threads = 1, now it is 2; use another results file"):
        measure_plan(plan, "fake", threads=2)
    write_plan(plan, [conv_entry("other")])
    with pytest.raises(ProvenanceError, match="holds results of another plan"):
        measure_plan(plan, "fake")
    with pytest.raises(HwnasError, match="passes must be at least 1, got 0"):
        measure_plan(plan, "fake", passes=0)


def test_an_engine_error_is_a_row_and_the_run_goes_on(tmp_path: Path) -> None:
    file, _ = conv_relu(tmp_path)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    write_plan(tmp_path, [conv_entry("bad", tmp_path, "junk.onnx"), conv_entry("good", tmp_path, file)])
    bad, good = collect(measure_plan(tmp_path, "onnxruntime", passes=2))[1]
    assert (bad.status, bad.latency_ms, bad.passes) == ("failed", None, 2)
    assert "onnxruntime cannot run junk.onnx" in bad.reason
    assert good.status == "ok"
    assert good.latency_ms is not None
    assert 0 < good.latency_ms < 50


def test_rows_take_the_quietest_pass_and_tell_when_no_other_comes_close(tmp_path: Path) -> None:
    base = measure(Scripted([1.0]), StopRule(warmup_s=0)).to_dict()
    path = tmp_path / "r.jsonl"
    with Journal(path, {"plan": "p", "where": {}}) as journal:
        for key, medians, doubts in [
            ("alone", [1.3, 1.0, 1.1], [False] * 3),
            ("backed", [1.4, 1.0, 1.02], [True, False, False]),
            ("unsure", [1.0, 1.01], [True, False]),
        ]:
            for i, (ms, doubtful) in enumerate(zip(medians, doubts, strict=True)):
                fields = {**base, "latency_ms": ms, "p90_ms": 2 * ms, "doubtful": doubtful}
                journal.append({"type": "sample", "key": key, "pass": i, "status": "ok", **fields})
    rows = {row.key: row for row in collect(path)[1]}
    assert (rows["alone"].latency_ms, rows["alone"].p90_ms, rows["alone"].doubtful) == (1.0, 2.0, True)
    assert rows["alone"].pass_spread == pytest.approx(0.1)
    assert (rows["backed"].latency_ms, rows["backed"].doubtful, rows["backed"].n) == (1.0, False, 21)
    assert rows["unsure"].doubtful


def test_entries_whose_passes_disagree_get_more_of_them(plan: Path, engines: str, tmp_path: Path) -> None:
    """`Disturbed` slows the first two passes over op1, by different amounts: a third and a fourth pass settle it."""
    told: list[Progress] = []
    measure_plan(plan, f"{engines}:Disturbed", passes=2, on_record=told.append)
    rows = {row.key: row for row in collect(plan / "results.jsonl")[1]}
    assert {key: row.passes for key, row in rows.items()} == {"op0": 2, "op1": 4, "op2": 2, "op3": 2}
    assert not rows["op1"].doubtful
    measure_plan(plan, "fake", passes=1, results=tmp_path / "quiet.jsonl")
    quiet = {row.key: row for row in collect(tmp_path / "quiet.jsonl")[1]}
    assert rows["op1"].latency_ms == quiet["op1"].latency_ms
    assert (told[-1].done, told[-1].total) == (10, 10)


def test_an_entry_whose_passes_all_fell_into_slow_seconds_is_not_settled() -> None:
    """Three passes over ten entries; seconds in which all is 1.4 times slower take `c` in every pass."""
    names = "abcdefghij"
    quiet = [(name, 1.0) for name in names]
    slow = [(name, 1.4 if name in "abcd" else 1.0) for name in names]
    # `c` agrees with itself, but in each of its passes so did its neighbours with their slow selves.
    assert settled([*quiet, *quiet]) == set(names)
    unlucky = [*slow, *slow, *(item for item in quiet if item[0] != "c")]
    assert "c" not in settled(unlucky)
    assert "c" in settled([*unlucky, ("c", 1.0), ("c", 1.01)])
    assert "c" not in settled([*quiet, *(item for item in quiet if item[0] != "c"), ("c", 0.8)])  # nothing is close


def test_killing_everything_is_not_the_fault_of_an_entry(plan: Path, tmp_path: Path) -> None:
    """Starts without an end, up to four, are kills by the user; deaths that a supervisor recorded are the entry's."""
    measure_plan(plan, "fake", passes=1, results=tmp_path / "whole.jsonl")
    header, _ = read_journal(tmp_path / "whole.jsonl")
    for n, status in ((4, "ok"), (5, "crashed")):
        path = tmp_path / f"{n}.jsonl"
        with Journal(path, {k: v for k, v in header.items() if k != "schema"}) as journal:
            for _ in range(n):
                journal.append({"type": "start", "key": "op1", "pass": 0})
        measure_plan(plan, "fake", passes=1, results=path)
        assert {row.key: row.status for row in collect(path)[1]}["op1"] == status


# --- child processes

ENGINES_OF_TESTS = """
import os, signal, sys, time
from hwnas.runtime.engines.fake import Fake

class Slow(Fake):
    def load(self, entry, folder):
        time.sleep(0.02)
        return super().load(entry, folder)

class Faulty(Fake):
    def load(self, entry, folder):
        if entry.key == "op1":
            self.fault()
        return super().load(entry, folder)

class Segfault(Faulty):
    def fault(self): os.kill(os.getpid(), signal.SIGSEGV)

class Bug(Faulty):
    def fault(self): raise TypeError("a bug of the engine")

class Exit0(Faulty):
    def fault(self): os._exit(0)

class Hang(Faulty):
    def fault(self): time.sleep(1000)

class Once(Faulty):
    def fault(self):
        if not os.path.exists(os.environ["MARK"]):
            open(os.environ["MARK"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

class Disturbed(Fake):
    slow = [1.5, 1.3]
    def load(self, entry, folder):
        runner = super().load(entry, folder)
        if entry.key == "op1" and self.slow:
            factor, quiet = self.slow.pop(), runner.time
            runner.time = lambda n: type(quiet(n))(*(factor * a for a in quiet(n)))
        return runner

class Chatty(Fake):
    def load(self, entry, folder):
        os.write(1, b"chatter without a newline")
        print("and {with} one")
        return super().load(entry, folder)

class Broken(Fake):
    def __init__(self, threads=1): raise TypeError("cannot even start")
"""


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with engines of the tests, importable in this process and in children."""
    (tmp_path / "engines_of_tests.py").write_text(textwrap.dedent(ENGINES_OF_TESTS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return "engines_of_tests"


def test_supervise_gives_what_measuring_here_gives(plan: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    there = supervise(plan, "fake", passes=2, results=tmp_path / "there.jsonl", on_progress=told.append)
    here = measure_plan(plan, "fake", passes=2, results=tmp_path / "here.jsonl")
    assert there.read_bytes() == here.read_bytes()
    assert [(p.done, p.total) for p in told] == [(i, 8) for i in range(1, 9)]
    assert told[0].record["status"] == "ok"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("Segfault", "killed by SIGSEGV"),
        ("Bug", "exit code 1 before it was finished; its last words: TypeError: a bug of the engine"),
        ("Exit0", "exit code 0 before it was finished"),
        ("Hang", "no measurement was finished in 2 s"),
    ],
)
def test_an_entry_that_kills_the_child_twice_is_a_row(plan: Path, engines: str, fault: str, reason: str) -> None:
    results = supervise(plan, f"{engines}:{fault}", passes=2, timeout_s=2)
    rows = {row.key: row for row in collect(results)[1]}
    assert {key: row.status for key, row in rows.items()} == {
        "op0": "ok",
        "op1": "crashed",
        "op2": "ok",
        "op3": "ok",
    }
    assert rows["op1"].reason == reason
    records = read_journal(results)[1]
    assert [r["type"] for r in records if r["key"] == "op1"] == ["start", "death"] * 2 + ["sample"] * 2
    assert len(samples_of(results)) == len(set(samples_of(results))) == 8


def test_one_death_is_measured_again(plan: Path, engines: str) -> None:
    rows = collect(supervise(plan, f"{engines}:Once", passes=1))[1]
    assert [row.status for row in rows] == ["ok"] * 4


def test_engines_that_print_do_not_disturb(plan: Path, engines: str) -> None:
    rows = collect(supervise(plan, f"{engines}:Chatty", passes=1))[1]
    assert [row.status for row in rows] == ["ok"] * 4


def test_a_child_that_cannot_start_is_an_error_with_its_last_words(plan: Path, engines: str) -> None:
    with pytest.raises(HwnasError, match="died before it measured anything: exit code 1 .*cannot even start"):
        supervise(plan, f"{engines}:Broken")


def test_mistakes_come_back_from_the_child_with_their_type(plan: Path, tmp_path: Path) -> None:
    results = measure_plan(plan, "fake", passes=1)
    with pytest.raises(ProvenanceError, match=r"where\.engine\.threads = 1, now it is 2"):
        supervise(plan, "fake", threads=2)
    with Journal(results), pytest.raises(HwnasError, match="another process measures into"):
        supervise(plan, "fake")
    with pytest.raises(HwnasError, match="cannot read a plan at"):
        supervise(tmp_path / "none", "fake")


def test_an_interrupted_parent_ends_the_child_and_blames_nobody(plan: Path, engines: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(plan, f"{engines}:Slow", passes=2, on_progress=interrupt)
    results = plan / "results.jsonl"
    with Journal(results) as journal:  # nobody holds the lock: the child is gone
        types = [record["type"] for record in journal.records]
        assert types.count("start") == types.count("sample") + types.count("interrupted")
        assert types.count("sample") < 8


def test_an_interrupt_while_measuring_is_no_death(plan: Path, engines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engines_of_tests = importlib.import_module(engines)

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engines_of_tests.Bug, "fault", interrupt)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                measure_plan(plan, f"{engines}:Bug", passes=1)
    monkeypatch.setattr(engines_of_tests.Bug, "fault", lambda self: None)
    assert [row.status for row in collect(measure_plan(plan, f"{engines}:Bug", passes=1))[1]] == ["ok"] * 4


def test_kill_9_at_any_moment_loses_at_most_one_measurement(tmp_path: Path, engines: str) -> None:
    folder = tmp_path / "plan"
    write_plan(folder, [conv_entry(f"op{i:02}", macs=10**6 * (i + 1)) for i in range(30)])
    rng = np.random.default_rng(0)
    results = folder / "results.jsonl"
    command = [sys.executable, "-m", "hwnas.runtime", "measure", str(folder), "--engine", f"{engines}:Slow"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    told, unfinished = 0, 0
    for _ in range(4):
        with subprocess.Popen(
            [*command, "--passes", "1", "--json-progress"], stdout=subprocess.PIPE, env=environment
        ) as child:
            assert child.stdout is not None
            for _ in range(int(rng.integers(1, 4))):
                told = json.loads(child.stdout.readline())["done"]
            time.sleep(float(rng.uniform(0, 0.03)))
            child.send_signal(signal.SIGKILL)
        records = read_journal(results)[1]
        kinds = [record["type"] for record in records]
        assert kinds.count("sample") >= told  # what was told is on disk
        unfinished = kinds.count("start") - kinds.count("sample")
        assert unfinished <= 4
    assert kinds.count("sample") < 30
    measure_plan(folder, f"{engines}:Slow", passes=1)
    assert len(samples_of(results)) == len(set(samples_of(results))) == 30
    uninterrupted = measure_plan(folder, f"{engines}:Slow", passes=1, results=tmp_path / "whole.jsonl")
    assert collect(results) == collect(uninterrupted)
    starts = sum(record["type"] == "start" for record in read_journal(results)[1])
    assert starts == 30 + unfinished  # one measured again for each kill at most


# --- command line


def test_main_measures_and_says_what_is_next(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(plan), "--engine", "fake", "--passes", "2"]) == 0
    out = capsys.readouterr().out
    assert "[8/8]" in out
    assert "measured 4 of 4 entries on fake-roofline-1 with fake" in out
    assert out.endswith(f"next: hwnas profile RECIPE --results {plan / 'results.jsonl'}\n")


def test_main_tells_what_is_left_and_what_crashed(plan: Path, engines: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(plan), "--engine", f"{engines}:Segfault", "--minutes", "0"]) == 0
    assert "12 measurements are left; next: the same command again" in capsys.readouterr().out
    assert main(["measure", str(plan), "--engine", f"{engines}:Segfault", "--passes", "1"]) == 0
    out = capsys.readouterr().out
    assert "measured 3 of 4 entries" in out
    assert "op1: crashed: killed by SIGSEGV" in out


def test_main_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot read a plan at")
    assert err.count("\n") == 1


def test_main_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["measure", "--help"])
    assert "example: python -m hwnas.runtime measure plan/" in capsys.readouterr().out


def test_importing_the_runtime_needs_numpy_alone() -> None:
    code = """
import sys, hwnas.runtime.work, hwnas.runtime.__main__, hwnas.runtime.engines.fake, hwnas.runtime.engines.onnxruntime
heavy = {"torch", "onnx", "onnxruntime", "scipy", "rich", "tyro", "PIL"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_row_as_json() -> None:
    assert json.loads(json.dumps(Row("a", "failed", "why").to_dict()))["reason"] == "why"
