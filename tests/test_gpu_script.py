"""The programs that make evidence on a GPU, driven on one that is not there, in child processes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import recipes
from hwnas.errors import HwnasError
from hwnas.latency import LatencyTable, OpRow
from hwnas.profile import Calibration, make_plan
from hwnas.runtime.cuda import timing as cuda_timing
from hwnas.runtime.cuda.kernels import preprocess, upsample_argmax
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan
from hwnas.spaces import trace_space
from tests.conftest import ROOT
from tests.fake_gpu import FakeGpu
from tests.fake_torch_cuda import TorchCuda

BENCH = ROOT / "scripts" / "bench"
TINY = ("--recipe", "darts-tiny", "--quick", "--size", "64x96", "--copy-mib", "1")
GPU_TESTS = "import pytest\n\n\n@pytest.mark.gpu\ndef test_a():\n    assert {passes}\n\n\ndef test_b():\n    assert 0\n"


@pytest.fixture
def box(gpu: FakeGpu, tensorrt: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder on a box with that GPU and TensorRT, for child processes."""
    monkeypatch.setenv("PYTHONPATH", f"{gpu.folder}{os.pathsep}{ROOT}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that imports one of the programs."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(str(sys.modules[name].__file__)).parent == BENCH:
            del sys.modules[name]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def result(step: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"gpu-results/{step}.json").read_text())
    return found


def a_test(passes: bool) -> None:
    Path("test_here.py").write_text(GPU_TESTS.format(passes=passes))


class TestSteps:
    @pytest.mark.slow
    def test_what_was_done_is_written_down_and_not_done_again(self, box: Path) -> None:
        command = (*TINY, "--steps", "kernels", "fps", "--engines", "tensorrt:fp32")
        said = run("gpu.py", *command)
        assert said.returncode == 0, said.stdout + said.stderr
        rows = result("kernels")["data"]["kernels"]
        assert [r["wrong"] for r in rows] == [0] * 7
        (engine,) = result("fps")["data"]["engines"]
        assert engine["where"]["device"]["name"] == "Fake GPU 9000"
        assert {(r["network"][:8], r["scope"]) for r in engine["rows"]} >= {
            ("DARTS_V2", scope) for scope in ("net", "copies", "application")
        }
        page = Path("gpu-results/results.md").read_text()
        assert "# Measured on Fake GPU 9000" in page
        assert "| upsample_argmax_f16 | 64x96 from 1/4, 19 classes |" in page
        assert "| tensorrt | fp32 | DARTS_V2-c4 | application |" in page
        assert page.endswith("Nothing.\n")
        everything = json.loads(Path("gpu-results/results.json").read_text())
        assert everything["steps"].keys() == {"kernels", "fps"}
        assert everything["host"]["device"]["compute_capability"] == "8.9"

        before = {p: p.stat().st_mtime_ns for name in ("kernels", "fps") for p in box.glob(f"gpu-results/{name}.*")}
        again = run("gpu.py", *command)
        assert again.returncode == 0
        assert [line.endswith("done before") for line in again.stdout.splitlines()[:2]] == [True, True]
        assert {p: p.stat().st_mtime_ns for p in before} == before
        assert Path("gpu-results/results.md").read_text() == page

    def test_what_there_is_no_time_for_is_left_out_and_said(self, box: Path) -> None:
        said = run(
            "gpu.py", *TINY, "--minutes", "0.01", "--steps", "doctor", "tables", "kernels", "--engines", "fake:fp32"
        )
        assert said.returncode == 0
        assert "doctor: left out: 0.0 minutes were left" in said.stdout
        page = Path("gpu-results/results.md").read_text()
        assert "| table-fake-fp32 | left out | 0.0 minutes were left, some of them for kernels |" in page

    def test_one_that_fails_is_said_and_does_not_stop_the_others(self, box: Path) -> None:
        a_test(passes=False)
        engines = ("--engines", "tensorrt:fp99", "fake:fp32")
        command = (*TINY, "--steps", "doctor", "tests", "tables", "--tests", "test_here.py", *engines)
        said = run("gpu.py", *command)
        assert said.returncode == 1
        assert "tests: FAILED: pytest ended with 1: 1 failed, 1 deselected" in said.stdout
        assert "failed: tests; their logs are in" in said.stdout
        assert "Fake GPU 9000, SM 8.9" in result("doctor")["data"]["doctor"]
        assert result("tests")["data"]["counts"] == {"failed": 1}
        assert result("table-fake-fp32")["data"]["held_out"] == 3
        assert not Path("gpu-results/table-tensorrt-fp99.json").exists()
        page = Path("gpu-results/results.md").read_text()
        assert "| fake 1 | fp32 | " in page
        assert "| tests | failed | pytest ended with 1" in page
        assert "| table-tensorrt-fp99 | not ready | engine 'tensorrt' computes in fp32, tf32, fp16" in page

        a_test(passes=True)
        again = run("gpu.py", *command)
        assert again.returncode == 0
        assert "table-fake-fp32: done before" in again.stdout
        assert result("tests")["data"]["counts"] == {"passed": 1}

    @pytest.mark.slow
    def test_a_table_of_tensorrt(self, box: Path) -> None:
        said = run("gpu.py", *TINY, "--steps", "tables", "--engines", "tensorrt:fp16", "--minutes", "30")
        assert said.returncode == 0, said.stdout + said.stderr
        data = result("table-tensorrt-fp16")["data"]
        assert data["where"]["engine"]["precision"] == "fp16"
        assert data["predictors"]["ours"]["mape"] < 0.02
        assert data["derived"]["n"] > 0
        assert "| tensorrt 10.16.1 | fp16 | " in Path("gpu-results/results.md").read_text()


class TestRefusals:
    def test_without_a_gpu_one_line_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # where there is one, it is not to work for an hour
        for name, *arguments in (("gpu.py",), ("gpu_kernels.py",), ("gpu_fps.py", "--engines", "tensorrt_rtx:fp16")):
            said = run(name, *arguments)
            assert said.returncode == 2
            assert said.stderr.startswith(name.removesuffix(".py"))
            assert "CUDA cannot start: " in said.stderr
            assert said.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_of_something_else(self, bench: Any, tmp_path: Path) -> None:
        gpu = bench("gpu")
        host = {"device": {"name": "A"}, "options": {"card": "GPU-1"}}
        args = argparse.Namespace(out=tmp_path / "out", recipe="darts-gpu", size=None, quick=False)
        gpu.claim(args, host)
        gpu.claim(args, host)
        with pytest.raises(HwnasError, match=r"out has results of card 'GPU-1', not 'GPU-2'; name another folder"):
            gpu.claim(args, {**host, "options": {"card": "GPU-2"}})
        with pytest.raises(HwnasError, match=r"out has results of size None, not '64x96'"):
            gpu.claim(argparse.Namespace(**{**vars(args), "size": (64, 96)}), host)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").touch()
        with pytest.raises(HwnasError, match=r"mine is there and is no folder of results; name another one with --out"):
            gpu.claim(argparse.Namespace(**{**vars(args), "out": tmp_path / "mine"}), host)

    def test_arguments(self, bench: Any) -> None:
        host = bench("gpu_host")
        assert host.pair("tensorrt:fp16") == ("tensorrt", "fp16")
        assert host.pair("mine:Engine:fp32") == ("mine:Engine", "fp32")
        assert host.size("1024x2048") == (1024, 2048)
        for read, text in ((host.pair, "tensorrt"), (host.size, "1024"), (host.size, "0x3"), (host.size, "axb")):
            with pytest.raises(argparse.ArgumentTypeError, match="expected "):
                read(text)

    @pytest.mark.parametrize(
        ("command", "match"),
        [
            (["gpu.sh", "--wheels"], "expected a value after --wheels"),
            (["gpu.sh", "--wheels", "nowhere"], "expected a folder after --wheels, nowhere is none"),
            (["gpu.sh", "--frames", "3"], "unknown argument --frames"),
            (["gpu.sh"], "there is no NVIDIA driver here"),
            (["gpu_wheels.sh"], "usage: scripts/gpu_wheels.sh"),
            (["gpu_wheels.sh", "a", "b"], "expected one folder, got a and b"),
            (
                ["gpu_wheels.sh", "--platform", "linux", "a"],
                "expected a platform such as manylinux_2_28_x86_64, got linux",
            ),
        ],
    )
    def test_of_the_shell(
        self, command: list[str], match: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        name, *arguments = command
        python = tmp_path_factory.mktemp("bin") / "python"  # one that finds no driver, whatever is here
        python.write_text('#!/bin/sh\ncase "$2" in *libcuda*) exit 1 ;; esac\n')
        python.chmod(0o755)
        env = {**os.environ, "PYTHON": str(python)}
        shell = ["bash", str(ROOT / "scripts" / name), *arguments]
        said = subprocess.run(shell, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert said.returncode == 2
        assert match in said.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_table_that_was_not_finished_says_so(self, bench: Any, tmp_path: Path) -> None:
        gpu, report = bench("gpu"), bench("gpu_report")
        where = {"engine": {"name": "tensorrt", "version": "10", "precision": "fp16"}, "device": {"name": "A"}}
        LatencyTable(where, {"a": OpRow("a", 0.0, status="skipped")}).save(tmp_path / "table.json")
        with pytest.raises(gpu.Failed, match=r"no network that it was not fitted on: 1 entries were not reached") as e:
            gpu.read_table(tmp_path / "table.json")
        page = report._tables({"table-x": {"data": e.value.data}}, {"recipe": "darts-gpu"})
        assert page.count("not measured") == 8


class TestPyTorch:
    """The ways of PyTorch that our kernels are held against."""

    @pytest.fixture
    def double(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> TorchCuda:
        monkeypatch.setattr(cuda_timing, "SETTLE_S", (0.0, 0.02))
        return TorchCuda(gpu, monkeypatch)

    def test_they_compute_what_the_references_do(self, bench: Any, double: TorchCuda) -> None:
        kernels, rng = bench("gpu_kernels"), np.random.default_rng(0)
        image = rng.integers(0, 256, (1, 6, 9, 3)).astype(np.uint8)
        for kind, dtype, atol in (("f32", np.float32, 1e-6), ("f16", np.float16, 2e-3)):
            got = kernels.torch_preprocess(torch, image, kind)()
            assert got.is_contiguous()
            expected = preprocess(image, kernels.MEAN, kernels.STD, dtype)
            np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=atol)
        scores = rng.standard_normal((1, 5, 4, 6)).astype(np.float32)
        got = kernels.torch_upsample_argmax(torch, scores, (16, 24))()
        np.testing.assert_array_equal(got.numpy(), upsample_argmax(scores, (16, 24)))

    def test_they_are_timed_on_the_same_stream(
        self, bench: Any, double: TorchCuda, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kernels = bench("gpu_kernels")
        assert kernels.run({(16, 24): 3}, 1, StopRule(min_visits=2, max_visits=3, min_s=0.0)) == 0
        out = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert out["torch"] == torch.__version__
        copy, *others = out["kernels"]
        assert "torch" not in copy
        for found in others:
            assert found["torch_ratio"] == pytest.approx(found["torch"]["latency_ms"] / found["latency_ms"])


class TestRecipe:
    """The recipe whose ops and networks are measured on GPUs."""

    def test_it_is_what_it_says(self) -> None:
        made = recipes.get("darts-gpu")
        assert made.calibration.test >= 30
        assert all(width % 8 == 0 for width in made.widths)
        traced = trace_space(made.space)
        assert traced.input_shape == (1, 3, 1024, 2048)
        assert traced.calls[-1].out_shape == (1, 1024, 2048)

    @pytest.mark.slow
    def test_its_plan_can_be_written_without_a_gpu(self, tmp_path: Path) -> None:
        made = recipes.get("darts-gpu")
        n = make_plan(made.space, made.scales(), tmp_path, Calibration(fit=2, test=2), precision="fp16")
        assert len(load_plan(tmp_path).entries) == n > 400
