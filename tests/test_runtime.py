"""Measuring one entry: plans, engines, the device, the stop rule."""

from __future__ import annotations

import itertools
import json
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.errors import HwnasError, MissingExtra
from hwnas.files import sha256
from hwnas.runtime.engines import ENGINES, capabilities, open_engine
from hwnas.runtime.engines.base import Once
from hwnas.runtime.engines.fake import BYTES_PER_MS, LAUNCH_MS, RUN_MS, SAVING_MS, modelled_ms
from hwnas.runtime.engines.onnxruntime import open_onnx
from hwnas.runtime.measuring.device import (
    HUGE_PAGES,
    cpu_identity,
    device_name,
    malloc_tunables,
    provenance,
    same_device,
)
from hwnas.runtime.measuring.measure import (
    CPU_CLOCKS,
    SAMPLES,
    VISIT_S,
    WARMUP_S,
    Samples,
    StopRule,
    halves_apart,
    interval,
    level,
    samples_from,
    summarise,
    timed,
    visit,
)
from hwnas.runtime.measuring.plan import PRECISIONS, Call, Entry, load_plan, write_plan
from tests.runtime_cases import OUT_SHAPE, SHAPE, Scripted, conv_entry, conv_relu, four_ops, spells


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
    assert content["schema"] == 3
    told = {"entries": content["entries"], "precision": content["precision"]}
    assert content["id"] == sha256(json.dumps(told, sort_keys=True, separators=(",", ":")))


def test_a_plan_says_in_what_is_computed(tmp_path: Path) -> None:
    ids = set()
    for precision in PRECISIONS:
        written = write_plan(tmp_path, [conv_entry("a")], precision)
        assert load_plan(tmp_path) == written
        assert written.precision == precision
        ids.add(written.id)
    assert len(ids) == len(PRECISIONS)
    with pytest.raises(HwnasError, match="precision must be one of fp32, tf32, fp16, got 'int8'"):
        write_plan(tmp_path, [conv_entry("a")], "int8")


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
        (lambda p: p.update(schema=1), "has schema 1, this version reads 3"),
        (lambda p: p["entries"][0].update(key="zz"), "its id does not match its entries"),
        (lambda p: p["entries"][0]["calls"][0].update(macs=5), "its id does not match its entries"),
        (lambda p: p["entries"][0].update(key="op1"), "entry 'op1': the key occurs twice"),
        (
            lambda p: p["entries"][0].update(role="block"),
            "entry 'op0': role must be one of op, context, boundary, net, copies, application, got 'block'",
        ),
        (lambda p: p["entries"][0].update(onnx="../a.onnx", sha256="0"), "must be a path inside the plan folder"),
        (lambda p: p["entries"][0].update(onnx="/a.onnx", sha256="0"), "must be a path inside the plan folder"),
        (lambda p: p["entries"][0].update(onnx="a.onnx"), "onnx and sha256 go together"),
        (lambda p: p["entries"][0].update(outputs=["v9"]), "outputs must name values that its calls make"),
        (lambda p: p["entries"][0]["inputs"].update(x0=[1, 0]), "positive integers, got"),
        (lambda p: p["entries"][0]["calls"][0].update(bytes=-1), "bytes must be an integer and not negative, got -1"),
        (lambda p: p["entries"][0].pop("calls"), "entry 'op0': expected an object with calls, inputs"),
        (lambda p: p.pop("precision"), "precision must be one of fp32, tf32, fp16, got None"),
        (lambda p: p.update(precision="fp16"), "its id does not match its entries"),
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
    assert engine.capabilities.merges


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
    assert set(ENGINES) >= {"onnxruntime", "openvino", "fake", "torch"}


def test_what_cannot_be_opened_is_given_back_and_not_opened_again() -> None:
    told: list[str] = []

    def opener(stack: ExitStack) -> str:
        stack.callback(told.append, "given back")
        raise HwnasError("no memory")

    once = Once("net0", opener)
    with pytest.raises(HwnasError, match="the runner of net0 is new; use it inside a with block"):
        once.get()
    with pytest.raises(HwnasError, match="no memory"):
        once.open()
    assert told == ["given back"]
    with pytest.raises(HwnasError, match="the runner of net0 was entered before; load it again"):
        once.open()
    with pytest.raises(HwnasError, match="the runner of net0 is closed"):
        once.get()
    once.close()
    assert told == ["given back"]


@pytest.mark.parametrize("name", ENGINES)
def test_what_an_engine_can_do_is_known_without_a_device(name: str) -> None:
    can = capabilities(name)
    assert "fp32" in can.precisions
    assert can.load_s > 0
    assert can.on_host or can.slowest_load_s > 0  # those of GPUs try kernels out, or build


@pytest.mark.parametrize("declared", ["", "capabilities = {'merges': True}"])
def test_an_engine_from_elsewhere_says_what_it_can_do(
    declared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"silent_{len(declared)}.py").write_text(f"class Silent:\n    {declared or 'pass'}\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"'silent_\d+:Silent' does not say .*; add to its class: capabilities = Capabilities\(merges=\.\.\.\), "
    for ask in (capabilities, open_engine):
        with pytest.raises(HwnasError, match=said + r"with the Capabilities of hwnas\.runtime\.engines\.base"):
            ask(f"silent_{len(declared)}:Silent")


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
        assert not set(times) & set(runner.time(50, visit=1).latency_ms)
        np.testing.assert_array_equal(runner.run({"x0": np.zeros(SHAPE, np.float32)})["v2"], np.zeros(OUT_SHAPE))
    assert np.abs(times / modelled_ms(net) - 1).max() <= 0.002
    assert len(set(times)) == 50


def test_fake_scopes_cost_their_bytes() -> None:
    """An image of 8x10: 240 bytes, 960 as float32; 80 bytes of labels, or 5 scores of 4x5 in 400 bytes."""
    image = {"x": (1, 3, 8, 10)}
    for out_shape, made, ending in (((1, 8, 10), 80, 0), ((1, 5, 4, 5), 400, 400 + 80)):
        call = Call("net", {}, ((1, 3, 8, 10),), ("x",), "y", out_shape, 10**6, 1000)
        net = Entry("n", "net", None, None, (call,), image, ("y",))
        more_ms = {r: modelled_ms(replace(net, role=r)) - modelled_ms(net) for r in ("copies", "application")}
        assert more_ms["copies"] == pytest.approx((960 + made) / BYTES_PER_MS)
        assert more_ms["application"] == pytest.approx((240 + (240 + 960) + ending + 80) / BYTES_PER_MS)


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
        real.keys() - {"malloc"}
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


# --- the quiet level


@pytest.mark.parametrize("n", [1, 2, 3, 20, 21, 72, 100, 1000])
def test_the_level_is_the_fifth_percentile(n: int) -> None:
    times = np.random.default_rng(n).exponential(size=n).tolist()
    assert level(times) == pytest.approx(np.quantile(times, 0.05), rel=1e-12)


def test_the_interval_of_some_hands_full() -> None:
    """Of 20 visits none lies below the 5th percentile in 36 %, at most 3 in 98.4 %; of 100 at most one in 3.7 %."""
    assert interval([float(i) for i in range(20, 0, -1)]) == (1.0, 4.0)
    assert interval([float(i) for i in range(1, 101)]) == (1.0, 11.0)
    assert interval([7.0]) == (7.0, 7.0)


@pytest.mark.parametrize("n", [1, 2, 5, 19, 20, 40, 71, 72, 73, 100, 500, 1029, 1030, 5000])
def test_the_ends_of_the_interval_are_ranks_of_the_binomial(n: int) -> None:
    binom = pytest.importorskip("scipy.stats").binom(n, 0.05)
    low, high = (int(rank) for rank in interval([float(i) for i in range(n)]))
    if low:
        assert binom.cdf(low) <= 0.025
        assert binom.cdf(low + 1) > 0.025  # a narrower one would miss too often
    else:
        assert binom.cdf(1) > 0.025
    if high < n - 1:
        assert binom.cdf(high) >= 0.975 > binom.cdf(high - 1)
    assert n < 72 or binom.cdf(0) <= 0.025


@pytest.mark.parametrize("n", [72, 100, 200])
def test_the_interval_holds_the_level_in_95_of_100_cases(n: int) -> None:
    times = np.random.default_rng(n).lognormal(sigma=0.3, size=(4000, n))
    truth = math.exp(0.3 * -1.6448536)
    held = [low <= truth <= high for low, high in map(interval, times.tolist())]
    assert 0.93 < np.mean(held) <= 1


def test_of_few_visits_the_lower_end_is_the_lowest_and_misses_as_often_as_all_lie_above() -> None:
    times = np.random.default_rng(0).random((4000, 20))
    ends = [interval(row) for row in times.tolist()]
    assert [low for low, _ in ends] == times.min(1).tolist()
    assert np.mean([low > 0.05 for low, _ in ends]) == pytest.approx(0.95**20, abs=0.03)
    assert np.mean([high < 0.05 for _, high in ends]) < 0.025


def test_halves_apart_compares_odd_and_even_visits() -> None:
    assert halves_apart([2.0]) == 0
    assert halves_apart([2.0, 2.2, 2.0, 2.2]) == pytest.approx(0.1)
    assert halves_apart([2.2, 2.0, 2.2, 2.0]) == pytest.approx(1 / 1.1 - 1)


@pytest.mark.parametrize("seed", range(5))
def test_slow_spells_move_the_median_and_not_the_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quiet_ms = 3 * (1 + 0.002 * rng.standard_normal(200))
    disturbed_ms = quiet_ms * spells(rng, 200, slow_share=0.7)
    assert np.median(disturbed_ms) > 1.1 * np.median(quiet_ms)
    assert level(disturbed_ms.tolist()) == pytest.approx(level(quiet_ms.tolist()), rel=0.005)


# --- when to stop

QUICK = StopRule(min_visits=4, max_visits=12, min_s=0)


def test_a_narrow_interval_is_enough_and_networks_need_a_narrower_one() -> None:
    times = [1.0, 1.02, 1.014, 1.03]  # of four the second lowest is the upper end: half-width 0.7 %
    assert QUICK.reached(times[:3]) is None
    assert QUICK.reached(times) == "ci"
    assert QUICK.reached(times, net=True) is None
    assert QUICK.reached([1.0, 1.009, 1.0, 1.0], net=True) == "ci"


def test_noise_that_has_stabilised_is_enough() -> None:
    rule = StopRule(min_visits=20, max_visits=100, min_s=0)
    times = [1.0, 1.0, *[1.2] * 18] * 2  # the interval reaches up to 1.2, the halves agree
    assert rule.reached(times[:39]) is None
    assert rule.reached(times) == "stable"
    assert rule.reached([*[1.0, 1.2] * 2, *[1.2] * 36]) is None  # only even visits saw the quiet machine
    strict = replace(rule, net_stable=False)
    assert [strict.reached(times, net=net) for net in (False, True)] == ["stable", None]
    assert interval(times)[1] == 1.2


def test_drift_never_is_and_time_is_up_in_the_end() -> None:
    drift = [1.0 + 0.03 * i for i in range(12)]
    assert [QUICK.reached(drift[:n]) for n in range(13)] == [None] * 12 + ["timeout"]


def test_one_visit_tells_nothing_of_how_well_it_repeats() -> None:
    assert StopRule(1, 3, 0).reached([1.0]) is None
    assert StopRule(1, 3, 0).reached([1.0, 1.0]) == "ci"
    assert StopRule(1, 1, 0).reached([1.0]) == "timeout"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_visits": 0}, "visits must be at least 1 and at most max_visits, got 0 and 100"),
        ({"min_visits": 9, "max_visits": 8}, "at most max_visits, got 9 and 8"),
        ({"min_s": -1}, "min_s must be finite and not negative"),
        ({"min_s": math.inf}, "min_s must be finite and not negative"),
        ({"min_s": math.nan}, "min_s must be finite and not negative"),
        ({"relative_ci": 0}, "relative_ci must be positive"),
        ({"net_relative_ci": -1}, "relative_ci must be positive"),
    ],
)
def test_stop_rule_is_checked(values: dict[str, float], message: str) -> None:
    with pytest.raises(HwnasError, match=message):
        StopRule(**values)


# --- visits


def test_a_visit_warms_up_and_takes_some_milliseconds() -> None:
    fresh, warm = Scripted([1.0], sleep_s=0.0004), Scripted([1.0], sleep_s=0.0004)
    start_s = time.perf_counter()
    samples = visit(fresh, 0, "wall", fresh=True)
    assert time.perf_counter() - start_s >= WARMUP_S
    assert SAMPLES[0] <= len(samples.latency_ms) == fresh.batches[-1] <= VISIT_S / 0.0004
    visit(warm, 1, "wall", fresh=False)
    assert len(warm.batches) < len(fresh.batches)
    assert sum(warm.batches[:-1]) < sum(fresh.batches[:-1])


def test_a_visit_has_its_least_and_its_most_samples() -> None:
    assert visit(Scripted([9.0], sleep_s=0.004), 0, "wall", fresh=False).wall_ms.shape == (SAMPLES[0],)
    assert visit(Scripted([0.01]), 0, "wall", fresh=True).wall_ms.shape == (SAMPLES[1],)


def test_a_formula_has_nothing_to_warm_up() -> None:
    model = Scripted([1.0])
    visit(model, 0, "model", fresh=True)
    assert model.batches == [SAMPLES[0]]


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-9, float("nan"), float("inf")])
def test_impossible_times_are_refused(bad: float) -> None:
    with pytest.raises(HwnasError, match="the engine gave a latency_ms of .*; expected a positive number"):
        visit(Scripted([1.0, bad]), 0, "model", fresh=True)
    with pytest.raises(HwnasError, match="the engine gave a wall_ms of .*; expected a positive number"):
        visit(Scripted([1.0], wall_factor=bad), 0, "model", fresh=True)


def test_too_few_times_are_refused() -> None:
    class Short(Scripted):
        def time(self, repeats: int, visit: int = 0) -> Samples:
            return super().time(repeats - 1, visit)

    with pytest.raises(HwnasError, match="the engine gave 2 latency_ms for 3 runs"):
        visit(Short([1.0]), 0, "model", fresh=True)


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


# --- what visits say


def visits_of(medians_ms: list[float], wall_factor: float = 1.0) -> list[Samples]:
    """Return visits of three samples: the median and 10 % beside it."""
    return [Samples(m * np.array([0.9, 1, 1.1]), m * wall_factor * np.array([0.9, 1, 1.1])) for m in medians_ms]


def test_a_measurement_is_the_level_and_what_is_known_about_it() -> None:
    medians = [1.0, 1.1, 1.2, 2.0]
    m = summarise(visits_of(medians, wall_factor=1.05), "ci", "thread_cpu")
    assert (m.n, m.visits, m.stop, m.doubtful) == (12, 4, "ci", False)
    assert m.latency_ms == pytest.approx(level(medians))
    assert m.wall_ms == pytest.approx(1.05 * level(medians))
    assert m.ci_ms == pytest.approx(interval(medians))
    pooled = np.concatenate([v.latency_ms for v in visits_of(medians)])
    assert (m.p50_ms, m.p90_ms, m.p99_ms) == pytest.approx(tuple(np.percentile(pooled, [50, 90, 99])))
    q25, q50, q75 = np.percentile(medians, [25, 50, 75])
    assert m.spread == pytest.approx((q75 - q25) / q50)
    assert m.repeatability == pytest.approx(abs(halves_apart(medians)))


def test_what_ran_out_of_time_is_doubtful() -> None:
    assert summarise(visits_of([1.0, 1.3]), "timeout", "wall").doubtful
    assert not summarise(visits_of([1.0, 1.3]), "stable", "wall").doubtful


@pytest.mark.parametrize(
    ("clock", "factor", "doubtful"), [("thread_cpu", 1.19, False), ("thread_cpu", 1.21, True), ("device", 1.5, False)]
)
def test_a_wall_clock_far_from_the_cpu_clock_is_doubtful(clock: str, factor: float, doubtful: bool) -> None:
    assert "thread_cpu" in CPU_CLOCKS
    assert summarise(visits_of([1.0] * 20, factor), "ci", clock).doubtful is doubtful


def test_contention_counts_in_the_quiet_visits_alone() -> None:
    crowded, alone = visits_of([1.3] * 60, wall_factor=3.0), visits_of([1.0] * 40)
    assert not summarise([*crowded, *alone], "ci", "thread_cpu").doubtful
    assert summarise([*visits_of([1.3] * 60), *visits_of([1.0] * 40, wall_factor=3.0)], "ci", "thread_cpu").doubtful


def test_samples_are_read_back_or_refused() -> None:
    record: dict[str, Any] = {"latency_ms": [1.0, 2], "wall_ms": [1.5, 2.5], "key": "a"}
    samples = samples_from(record)
    assert (samples.latency_ms.tolist(), samples.wall_ms.tolist()) == ([1.0, 2.0], [1.5, 2.5])
    for bad in ([], 1.0, None, ["1"], [True]):
        with pytest.raises(HwnasError, match="wall_ms must be a list of numbers, got"):
            samples_from({**record, "wall_ms": bad})
    with pytest.raises(HwnasError, match="the engine gave a wall_ms of 0.0"):
        samples_from({**record, "wall_ms": [0.0, 1.0]})
    with pytest.raises(HwnasError, match="the engine gave 1 wall_ms for 2 runs"):
        samples_from({**record, "wall_ms": [1.0]})


@pytest.mark.parametrize(
    ("libc", "pages", "own", "want"),
    [
        (("glibc", "2.36"), "always [madvise] never", None, HUGE_PAGES),
        (("glibc", "2.35"), "[always] madvise never", None, HUGE_PAGES),
        (("glibc", "2.100"), "[always] madvise never", HUGE_PAGES, HUGE_PAGES),
        (("glibc", "2.34"), "always [madvise] never", None, None),
        (("glibc", "2.36"), "always madvise [never]", None, None),
        (("", ""), "always [madvise] never", None, None),
        (("glibc", "2.36"), None, None, None),
        (("glibc", "2.36"), "[always] madvise never", "glibc.malloc.check=3", None),
    ],
)
def test_huge_pages_are_asked_for_where_the_system_has_them(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    libc: tuple[str, str],
    pages: str | None,
    own: str | None,
    want: str,
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    if pages is not None:
        (tmp_path / "sys/kernel/mm/transparent_hugepage").mkdir(parents=True)
        (tmp_path / "sys/kernel/mm/transparent_hugepage/enabled").write_text(pages + "\n")
    assert malloc_tunables(tmp_path, libc) == want
