"""Plan, measure, table: what a space needs measured, as a folder that any device can work off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwnas.arch import Architecture
from hwnas.errors import HwnasError
from hwnas.files import canonical_json, read_json, sha256, write_atomic
from hwnas.gates import Marginals
from hwnas.latency.calibrate import errors, fit, select
from hwnas.latency.table import UNMEASURED, LatencyTable, NetRow, OpRow
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.registry import OpSpec
from hwnas.ops.trace import Cost, Trace
from hwnas.runtime.journal import read_journal
from hwnas.runtime.plan import Call, Entry, load_plan, write_plan
from hwnas.runtime.work import Row, collect
from hwnas.spaces.base import Scale, SearchSpace, sample, trace_space
from hwnas.ui import Update, ignore

NETWORKS_FILE = "networks.json"
CANDIDATES = 300  # networks the calibration set is chosen from


@dataclass(frozen=True)
class Calibration:
    """How many whole networks are measured beside the ops.

    Attributes:
        fit: Networks the correction is fitted on, chosen to tell its factors apart.
        test: Others, drawn at random, that its error is measured on.
        seed: Of the draw.
    """

    fit: int = 12
    test: int = 6
    seed: int = 0


def make_plan(
    space: SearchSpace,
    scales: Sequence[Scale],
    folder: Path,
    calibration: Calibration,
    merge: bool = True,
    update: Update = ignore,
) -> int:
    """Write everything to measure for `space` at `scales` into a plan folder.

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
    exporter = OpExporter()
    mixed = [trace_space(space.at(s), merge=merge) for s in scales]
    chosen = choose_networks(space, mixed, calibration)
    entries: list[Entry] = []
    # Rows stand for one isolated op each; the trace of an op alone is that op reading the plan's inputs.
    unique = {c.spec: c for t in mixed for c in t.calls}
    total = len(unique) + len(chosen)
    for spec, call in unique.items():
        inputs = {f"x{i}": s for i, s in enumerate(spec.in_shapes)}
        one = Call(spec.kind, dict(spec.attrs), spec.in_shapes, tuple(inputs), "y", call.out_shape, *_cost(call.cost))
        file = _write(folder, "ops", exporter(spec).SerializeToString(deterministic=True))
        entries.append(Entry(spec.key, "op", *file, (one,), inputs, ("y",)))
        update(len(entries), spec.kind, total)
    networks = {}
    for use, index, arch in chosen:
        trace = trace_space(space.at(scales[index]), arch, merge=merge)
        key = f"net/{arch.id}-c{scales[index].channels}"
        file = _write(folder, "nets", exporter.network(trace).SerializeToString(deterministic=True))
        entries.append(network_entry(key, trace, *file))
        networks[key] = {"use": use, "scale": scales[index].to_json(), "architecture": arch.to_json()}
        update(len(entries), key, total)
    write_atomic(folder / NETWORKS_FILE, canonical_json(networks) + "\n")
    write_plan(folder, entries)
    assert len(entries) == total
    return total


def network_entry(key: str, trace: Trace, onnx: str | None, digest: str | None, output: str = "output") -> Entry:
    """Return the plan entry of a whole network, whose result is called `output`."""
    calls = tuple(
        Call(
            c.spec.kind,
            dict(c.spec.attrs),
            c.spec.in_shapes,
            c.inputs,
            output if c.output == trace.output else c.output,
            c.out_shape,
            *_cost(c.cost),
        )
        for c in trace.calls
    )
    return Entry(key, "net", onnx, digest, calls, {"image": trace.input_shape}, (output,))


def choose_networks(
    space: SearchSpace, mixed: Sequence[Trace], calibration: Calibration
) -> list[tuple[str, int, Architecture]]:
    """Return (use, index of the scale, architecture) of the networks to measure whole.

    Those to fit on are D-optimal among a random draw; those to test on are the next of the draw that are not among
    them, so nothing about them was chosen.
    """
    rng = np.random.default_rng(calibration.seed)
    kinds = sorted({c.spec.kind for t in mixed for c in t.calls})
    marginals = [Marginals(space.groups, space.rules(), [c.gate for c in t.calls]) for t in mixed]
    per_kind = [_estimates(t, kinds) for t in mixed]
    drawn, features = [], []
    for _ in range(CANDIDATES):
        index, arch = int(rng.integers(len(mixed))), sample(space, rng)
        q = marginals[index].literal_probs(marginals[index].literals.matrices(arch))
        drawn.append((index, arch))
        features.append(marginals[index].gate_probs(q).numpy() @ per_kind[index])
    to_fit = select(np.array(features), calibration.fit)
    others = [i for i in range(len(drawn)) if i not in set(to_fit)]
    out = [("fit", *drawn[i]) for i in to_fit] + [("test", *drawn[i]) for i in others[: calibration.test]]
    names = {(i, a.id) for _, i, a in out}
    if len(names) < len(out):
        raise HwnasError("the space is too small to calibrate on that many networks; ask for fewer")
    return out


def _estimates(trace: Trace, kinds: Sequence[str]) -> np.ndarray:
    """Return rough milliseconds of each call in the column of its kind, (calls, kinds): only proportions matter."""
    out = np.zeros((len(trace.calls), len(kinds)))
    for i, c in enumerate(trace.calls):
        out[i, kinds.index(c.spec.kind)] = c.cost.macs / 30e6 + c.cost.bytes / 10e6 + 0.002
    return out


def _cost(cost: Cost) -> tuple[int, int]:
    return cost.macs, cost.bytes


def _write(folder: Path, kind: str, content: bytes) -> tuple[str, str]:
    """Store an ONNX file under its own digest; return its name in the plan and the digest."""
    digest = sha256(content)
    name = f"{kind}/{digest[:16]}.onnx"
    if not (folder / name).exists():
        write_atomic(folder / name, content)
    return name, digest


def build_table(folder: Path, results: Path) -> LatencyTable:
    """Make the table of a plan from its results: rows, correction, and the error on networks it was not fitted on.

    Args:
        folder: The plan, with its list of networks.
        results: What the runtime wrote while measuring it.

    Raises:
        HwnasError: If the results are of another plan, or entries have not been measured yet.
    """
    plan = load_plan(folder)
    header, _ = read_journal(results)
    if header["plan"] != plan.id:
        raise HwnasError(f"{results} holds results of another plan than {folder}; measure this recipe's plan")
    where, rows = collect(results)
    by_key = {r.key: r for r in rows}
    missing = [e.key for e in plan.entries if e.key not in by_key]
    if missing or len(by_key) != len(plan.entries):
        raise HwnasError(
            f"{results} has not all of the plan {folder}: {len(missing)} entries are missing, the first is "
            f"{missing[0] if missing else 'none, but it has others'}; go on with: "
            f"python -m hwnas.runtime measure {folder}"
        )
    ops = {e.key: _op_row(by_key[e.key]) for e in plan.entries if e.role == "op"}
    networks = read_json(folder / NETWORKS_FILE, "the list of networks of a plan")
    try:
        nets = [_net_row(e, by_key[e.key], ops, str(networks[e.key]["use"])) for e in plan.entries if e.role == "net"]
    except (KeyError, TypeError) as e:
        path = folder / NETWORKS_FILE
        raise HwnasError(f"{path} is not the list of networks of its plan; remove the folder to write it anew") from e
    table = LatencyTable(where, ops, [n for n in nets if n is not None])
    calibrate(table)
    return table


def calibrate(table: LatencyTable) -> None:
    """Fit a table's correction on its networks marked ``fit`` and report its error on those marked ``test``."""
    kinds = {k: k.partition("(")[0] for k in table.rows}

    def sums(net: NetRow) -> dict[str, float]:
        out: dict[str, float] = {}
        for key, n in net.ops.items():
            out[kinds[key]] = out.get(kinds[key], 0.0) + n * table.rows[key].latency_ms
        return out

    fitted = [n for n in table.nets if n.use == "fit"]
    tested = [n for n in table.nets if n.use == "test"]
    table.correction = fit([sums(n) for n in fitted], [n.latency_ms for n in fitted])
    if tested:
        measured = [n.latency_ms for n in tested]
        c = table.correction
        ours = [c.base_ms + sum(c.factor(k) * ms for k, ms in sums(n).items()) for n in tested]
        table.report = {
            "ours": errors(ours, measured),
            "sum": errors([sum(sums(n).values()) for n in tested], measured),
            "noise": float(np.median([n.spread for n in table.nets])),
        }


def _op_row(row: Row) -> OpRow:
    status = "doubtful" if row.status == "ok" and row.doubtful else row.status
    return OpRow(row.key, row.latency_ms or 0.0, row.pass_spread or 0.0, row.n, status, row.reason)


def _net_row(entry: Entry, row: Row, ops: Mapping[str, OpRow], use: str) -> NetRow | None:
    """Return the row of a network; None if it could not be measured, or an op in it could not."""
    if row.latency_ms is None:
        return None
    counts: dict[str, int] = {}
    for c in entry.calls:
        key = OpSpec(c.op, tuple(sorted(c.attrs.items())), c.in_shapes).key
        counts[key] = counts.get(key, 0) + 1
    if any(ops[key].status in UNMEASURED for key in counts):  # its sum would count that op as free
        return None
    return NetRow(entry.key, counts, row.latency_ms, row.pass_spread or 0.0, use)
