"""Our use of TensorRT's interface, driven against doubles of each release: what is asked for, and what is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hwnas.errors import BuildError, HwnasError
from hwnas.runtime.engines.trt_build import BuildOptions, _build
from tests.trt_double import RELEASES, TrtDouble

FULL = tuple(r for r in RELEASES if not r.startswith("tensorrt_rtx"))


def flavour(release: str) -> str:
    return release.partition("-")[0]


@pytest.fixture
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TrtDouble:
    """Return the double of the release that the test is for, as the installed package."""
    double = TrtDouble(request.param)
    config, network = double.IBuilderConfig(), double.INetworkDefinition()
    double.calls.clear()
    double.returns |= {
        "Builder.create_network": network,
        "Builder.create_builder_config": config,
        "Builder.build_serialized_network": b"engine",
        "OnnxParser.parse": True,
    }
    monkeypatch.setitem(sys.modules, flavour(request.param), double)
    return double


def built(trt: TrtDouble, **more: Any) -> bytes:
    name = "tensorrt_rtx" if hasattr(trt.IBuilderConfig, "num_compute_capabilities") else "tensorrt"
    return _build(b"model", "m.onnx", BuildOptions(flavour=name, **more), lambda *a: None)


def test_the_releases_that_matter_are_there() -> None:
    """8.6 is the last for Pascal, 10.0 the first of tensor names alone, 11 has strong typing alone."""
    assert [r.rpartition(".")[0] for r in RELEASES] == [
        "tensorrt-10.0", "tensorrt-10.16", "tensorrt-11.4", "tensorrt-8.6", "tensorrt_rtx-1.7",
    ]  # fmt: skip


@pytest.mark.parametrize("trt", RELEASES, indirect=True)
@pytest.mark.parametrize("fp16", [False, True])
def test_every_release_builds(trt: TrtDouble, fp16: bool) -> None:
    assert built(trt, fp16=fp16, workspace_mib=64) == b"engine"
    ((_, (flags,)),) = trt.made("Builder", "create_network")
    kinds = trt.NetworkDefinitionCreationFlag
    strong = hasattr(kinds, "STRONGLY_TYPED")
    assert flags == 1 << (kinds.STRONGLY_TYPED if strong else kinds.EXPLICIT_BATCH)
    assert trt.made("OnnxParser", "parse") == [("parse", (b"model",))]
    assert ("clear_flag", (trt.BuilderFlag.TF32,)) in trt.made("IBuilderConfig")
    assert ("=max_aux_streams", (0,)) in trt.made("IBuilderConfig")
    assert ("=profiling_verbosity", (trt.ProfilingVerbosity.DETAILED,)) in trt.made("IBuilderConfig")
    pool = ("set_memory_pool_limit", (trt.MemoryPoolType.WORKSPACE, 64 << 20))
    assert pool in trt.made("IBuilderConfig")
    # Precision is a flag only where the types of the model do not decide.
    asked = [("set_flag", (trt.BuilderFlag.FP16,))] if fp16 and not strong else []
    assert trt.made("IBuilderConfig", "set_flag") == asked
    assert bool(trt.made("IBuilderConfig", "=progress_monitor")) == hasattr(trt, "IProgressMonitor")
    assert not trt.made("IBuilderConfig", "create_timing_cache", "set_timing_cache")
    aimed = trt.made("IBuilderConfig", "=num_compute_capabilities", "set_compute_capability")
    if hasattr(trt, "ComputeCapability"):  # for the GPU that is here
        assert aimed == [
            ("=num_compute_capabilities", (1,)),
            ("set_compute_capability", (trt.ComputeCapability.CURRENT, 0)),
        ]
    else:
        assert not aimed


@pytest.mark.parametrize("trt", RELEASES, indirect=True)
def test_tf32_is_a_flag(trt: TrtDouble) -> None:
    built(trt, tf32=True)
    assert trt.made("IBuilderConfig", "set_flag", "clear_flag") == [("set_flag", (trt.BuilderFlag.TF32,))]


@pytest.mark.parametrize("trt", RELEASES, indirect=True)
def test_engines_for_other_releases_and_gpus(trt: TrtDouble) -> None:
    built(trt, version_compatible=True, hardware_compatible="ampere_plus")
    assert ("set_flag", (trt.BuilderFlag.VERSION_COMPATIBLE,)) in trt.made("IBuilderConfig")
    level = ("=hardware_compatibility_level", (trt.HardwareCompatibilityLevel.AMPERE_PLUS,))
    assert level in trt.made("IBuilderConfig")
    if hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"):
        built(trt, hardware_compatible="same_compute_capability")
    else:
        with pytest.raises(HwnasError, match=r"has no HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY; leave that"):
            built(trt, hardware_compatible="same_compute_capability")


@pytest.mark.parametrize("trt", FULL, indirect=True)
def test_the_timing_cache_is_read_and_written(trt: TrtDouble, tmp_path: Path) -> None:
    file, cache = tmp_path / "t.cache", trt.ITimingCache()
    trt.returns |= {
        "IBuilderConfig.create_timing_cache": cache,
        "IBuilderConfig.get_timing_cache": cache,
        "ITimingCache.serialize": b"times",
    }
    for before in (b"", b"times"):
        trt.calls.clear()
        built(trt, timing_cache=str(file))
        assert trt.made("IBuilderConfig", "create_timing_cache", "set_timing_cache") == [
            ("create_timing_cache", (before,)),
            ("set_timing_cache", (cache, False)),
        ]
        assert file.read_bytes() == b"times"


@pytest.mark.parametrize("trt", ["tensorrt-8.6.1"], indirect=True)
def test_the_oldest_knows_neither_strong_typing_nor_progress(trt: TrtDouble) -> None:
    assert not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    assert not hasattr(trt, "IProgressMonitor")
    with pytest.raises(AttributeError, match="8.6.1: IBuilderConfig has no progress_monitor to set"):
        trt.IBuilderConfig().progress_monitor = None


@pytest.mark.parametrize("trt", [r for r in RELEASES if r not in FULL], indirect=True)
def test_rtx_is_told_for_which_gpus(trt: TrtDouble) -> None:
    built(trt, targets=((8, 6), (12, 0)))
    wanted = [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]
    assert trt.made("IBuilderConfig", "=num_compute_capabilities", "set_compute_capability") == [
        ("=num_compute_capabilities", (2,)),
        *(("set_compute_capability", (sm, i)) for i, sm in enumerate(wanted)),
    ]


@pytest.mark.parametrize("trt", FULL, indirect=True)
def test_tensorrt_builds_for_the_gpu_that_is_here(trt: TrtDouble) -> None:
    with pytest.raises(HwnasError, match="builds for the GPU that is here alone; leave out the compute capabilities"):
        built(trt, targets=((8, 6),))


@pytest.mark.parametrize("trt", RELEASES, indirect=True)
def test_what_the_parser_refuses_is_said(trt: TrtDouble) -> None:
    error = trt.ParserError()
    trt.returns |= {
        "OnnxParser.parse": False,
        "OnnxParser.get_error": error,
        "ParserError.desc": "no\n such op",
        "ParserError.node": 7,
        "ParserError.node_name": "head.relu#7/Odd_0",
        "ParserError.node_operator": "Odd",
    }
    trt.OnnxParser.num_errors = 1
    node = r"node head\.relu#7/Odd_0 \(Odd\) of head\.relu" if hasattr(error, "node_name") else "node number 7"
    with pytest.raises(BuildError, match=rf"tensorrt\w* \d.* cannot read m\.onnx: {node}: no such op$"):
        built(trt)


@pytest.mark.parametrize("trt", RELEASES, indirect=True)
def test_what_the_builder_says_is_said(trt: TrtDouble) -> None:
    def refuse(*_: object) -> None:
        logger = next(arguments[0] for _, arguments in trt.made("Builder", "()"))
        logger.log(trt.ILogger.Severity.WARNING, "of no interest")  # type: ignore[attr-defined]
        logger.log(trt.ILogger.Severity.ERROR, "no tactic\n was found")  # type: ignore[attr-defined]

    trt.returns["Builder.build_serialized_network"] = refuse
    with pytest.raises(BuildError, match="cannot build m.onnx: no tactic was found$"):
        built(trt)
