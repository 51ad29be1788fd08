"""Measuring one entry: plans, engines, the device, the stop rule."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import HwnasError, MissingExtra
from hwnas.files import sha256
from hwnas.runtime.device import cpu_identity, device_name, provenance, same_device
from hwnas.runtime.engines import ENGINES, open_engine
from hwnas.runtime.engines.fake import LAUNCH_MS, RUN_MS, SAVING_MS, modelled_ms
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.measure import Measurement, StopRule, measure, median_interval, timed
from hwnas.runtime.plan import Call, Entry, load_plan, write_plan
from tests.runtime_cases import OUT_SHAPE, SHAPE, Scripted, conv_entry, conv_relu, four_ops


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return four_ops(tmp_path / "plan")


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
