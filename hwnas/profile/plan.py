"""From a space to a plan: everything a table needs measured, as a folder that any device can work off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hwnas.files import canonical_json, sha256, write_atomic
from hwnas.gates import Marginals
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.registry import OpSpec
from hwnas.ops.trace import Trace
from hwnas.profile.context import Context, boundary_key, boundary_trace, contexts
from hwnas.profile.networks import Calibration, choose_networks, estimate_ms
from hwnas.runtime.plan import Call, Entry, write_plan
from hwnas.spaces.base import Scale, SearchSpace, trace_space
from hwnas.ui import Update, ignore

NETWORKS_FILE = "networks.json"
OUTPUT = "output"
Write = Callable[[str, str, Trace], Entry]


def make_plan(
    space: SearchSpace,
    scales: Sequence[Scale],
    folder: Path,
    calibration: Calibration,
    merge: bool = True,
    update: Update = ignore,
) -> int:
    """Write everything to measure for `space` at `scales` into a plan folder, what matters most first.

    First the ops in context, by how much of a network they are expected to be, then the networks to fit on, those to
    test on, and the ops alone.

    Args:
        space: Any scale; only its decisions count.
        scales: The deployment scales the table must price.
        folder: Made if need be. An interrupted plan is written again: it takes seconds.
        calibration: The whole networks beside the ops.
        merge: Whether the engine merges identical parameter-free ops.
        update: Told after each ONNX file.

    Returns:
        The number of entries.
    """
    mixed = [trace_space(space.at(s), merge=merge) for s in scales]
    chosen = choose_networks(space, mixed, calibration)
    share = _shares(space, mixed)
    ordered = sorted(contexts(mixed).values(), key=lambda c: (-share[c.spec], c.spec.key))
    boundaries = list(dict.fromkeys(shape for c in ordered for shape, _ in c.borders))
    writer = PlanWriter(folder, 2 * len(boundaries) + (1 + calibration.isolated) * len(ordered) + len(chosen), update)
    for shape in boundaries:
        for pairs in (1, 2):
            writer.add("boundary", boundary_key(shape, pairs), boundary_trace(shape, pairs))
    for context in ordered:
        writer.add("context", context.key, context.trace())
    networks = {}
    for use, index, arch in chosen:
        key = f"net/{arch.id}-c{scales[index].channels}"
        writer.add("net", key, trace_space(space.at(scales[index]), arch, merge=merge))
        networks[key] = {"use": use, "scale": scales[index].to_json(), "architecture": arch.to_json()}
    if calibration.isolated:
        for context in ordered:
            alone = Context(context.spec, context.out_shape, source=False, sink=False)
            writer.add("op", context.spec.key, alone.trace())
    write_atomic(folder / NETWORKS_FILE, canonical_json(networks) + "\n")
    return writer.finish()


class PlanWriter:
    """Writes the ONNX file of each entry as it comes, each unique op exported once."""

    def __init__(self, folder: Path, total: int, update: Update = ignore) -> None:
        """Start a plan of `total` entries."""
        self._folder, self._total, self._update = folder, total, update
        self._exporter = OpExporter()
        self._entries: list[Entry] = []

    def add(self, role: str, key: str, trace: Trace) -> None:
        """Export what a trace lists and add it to the plan."""
        content = self._exporter.network(trace).SerializeToString(deterministic=True)
        digest = sha256(content)
        name = f"{'nets' if role == 'net' else 'ops'}/{digest[:16]}.onnx"
        if not (self._folder / name).exists():
            write_atomic(self._folder / name, content)
        self._entries.append(trace_entry(role, key, trace, name, digest))
        self._update(len(self._entries), key, self._total)

    def finish(self) -> int:
        """Write the list of entries; return how many there are."""
        assert len(self._entries) == self._total
        write_plan(self._folder, self._entries)
        return self._total


def trace_entry(role: str, key: str, trace: Trace, onnx: str | None, digest: str | None, output: str = OUTPUT) -> Entry:
    """Return the plan entry of what a trace lists, whose result is called `output`."""
    calls = tuple(
        Call(
            c.spec.kind,
            dict(c.spec.attrs),
            c.spec.in_shapes,
            c.inputs,
            output if c.output == trace.output else c.output,
            c.out_shape,
            c.cost.macs,
            c.cost.bytes,
        )
        for c in trace.calls
    )
    return Entry(key, role, onnx, digest, calls, dict(trace.inputs), (output,))


def _shares(space: SearchSpace, mixed: Sequence[Trace]) -> dict[OpSpec, float]:
    """Return the milliseconds that each op is expected to take in a network about which nothing was decided."""
    out: dict[OpSpec, float] = {}
    uniform = {g.name: torch.full(g.shape, 1 / g.shape[1]) for g in space.groups}
    for trace in mixed:
        marginals = Marginals(space.groups, space.rules(), [c.gate for c in trace.calls])
        present = marginals.gate_probs(marginals.literal_probs(uniform)).tolist()
        for call, p in zip(trace.calls, present, strict=True):
            out[call.spec] = out.get(call.spec, 0.0) + p * estimate_ms(call.cost.macs, call.cost.bytes)
    return out
