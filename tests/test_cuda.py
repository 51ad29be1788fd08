"""CUDA through its bindings, on a driver that is not NVIDIA's: the contract, and what is timed how."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np
import pytest

from hwnas.errors import DeviceLost, HwnasError, MissingExtra
from hwnas.runtime.cuda import nvml
from hwnas.runtime.cuda import timing as cuda_timing
from hwnas.runtime.cuda.driver import BINDINGS, Cuda, Facts, open_cuda
from hwnas.runtime.cuda.kernels import KERNELS, preprocess, preprocess_grid, upsample_argmax, upsample_argmax_grid
from hwnas.runtime.cuda.nvml import Watch, open_watch
from hwnas.runtime.cuda.timing import GpuTimer
from tests.conftest import run
from tests.fake_gpu import FakeGpu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def installed(binding: str) -> bool:
    return importlib.util.find_spec(binding.replace("-bindings", "")) is not None


class Box:
    """A GPU with a stack of what must be given back."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.stack = cuda, ExitStack()
        self.stream = self.own(cuda.stream())

    def own(self, it: Any) -> Any:
        self.stack.callback(it.close)
        return it

    def to_device(self, array: np.ndarray) -> Any:
        memory = self.own(self.cuda.memory(array.nbytes))
        self.stream.copy_in(memory, array)
        return memory

    def from_device(self, memory: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        out = np.empty(shape, dtype)
        self.stream.copy_out(out, memory)
        self.stream.synchronize()
        return out


def opened(binding: str) -> Cuda:
    """Open a GPU through a binding, lazily: PyCUDA names functions of the driver that it does not need here."""
    if not installed(binding):
        pytest.skip(f"{binding} is not installed; run: scripts/build_pycuda.sh")
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        return open_cuda(binding)
    finally:
        sys.setdlopenflags(flags)


@pytest.fixture(params=sorted(BINDINGS))
def box(request: pytest.FixtureRequest, gpu: FakeGpu) -> Iterator[Box]:
    cuda = opened(request.param)
    with cuda:
        made = Box(cuda)
        gpu.reset()
        yield made
        made.stack.close()
    cuda.close()


class TestContract:
    """What holds for every binding."""

    def test_it_says_what_the_gpu_is(self, box: Box) -> None:
        assert box.cuda.facts == Facts("Fake GPU 9000", (8, 9), 10, 8 << 30, 1 << 20, "0000:01:00.0", (12, 8))
        assert box.cuda.binding.split(" ")[0] in BINDINGS

    def test_copies_arrive_when_the_stream_was_waited_for(self, box: Box) -> None:
        there = box.own(box.cuda.host((3, 5), np.float32))
        back = box.own(box.cuda.host((3, 5), np.float32))
        there.array[...], back.array[...] = np.arange(15).reshape(3, 5), -1
        memory = box.own(box.cuda.memory(there.array.nbytes))
        box.stream.copy_in(memory, there.array)
        box.stream.copy_out(back.array, memory)
        assert (back.array == -1).all()
        box.stream.synchronize()
        np.testing.assert_array_equal(back.array, there.array)

    def test_pageable_memory_may_change_after_the_call(self, box: Box) -> None:
        array = np.arange(8, dtype=np.uint8)
        memory = box.to_device(array)
        array[...] = 0
        np.testing.assert_array_equal(box.from_device(memory, (8,), np.uint8), np.arange(8))

    def test_arrays_that_do_not_fit_are_refused(self, box: Box) -> None:
        memory = box.own(box.cuda.memory(64))
        for bad in (np.zeros(15, np.float32), np.zeros((8, 4), np.float32)[:, ::2]):
            for copy in (lambda a=bad: box.stream.copy_in(memory, a), lambda a=bad: box.stream.copy_out(a, memory)):
                with pytest.raises(HwnasError, match=r"expected 64 contiguous bytes to copy, got an array of \d+"):
                    copy()

    def test_events_tell_the_time_between_them_once_they_have_passed(self, box: Box, gpu: FakeGpu) -> None:
        before, after, never = (box.own(box.cuda.event()) for _ in range(3))
        box.stream.record(before)
        gpu.enqueue(box.stream.handle, lambda: None, 996.0, "work")
        box.stream.record(after)
        with pytest.raises(HwnasError, match=r"CUDA cannot read an event: "):
            after.ms_since(before)
        box.stream.synchronize()
        assert after.ms_since(before) == pytest.approx(1.0)
        with pytest.raises(HwnasError, match="CUDA cannot read an event"):
            never.ms_since(before)

    @pytest.mark.parametrize("shape", [(1, 8, 12, 3), (2, 5, 7, 3)])
    def test_kernels_compute_what_their_references_do(self, box: Box, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, shape).astype(np.uint8)
        n, height, width, _ = shape
        out = box.own(box.cuda.memory(4 * image.size))
        gain = [1 / s for s in STD]
        args = (box.to_device(image), out, height * width, *MEAN, *gain)
        box.stream.launch(box.cuda.function(KERNELS["preprocess_f32"]), preprocess_grid(shape), *args)
        got = box.from_device(out, (n, 3, height, width), np.float32)
        np.testing.assert_allclose(got, preprocess(image, MEAN, STD), rtol=0, atol=1e-6)

        scores, size = rng.standard_normal((n, 5, height, width)).astype(np.float32), (2 * height + 1, 3 * width)
        labels = box.own(box.cuda.memory(n * size[0] * size[1]))
        function = box.cuda.function(KERNELS["upsample_argmax_f32"])
        args = (box.to_device(scores), labels, 5, height, width, *size)
        box.stream.launch(function, upsample_argmax_grid(n, size), *args)
        expected = upsample_argmax(scores, size)
        np.testing.assert_array_equal(box.from_device(labels, expected.shape, np.uint8), expected)

    def test_a_kernel_is_compiled_once(self, box: Box, gpu: FakeGpu) -> None:
        assert box.cuda.function(KERNELS["l2_flush"]) is box.cuda.function(KERNELS["l2_flush"])
        assert gpu.names().count("cuModuleLoadData") == 1

    def test_wrong_arguments_are_refused(self, box: Box) -> None:
        with pytest.raises(HwnasError, match="l2_flush takes 3 arguments, got 1"):
            box.stream.launch(box.cuda.function(KERNELS["l2_flush"]), (1, 1, 1), box.own(box.cuda.memory(4)))

    def test_a_graph_runs_what_was_captured(self, box: Box) -> None:
        there, back = (box.own(box.cuda.host((4,), np.uint8)) for _ in range(2))
        memory = box.own(box.cuda.memory(4))

        def work() -> None:
            box.stream.copy_in(memory, there.array)
            box.stream.copy_out(back.array, memory)

        if not box.cuda.captures:
            with pytest.raises(HwnasError, match="knows no CUDA graphs; install cuda-bindings"):
                box.stream.capture(work)
            return
        back.array[...] = 0
        graph = box.own(box.stream.capture(work))
        box.stream.synchronize()
        assert not back.array.any()
        for value in (7, 9):
            there.array[...] = value
            graph.launch()
            box.stream.synchronize()
            assert (back.array == value).all()

    def test_what_cannot_be_captured_leaves_a_stream_that_works(self, box: Box) -> None:
        if not box.cuda.captures:
            return
        with pytest.raises(HwnasError, match="CUDA cannot run what is on the stream"):
            box.stream.capture(box.stream.synchronize)
        with pytest.raises(ZeroDivisionError):
            box.stream.capture(lambda: 1 // 0)
        memory = box.to_device(np.arange(4, dtype=np.uint8))
        np.testing.assert_array_equal(box.from_device(memory, (4,), np.uint8), np.arange(4))

    def test_it_says_how_much_memory_is_free(self, box: Box) -> None:
        before = box.cuda.free_bytes()
        assert before <= box.cuda.facts.memory_bytes
        memory = box.cuda.memory(1 << 20)
        assert 1 << 20 <= before - box.cuda.free_bytes() < 1 << 21
        memory.close()
        assert box.cuda.free_bytes() == before

    def test_memory_that_is_not_there(self, box: Box) -> None:
        with pytest.raises(HwnasError, match=r"CUDA cannot allocate 17179869184 bytes: .*out of memory"):
            box.cuda.memory(16 << 30)

    def test_the_context_is_current_inside_and_what_was_current_is_so_again(self, box: Box, gpu: FakeGpu) -> None:
        before = gpu.contexts
        with box.cuda:
            inside = gpu.contexts
            with box.cuda:
                pass
            assert gpu.contexts == inside
        assert gpu.contexts == before
        assert inside[0] >= 1

    def test_closed_is_closed(self, box: Box) -> None:
        other = open_cuda(box.cuda.binding.split(" ")[0])
        other.close()
        other.close()
        with pytest.raises(HwnasError, match="this GPU was closed; open it again"):
            other.__enter__()

    def test_the_primary_context_is_given_back(self, gpu: FakeGpu) -> None:
        before = gpu.contexts
        cuda = open_cuda("cuda-bindings")
        assert gpu.contexts == (before[0], before[1] + 1)
        cuda.close()
        assert gpu.contexts == before

    def test_the_default_stream_is_not_used(self, box: Box, gpu: FakeGpu) -> None:
        event = box.own(box.cuda.event())
        box.stream.record(event)
        box.stream.launch(box.cuda.function(KERNELS["l2_flush"]), (1, 1, 1), box.own(box.cuda.memory(4)), 1, 0)
        box.stream.synchronize()
        assert -1 not in {number for _, number in gpu.log()}


class TestOpen:
    def test_an_unknown_binding(self) -> None:
        with pytest.raises(HwnasError, match=r"unknown binding 'cupy'; .*known: cuda-bindings, pycuda"):
            open_cuda("cupy")

    def test_no_binding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("cuda.bindings.driver", "cuda.bindings", "pycuda", "pycuda.driver"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=r"pip install 'hwnas\[cuda\]'"):
            open_cuda()

    def test_no_such_gpu(self, gpu: FakeGpu) -> None:
        with pytest.raises(HwnasError, match="CUDA cannot find GPU 3"):
            open_cuda("cuda-bindings", 3)

    def test_no_driver(self, tmp_path: Any) -> None:
        """In a process of its own, which has no driver at all."""
        code = "from hwnas.errors import HwnasError\nfrom hwnas.runtime.cuda.driver import open_cuda\n"
        code += "try:\n    open_cuda()\nexcept HwnasError as e:\n    print(e)\n"
        said = run(sys.executable, "-c", code, cwd=tmp_path)
        assert said.startswith("CUDA cannot start: no usable NVIDIA driver here (")

    def test_an_error_that_does_not_go_away_is_another_kind(self, gpu: FakeGpu) -> None:
        cuda = open_cuda("cuda-bindings")
        with cuda:
            stream = cuda.stream()
            gpu.fail("cuStreamSynchronize", 700)
            with pytest.raises(DeviceLost, match="CUDA cannot run what is on the stream: .*ILLEGAL_ADDRESS"):
                stream.synchronize()
            gpu.reset()
            stream.close()
        cuda.close()


class TestWatch:
    def test_it_reads_the_clock_and_why_it_is_low(self, gpu: FakeGpu) -> None:
        watch = Watch("0000:01:00.0")
        assert watch.facts() == {"driver": "570.1", "uuid": "GPU-fake", "max_sm_mhz": 2000, "power_limit_w": 300.0}
        assert (watch.sm_mhz(), watch.throttled()) == (1500, None)
        gpu.throttle(1)
        assert (watch.sm_mhz(), watch.throttled(), watch.throttled()) == (700, "heat, by the hardware", None)
        watch.close()

    def test_without_it_is_said_why(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
        watch, why = open_watch("0000:09:00.0")
        assert watch is None
        assert why.startswith("NVML cannot read the clock of the GPU at 0000:09:00.0: ")
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert open_watch("0000:01:00.0") == (None, "pynvml is not installed; run: pip install 'hwnas[cuda]'")

    def test_what_an_older_card_does_not_tell_is_none(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
        watch = Watch("0000:01:00.0")

        def unsupported(*_: object) -> None:
            raise watch._nvml.NVMLError(3)

        for name in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetUUID"):
            monkeypatch.setattr(watch._nvml, name, unsupported)
        assert (watch.sm_mhz(), watch.throttled(), watch.facts()["uuid"]) == (None, None, None)
        watch.close()

    def test_power_is_no_reason(self) -> None:
        assert 0x4 not in nvml.THROTTLED


class TestTimer:
    @pytest.fixture
    def timer(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuTimer]:
        monkeypatch.setattr(cuda_timing, "SETTLE_S", (0.0, 0.05))
        monkeypatch.setattr(cuda_timing, "SETTLE_WINDOW_S", 0.005)
        monkeypatch.setattr(cuda_timing, "PAUSE_S", 0.001)
        cuda, watch = open_cuda("cuda-bindings"), Watch("0000:01:00.0")
        with cuda:
            self.stream = cuda.stream()
        made = GpuTimer(cuda, self.stream, watch)
        yield made
        made.close()
        with cuda:
            self.stream.close()
        watch.close()
        cuda.close()

    def work(self, gpu: FakeGpu, us: float) -> Any:
        return lambda: gpu.enqueue(self.stream.handle, lambda: None, us, "work")

    def test_a_graph_a_launch_and_a_cold_cache_each_have_their_time(self, timer: GpuTimer, gpu: FakeGpu) -> None:
        """By the rules of the fake: a launch takes 4 us and one in a graph 1, a flushed cache makes it 1.5 times."""
        ready = timer.prepare(self.work(gpu, 200.0))
        samples = ready.time(7)
        assert samples.latency_ms == pytest.approx(np.full(7, 0.201 + 0.004))
        assert len(samples.wall_ms) == 7
        assert samples.about["launch"] == "graph"
        assert samples.about["enqueue_ms"] == pytest.approx(0.204)
        assert samples.about["cold_ms"] == pytest.approx(0.004 * 1.5 + 0.201, rel=0.01)
        assert (samples.about["sm_mhz"], samples.about["dropped"]) == (1500, 0)
        ready.close()

    def test_short_work_is_captured_many_times_over(self, timer: GpuTimer, gpu: FakeGpu) -> None:
        ready = timer.prepare(self.work(gpu, 2.0))
        samples = ready.time(3)
        runs = ready._runs
        assert 5 <= runs <= 30
        assert samples.latency_ms == pytest.approx(np.full(3, 0.003 + 0.004 / runs))
        ready.close()

    def test_work_that_cannot_be_captured_is_put_on_the_stream(self, timer: GpuTimer, gpu: FakeGpu) -> None:
        ready = timer.prepare(self.work(gpu, 200.0), capturable=False)
        gpu.reset()
        samples = ready.time(3)
        assert samples.about["launch"] == "enqueue"
        assert samples.latency_ms == pytest.approx(np.full(3, 0.204))
        assert "cuGraphLaunch" not in gpu.names()
        ready.close()

    def test_a_library_may_capture_in_its_own_way(self, timer: GpuTimer, gpu: FakeGpu) -> None:
        captured: list[Any] = []

        def capture(work: Any) -> Any:
            captured.append(work)
            return self.stream.capture(work)

        for capturable in (True, False):
            ready = timer.prepare(self.work(gpu, 2.0), capturable, capture)
            assert ready.time(2).about["launch"] == ("graph" if capturable else "enqueue")
            ready.close()
        assert len(captured) == 2  # one run, and a block of them

    def test_what_is_called_in_a_visit(self, timer: GpuTimer, gpu: FakeGpu) -> None:
        """All is on one stream, nothing is copied, and events are read after the stream was waited for."""
        ready = timer.prepare(self.work(gpu, 200.0))
        ready.time(2)
        gpu.reset()
        depth = gpu.contexts
        ready.time(2)
        assert gpu.contexts == depth
        names = gpu.names()
        assert not [n for n in names if "Memcpy" in n or "Alloc" in n or "Create" in n or "Capture" in n]
        # An untimed launch, then each of the two between events, then the wait, then what the events say.
        first = names[1 : 1 + 8]
        assert names[0] == "cuCtxPushCurrent"
        assert first == [
            "cuGraphLaunch", "cuEventRecord", "cuGraphLaunch", "cuEventRecord", "cuGraphLaunch", "cuEventRecord",
            "cuStreamSynchronize", "cuEventElapsedTime",
        ]  # fmt: skip
        flushes = [i for i, name in enumerate(names) if name == "l2_flush"]
        assert len(flushes) == cuda_timing.SIDE_SAMPLES
        for i in flushes:
            assert names[i : i + 4] == ["l2_flush", "cuEventRecord", "cuGraphLaunch", "cuEventRecord"]
        numbers = {number for name, number in gpu.log() if name in ("cuGraphLaunch", "cuEventRecord", "l2_flush")}
        assert len(numbers) == 1
        assert numbers.isdisjoint({0, -1})
        ready.close()

    def test_throttled_samples_are_dropped_and_counted(self, timer: GpuTimer, gpu: FakeGpu) -> None:
        ready = timer.prepare(self.work(gpu, 200.0))
        ready.time(3)
        gpu.throttle(2)
        samples = ready.time(3)
        assert samples.about["dropped"] == 6
        assert "throttled" not in samples.about
        gpu.throttle(1000)
        samples = ready.time(3)
        assert samples.about["throttled"] == "heat, by the hardware"
        assert samples.about["dropped"] == 3 * cuda_timing.RETRIES
        assert samples.about["sm_mhz"] == 700
        ready.close()

    def test_clocks_settle_before_anything_counts(
        self, timer: GpuTimer, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        took = iter([9.0, 5.0, 3.0, 2.0, 1.999, 1.998, 1.997])
        seen: list[float] = []

        def back_to_back(work: Any, n: int) -> list[float]:
            seen.append(next(took))
            return [seen[-1]] * n

        monkeypatch.setattr(timer, "back_to_back", back_to_back)
        monkeypatch.setattr(cuda_timing, "SETTLE_WINDOW_S", 0.0)
        monkeypatch.setattr(cuda_timing, "SETTLE_S", (0.0, 5.0))
        clock = iter(range(10**6))
        monkeypatch.setattr(cuda_timing.time, "monotonic", lambda: next(clock) / 1000)
        monkeypatch.setattr(cuda_timing, "SETTLE_WINDOW_S", 0.0015)
        timer.settle(lambda: None)
        assert seen == [9.0, 5.0, 3.0, 2.0, 1.999]
        timer.settle(lambda: None)
        assert len(seen) == 5  # once is enough

    def test_median_is_of_what_the_device_says_not_of_the_host(self, timer: GpuTimer, gpu: FakeGpu) -> None:
        ready = timer.prepare(self.work(gpu, 50_000.0))  # 50 ms that take the host nothing
        samples = ready.time(3)
        assert median(samples.latency_ms.tolist()) == pytest.approx(50.005)
        assert median(samples.wall_ms.tolist()) < 20
        ready.close()
