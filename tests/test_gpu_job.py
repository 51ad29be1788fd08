"""A whole job for a GPU that is not there, from the plan to the proof: real bindings of CUDA, a double of TensorRT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hwnas import recipes
from hwnas.latency import LatencyTable
from hwnas.recipes import base
from hwnas.runtime.__main__ import main as runtime
from hwnas.runtime.cuda.kernels import preprocess, upsample_argmax
from hwnas.runtime.deploy.bundle import Bundle, open_application
from tests.fake_gpu import FakeGpu
from tests.verbs import RECIPE as TINY
from tests.verbs import done, hwnas

RECIPE = "darts-tiny-8"  # of one width, as three engines are built of everything


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


@pytest.fixture
def job(gpu: FakeGpu, tensorrt: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with darts-tiny at one width profiled, searched and trained for TensorRT in float16."""
    monkeypatch.chdir(tmp_path)
    made = replace(recipes.get(TINY), name=RECIPE, widths=(8,))
    monkeypatch.setitem(base._RECIPES, RECIPE, lambda: made)
    done("profile", RECIPE, "--engine", "tensorrt", "--precision", "fp16")
    done("search", RECIPE)
    done("train", RECIPE)
    return tmp_path


def test_a_whole_job(job: Path, gpu: FakeGpu, capsys: pytest.CaptureFixture[str]) -> None:
    contexts = gpu.contexts
    table = LatencyTable.load(Path(f"runs/{RECIPE}/table.json"))
    assert table.name == "fake-gpu-9000/tensorrt-fp16-b1"
    assert table.where["clock"] == "device"
    for row in (*table.rows.values(), *table.nets):
        assert row.status == "ok"
        assert {"enqueue_ms", "cold_ms", "sm_mhz", "dropped", "throttled_visits", "build_spread"} <= row.about.keys()
        assert row.about["builds"] == 3
    # The double takes what a formula says, so the table predicts it, and the sum of ops alone does not.
    assert table.report["predictors"]["ours"]["mape"] < 0.02 < table.report["predictors"]["sum"]["mape"]
    assert table.report["derived"]["mape"] < 0.02

    done("export", RECIPE)
    bundle = Bundle.load(Path(f"runs/{RECIPE}/deploy"))
    assert (bundle.engine, bundle.precision, bundle.output.kind) == ("tensorrt", "fp16", "labels")
    assert bundle.device["device"]["name"] == "Fake GPU 9000"
    assert bundle.built is not None
    assert bundle.built["inspector"]["layers"] > 20
    assert len(bundle.built["timing_cache_sha256"]) == 64

    done("validate", RECIPE)
    report = read(f"runs/{RECIPE}/report.json")
    assert abs(report["error"]) < 0.02
    assert report["slowdown"] == pytest.approx(1, abs=0.02)
    took = report["latencies"]
    assert took["network"]["quiet_ms"] < min(took["with_copies"]["quiet_ms"], took["application"]["quiet_ms"])
    assert report["accepted"]
    assert report["clock"] == "device"
    # What ships is what was measured: engines were built of the two networks of the table beside it alone.
    assert len(list(Path(f"runs/{RECIPE}/deploy/engines").glob("*.engine"))) == 2 * 3
    assert gpu.live == 0
    assert gpu.contexts == contexts

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save("street.png")
    assert runtime(["run", f"runs/{RECIPE}/deploy", "street.png", "--out", "seen.png"]) == 0
    with Image.open("seen.png") as picture:
        assert picture.height == 48
    capsys.readouterr()

    # Scores at low resolution leave upsampling and argmax to the kernel.
    before = bundle.path.parent.rename(f"runs/{RECIPE}/labels")
    assert before.exists()
    done("export", RECIPE, "--scores")
    bundle = Bundle.load(Path(f"runs/{RECIPE}/deploy"))
    with Image.open("street.png") as picture:
        image = np.asarray(picture)
    gpu.reset()
    with open_application(bundle) as application:
        labels, scores = application.labels(image), application.output(image)
    assert scores.shape == bundle.output.shape
    assert "upsample_argmax_f32" in gpu.names()
    assert (labels == upsample_argmax(scores, bundle.input.size)[0]).mean() > 0.999
    assert preprocess(image[None], bundle.input.mean, bundle.input.std).shape == bundle.input.shape

    # An engine for later releases too is another one, and what builds nothing has none.
    assert hwnas("export", RECIPE, "--scores", "--compatible", "version").code == 2
    bundle.folder.rename(f"runs/{RECIPE}/scores")
    done("export", RECIPE, "--scores", "--compatible", "version")
    bundle = Bundle.load(Path(f"runs/{RECIPE}/deploy"))
    assert bundle.built is not None
    assert bundle.built["compatible"] == "version"
    for engine, compatible, said in (
        ("onnxruntime", "version", "onnxruntime builds nothing, its file runs wherever it is installed"),
        ("tensorrt", "moon", "expected --compatible version, ampere_plus, same_compute_capability, got 'moon'"),
    ):
        bundle.folder.rename(f"runs/{RECIPE}/{engine}")
        refused = hwnas("export", RECIPE, "--engine", engine, "--precision", "fp32", "--compatible", compatible)
        assert refused.code == 2
        assert said in refused.err
        Path(f"runs/{RECIPE}/{engine}").rename(bundle.folder)

    # An engine that was changed, or is of another release, is refused.
    path = bundle.folder / "model.engine"
    path.write_bytes(path.read_bytes() + b"x")
    said = hwnas("validate", RECIPE)
    assert said.code == 2
    assert "model.engine does not match its checksum in engine.json" in said.err
