"""Networks derived with a table: some refit its correction, others test it where a derivation selects for low price."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hwnas.files import sha256
from hwnas.latency.table import USES, LatencyTable, NetRow
from hwnas.latency.validation import calibrate, level_of, report_derived
from hwnas.problem import Architecture, NoTwins
from hwnas.profile.assembly import Assembly
from hwnas.profile.build import net_row, note_left_out
from hwnas.profile.networks import Calibration, spread
from hwnas.profile.plan import PlanWriter
from hwnas.progress import SILENT, Reporter, Update
from hwnas.runtime.measuring.plan import PLAN_FILE, load_plan
from hwnas.runtime.measuring.results import collect
from hwnas.search.derive import Solver
from hwnas.search.relax import open_logits, softmax
from hwnas.search.widths import price, random_latencies_ms
from hwnas.spaces import Scale, Space

ANCHORS = 6  # networks of the table that are measured again beside the derived ones
RANDOM = 50  # networks whose median latency is the upper end of the budgets
LEFT_OUT = "derived networks"  # in the report of a table, where time was up before they were derived
WHAT_FOR = {"fit": "to fit the table on", "derived": "to check the table on"}
LOGITS = (1.0, 0.05)  # standard deviations of random logits: as after a search that decided much, and little

Measure = Callable[[Path, Path], None]


class TimeIsUp(Exception):
    """There is no time to derive more networks."""


def add_derived(
    table: LatencyTable,
    space: Space,
    scales: Sequence[Scale],
    plan: Path,
    folder: Path,
    calibration: Calibration,
    measure: Measure,
    report: Reporter = SILENT,
    in_time: Callable[[], bool] = lambda: True,
) -> None:
    """Derive networks from random logits under budgets with a table, measure them, refit and test the table on them.

    A solver prefers ops that the table underestimates, and cheap ops, so the error on derived networks is not that on
    random ones. The correction is fitted on some of them too; others are derived with the resulting table, and its
    error on these is reported.

    The speed of the machine may have changed since the table was measured. So some networks of the table, the anchors,
    are measured again beside the derived ones, and all latencies are scaled by what the anchors took before.

    Args:
        table: Complete; gets the networks, a new correction and the report.
        space: Any scale.
        scales: The deployment scales.
        plan: The folder of the plan that was measured for the table.
        folder: Plans and results are kept in folders under it, named after the tables they are derived with.
        calibration: How many, each of another scale, alphas and budget in turn.
        measure: Measures a plan folder into a results file, for networks of a use.
        report: Shown what is derived.
        in_time: Whether there is time to derive one more network; asked before each. Where there is none, the table's
            report says that derived networks were left out.
    """
    try:
        if calibration.refit:
            _add(table, space, scales, plan, folder, calibration.refit, "fit", measure, report, in_time)
            calibrate(table)
        if calibration.derived:
            n = calibration.derived
            again = _add(table, space, scales, plan, folder, n, "derived", measure, report, in_time)
            report_derived(table, again)
    except TimeIsUp:
        table.report = {**table.report, "left_out": [*table.report.get("left_out", ()), LEFT_OUT]}


def _add(
    table: LatencyTable,
    space: Space,
    scales: Sequence[Scale],
    plan: Path,
    folder: Path,
    n: int,
    use: str,
    measure: Measure,
    report: Reporter,
    in_time: Callable[[], bool],
) -> list[float]:
    """Add derived networks of one use; return what networks of the table took again, over what they took before."""
    folder = folder / sha256(table.text())[:12]
    if not (folder / PLAN_FILE).exists():
        writer = PlanWriter(folder, precision=str(table.where["engine"]["precision"]), scales=scales)
        with report.bar(f"derive networks {WHAT_FOR[use]}", n) as update:
            _plan_anchors(writer, table, space, plan)
            _plan_derived(writer, table, space, scales, n, use, update, in_time)
        with report.bar("plan derived networks: write files", None) as update:
            writer.write(update)
    results = folder / "results.jsonl"
    measure(folder, results)
    measured = load_plan(folder)
    _, measurements = collect(results, measured)
    rows = {r.key: r for r in measurements}
    uses = {key: network.use for key, network in Assembly.load(folder, measured.id).networks.items()}
    nets = [net_row(e, rows.get(e.key), table.rows, uses[e.key]) for e in measured.entries]
    in_table = {net.key: net for net in table.nets}
    again = [net.latency_ms / in_table[net.key].latency_ms for net in nets if net is not None and net.use == "anchor"]
    level = level_of(again)
    table.nets = [*table.nets, *(_at(net, level) for net in nets if net is not None and net.key not in in_table)]
    note_left_out(table, measured, rows)
    return again


def _at(net: NetRow, level: float) -> NetRow:
    """Return a network with its latency scaled to the speed of the machine when the table was measured."""
    low_ms, high_ms = net.ci_ms
    return replace(net, latency_ms=net.latency_ms / level, ci_ms=(low_ms / level, high_ms / level))


def _plan_anchors(writer: PlanWriter, table: LatencyTable, space: Space, plan: Path) -> None:
    """Plan some networks of the table, from the fastest to the slowest."""
    networks = Assembly.load(plan, load_plan(plan).id).networks
    settled = [net for net in table.nets if net.status == "ok" and net.key in networks]
    if settled:
        for i in spread(np.log([net.latency_ms for net in settled]), min(ANCHORS, len(settled))):
            network = networks[settled[i].key]
            arch = Architecture.from_json(network.architecture)
            writer.plan_network("anchor", space.at(Scale(**network.scale)), arch, bool(table.where["merges"]))


def _plan_derived(
    writer: PlanWriter,
    table: LatencyTable,
    space: Space,
    scales: Sequence[Scale],
    n: int,
    use: str,
    update: Update,
    in_time: Callable[[], bool],
) -> None:
    """Plan n derived networks, fewer if some come out the same; raise TimeIsUp if there is no time for them."""
    rng = np.random.default_rng(USES.index(use))
    problem = space.problem.with_rules(NoTwins(space.twins()))
    models = price(space, scales, table)
    typical_ms = random_latencies_ms(space.problem, models, RANDOM, seed=0)
    update(0)
    for i in range(n):
        if not in_time():
            raise TimeIsUp
        index = i % len(scales)
        solver = Solver(problem, models[index])
        deviation = LOGITS[(i + i // len(scales)) % len(LOGITS)]
        logits = {g.name: torch.from_numpy(deviation * rng.standard_normal(g.shape)) for g in problem.groups}
        probs = problem.probabilities(softmax(open_logits(logits, problem.groups)))
        fastest_ms = solver.fastest().latency_ms
        assert fastest_ms is not None
        tightness = (i // len(scales) + 0.5) / math.ceil(n / len(scales))  # budgets from tight to generous
        budget_ms = fastest_ms + tightness * (float(np.median(typical_ms[index])) - fastest_ms)
        arch = solver.solve(probs, max(budget_ms, fastest_ms)).arch
        writer.plan_network(use, space.at(scales[index]), arch, bool(table.where["merges"]))
        update(i + 1, arch.id, n)
