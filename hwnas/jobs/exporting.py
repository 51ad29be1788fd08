"""From trained weights to a folder to deploy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from hwnas import __version__
from hwnas.complexity import Complexity, complexity
from hwnas.data import SegmentationData
from hwnas.derived import Derived
from hwnas.errors import HwnasError
from hwnas.export import export as export_network
from hwnas.files import sha256
from hwnas.jobs.inputs import settle_data
from hwnas.latency.table import LatencyTable
from hwnas.ops.trace import INPUT
from hwnas.progress import SILENT, Reporter
from hwnas.run import Run
from hwnas.runtime.deploy.bundle import BUNDLE_FILE, COMPATIBLE, BuildsBundles, Bundle, Input, Output
from hwnas.runtime.engines import using_engine
from hwnas.runtime.measuring.device import provenance


@dataclass(frozen=True)
class ExportSettings:
    """What is exported.

    Attributes:
        kind: What the file gives, one of `hwnas.runtime.deploy.bundle.KINDS`.
        engine: What it is to run on; None for the engine of the run's table, else ONNX Runtime.
        precision: What that is to compute in; None for that of the table if the engine is, else float32.
        compatible: What else is to take an engine that is built, one of `hwnas.runtime.deploy.bundle.COMPATIBLE`.
    """

    kind: Literal["labels", "logits", "scores"] = "labels"
    engine: str | None = None
    precision: str | None = None
    compatible: str | None = None


@dataclass(frozen=True)
class ExportResult:
    """A bundle.

    Attributes:
        bundle: It.
        complexity: Of its network.
        bytes: Of the ONNX file.
        complete: Whether it was there already.
    """

    bundle: Bundle
    complexity: Complexity
    bytes: int
    complete: bool = False


def export(run: Run, settings: ExportSettings = ExportSettings(), report: Reporter = SILENT) -> ExportResult:
    """Export the trained network of a run into a bundle."""
    run.require("arch.json", "search")
    compatible = settings.compatible
    if compatible not in (None, *COMPATIBLE):
        raise HwnasError(f"expected --compatible {', '.join(COMPATIBLE)}, got {compatible!r}")
    with run.locked():
        folder, derived = run.folder / "deploy", run.derived()
        space = run.space(derived)
        weights = run.require("train/model.safetensors", "train")
        settle_data(run, report, read=False)
        digest, target = sha256(weights.read_bytes()), _target(run, settings)
        if (folder / BUNDLE_FILE).exists():
            there = Bundle.load(folder)
            _refuse_another(there, digest, target, settings)
            counted = complexity(space, derived.architecture)
            return ExportResult(there, counted, there.path.stat().st_size, complete=True)
        data, path = run.data("val"), folder / "model.onnx"
        settle_data(run, report)
        with using_engine(*target) as opened:  # one that is not here is refused before anything is written
            if compatible is not None and not opened.capabilities.builds:
                raise HwnasError(
                    f"{target[0]} builds nothing, its file runs wherever it is installed; leave out --compatible"
                )
            _, facts = export_network(space, derived.architecture, weights, data, path, settings.kind, target[2])
            bundle = _describe(path, derived, data, settings.kind, target, provenance(opened), facts)
            bundle = replace(bundle, weights_sha256=digest)
            if opened.capabilities.builds:
                builder = cast(BuildsBundles, opened)
                with report.bar("build", None) as update:
                    built = builder.build_bundle(
                        path, folder, lambda at, done, total: update(done, at, total), compatible
                    )
                bundle = replace(bundle, built={**built, "compatible": compatible})
        bundle.save()
        return ExportResult(bundle, complexity(space, derived.architecture), facts["bytes"])


def _refuse_another(there: Bundle, digest: str, target: tuple[str, int, str], settings: ExportSettings) -> None:
    own = (there.weights_sha256, there.output.kind, (there.engine, there.threads, there.precision))
    if (*own, (there.built or {}).get("compatible")) != (digest, settings.kind, target, settings.compatible):
        raise HwnasError(f"{there.folder} is another export of this run; remove the folder to write it anew")


def _describe(
    path: Path,
    derived: Derived,
    data: SegmentationData,
    kind: str,
    target: tuple[str, int, str],
    where: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> Bundle:
    """Return the bundle of an exported file, without its weights' checksum and what an engine may build of it."""
    engine, threads, precision = target
    size = derived.scale.size
    return Bundle(
        folder=path.parent,
        onnx=path.name,
        onnx_sha256=facts["sha256"],
        engine=engine,
        precision=precision,
        threads=threads,
        versions={"hwnas": __version__, "opset": facts["opset"], "engine": where["engine"]["version"]},
        device=where,
        input=Input(INPUT, (1, 3, *size), data.mean, data.std, size),
        output=Output(kind, kind, facts["shape"], facts["dtype"]),
        classes=data.classes.names,
        palette=data.classes.palette,
        architecture=derived.architecture.id,
        scale=derived.scale.to_json(),
        predicted_ms=derived.predicted_ms,
        budget_ms=derived.budget_ms,
        weights_sha256="",
        parity=facts["parity"],
    )


def _target(run: Run, settings: ExportSettings) -> tuple[str, int, str]:
    """Return engine, threads and precision of an export: what was asked for, else those of the run's table."""
    path = run.folder / "table.json"
    own = LatencyTable.load(path).where["engine"] if path.exists() else {}
    name = settings.engine or str(own.get("name", "onnxruntime"))
    precision = own.get("precision", "fp32") if name == own.get("name") else "fp32"
    return name, int(own.get("threads", 1)), settings.precision or str(precision)
