"""From a space to a plan: all measurements a table needs, as a folder that any device can carry out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hwnas.files import sha256, write_atomic
from hwnas.ops.onnx_graph import OpExporter, output_names
from hwnas.ops.precision import to_half
from hwnas.ops.registry import OpSpec
from hwnas.ops.trace import Trace
from hwnas.problem import Architecture, Marginals
from hwnas.profile.assembly import Assembly, Network, Price
from hwnas.profile.context import Boundary, Context, contexts, parts
from hwnas.profile.networks import Calibration, choose_networks
from hwnas.progress import SILENT, Reporter, Update, ignore
from hwnas.runtime.measuring.forecast import estimate_ms
from hwnas.runtime.measuring.plan import Call, Entry, plan_id, write_plan
from hwnas.spaces import Scale, Space, trace_alternatives, trace_space

OUTPUT = "output"


def make_plan(
    space: Space,
    scales: Sequence[Scale],
    folder: Path,
    calibration: Calibration,
    merge: bool = True,
    report: Reporter = SILENT,
    precision: str = "fp32",
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
        report: Shown each of the parts that take long: traces of all scales, of all networks, and the files.
        precision: What engines are to compute in, one of `hwnas.runtime.measuring.plan.PRECISIONS`.

    Returns:
        The number of entries.
    """
    with report.bar("plan: trace the scales", len(scales)) as update:
        update(0)
        mixed = []
        for scale in scales:
            mixed.append(trace_alternatives(space.at(scale), merge))
            update(len(mixed), f"{scale.channels} channels, {scale.cells} cells")
    chances = [likely(space, trace) for trace in mixed]
    share = _shares(mixed, chances)
    context_of = contexts(mixed, chances)
    ordered = sorted(context_of.values(), key=lambda c: (-share[c.spec], c.spec.key))
    writer = PlanWriter(folder, precision=precision, scales=scales)
    writer.plan_ops(ordered, context_of)
    with report.bar("plan: trace networks", calibration.fit + calibration.test) as update:
        for n, (use, index, arch) in enumerate(choose_networks(space, mixed, calibration)):
            update(n, use)  # so that the pace is not that of choosing them
            writer.plan_network(use, space.at(scales[index]), arch, merge)
    if calibration.isolated:
        for context in ordered:
            alone = Context(context.spec, context.out_shape, source=False, sink=False)
            writer.plan("op", context.spec.key, alone.trace())
    with report.bar("plan: write files", None) as update:
        return writer.write(update)


class PlanWriter:
    """Collects what a plan measures, then writes the ONNX file of each entry, each unique op exported once."""

    def __init__(self, folder: Path, precision: str = "fp32", scales: Sequence[Scale] = ()) -> None:
        """Start a plan without entries.

        Where `scales` differ in depth, the keys of networks name it.
        """
        self._deep = len({s.cells for s in scales}) > 1
        self._folder, self._precision = folder, precision
        self._planned: dict[str, tuple[str, Trace]] = {}
        self._ops: dict[str, Price] = {}
        self._networks: dict[str, Network] = {}

    def plan(self, role: str, key: str, trace: Trace) -> None:
        """Add an entry."""
        assert key not in self._planned, f"{key} is planned twice"
        self._planned[key] = (role, trace)

    def plan_ops(self, chosen: Sequence[Context], contexts_of: Mapping[OpSpec, Context]) -> None:
        """Add the entries that the prices of some ops are sums of.

        Args:
            chosen: Contexts of the ops, and of the endings of any of them.
            contexts_of: Contexts of all ops.
        """
        priced = [(c, parts(c, contexts_of)) for c in chosen]
        boundaries = dict.fromkeys(part for _, terms in priced for part in terms if isinstance(part, Boundary))
        for boundary in boundaries:
            self.plan("boundary", boundary.key, boundary.trace())
        for context, terms in priced:
            trace = context.trace()
            self.plan("context", context.key, trace)
            cost = next(c.cost for c in reversed(trace.calls) if c.spec == context.spec)
            weights = {part.key: weight for part, weight in terms.items()}
            self._ops[context.spec.key] = Price(context.key, weights, cost.macs, cost.bytes)

    def key_of(self, space: Space, arch: Architecture) -> str:
        """Return what a network at the scale of `space` is called in the plan."""
        return f"net/{arch.id}-c{space.scale.channels}" + f"-d{space.scale.cells}" * self._deep

    def plan_network(self, use: str, space: Space, arch: Architecture, merge: bool) -> None:
        """Add a whole network at the scale of `space`, once."""
        key = self.key_of(space, arch)
        if key not in self._planned:
            self.plan("net", key, trace_space(space, arch, merge=merge))
            self._networks[key] = Network(use, space.scale.to_json(), arch.to_json())

    def write(self, update: Update = ignore) -> int:
        """Write all files and tell `update` after each; return how many entries there are."""
        exporter, entries = OpExporter(), list[Entry]()
        # The file of a network takes as long as those of its calls, and the first file as long as imports.
        calls, done = sum(len(trace.calls) for _, trace in self._planned.values()), 0
        first, start_s, left_s = 0, 0.0, None
        for key, (role, trace) in self._planned.items():
            model = exporter.network(trace)
            if self._precision == "fp16":
                model = to_half(model)
            content = model.SerializeToString(deterministic=True)
            digest = sha256(content)
            name = f"{'nets' if role == 'net' else 'ops'}/{digest[:16]}.onnx"
            if not (self._folder / name).exists():
                write_atomic(self._folder / name, content)
            entries.append(trace_entry(role, key, trace, name, digest))
            done += len(trace.calls)
            if start_s:
                left_s = (time.monotonic() - start_s) * (calls - done) / max(1, done - first)
            else:
                first, start_s = done, time.monotonic()
            update(len(entries), key, len(self._planned), left_s)
        # The plan comes last: where it is, everything is.
        Assembly(self._ops, self._networks).save(self._folder, plan_id(entries, self._precision))
        write_plan(self._folder, entries, self._precision)
        return len(entries)


def trace_entry(role: str, key: str, trace: Trace, onnx: str | None, digest: str | None, output: str = OUTPUT) -> Entry:
    """Return the plan entry of what a trace lists, whose results are called as `output_names` says."""
    results = output_names(trace, output)
    calls = tuple(
        Call(
            c.spec.kind,
            dict(c.spec.attrs),
            c.spec.in_shapes,
            tuple(results.get(name, name) for name in c.inputs),
            results.get(c.output, c.output),
            c.out_shape,
            c.cost.macs,
            c.cost.bytes,
        )
        for c in trace.calls
    )
    return Entry(key, role, onnx, digest, calls, dict(trace.inputs), tuple(results.values()))


def likely(space: Space, trace: Trace) -> list[float]:
    """Return the probability of each call to be in the derived network under uniform probabilities."""
    problem = space.problem
    marginals = Marginals(problem, [c.gate for c in trace.calls])
    chances: list[float] = marginals.gate_probs(marginals.literal_probs(problem.uniform())).tolist()
    return chances


def _shares(mixed: Sequence[Trace], chances: Sequence[Sequence[float]]) -> dict[OpSpec, float]:
    """Return the expected milliseconds of each op in the derived network under uniform probabilities."""
    out: dict[OpSpec, float] = {}
    for trace, present in zip(mixed, chances, strict=True):
        for call, p in zip(trace.calls, present, strict=True):
            out[call.spec] = out.get(call.spec, 0.0) + p * estimate_ms(call.cost.macs, call.cost.bytes)
    return out
