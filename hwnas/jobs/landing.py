"""Landing on a budget: derive, build, measure and correct until the network is at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwnas import derived
from hwnas.errors import BrokenPackage, BudgetError, MissingExtra, ProvenanceError
from hwnas.files import sha256, write_atomic
from hwnas.latency.table import LatencyTable
from hwnas.ops.onnx_graph import OpExporter
from hwnas.ops.precision import to_half
from hwnas.profile.plan import OUTPUT
from hwnas.progress import SILENT, Reporter, Update, ignore
from hwnas.runtime.engines import provenance_here, using_engine
from hwnas.runtime.measuring.device import provenance
from hwnas.runtime.measuring.journal import Journal
from hwnas.search.landing import BELOW, Goal, Landing, Latency, Network, Round, land
from hwnas.search.widths import Candidate, Contest, choose, safety
from hwnas.spaces import Space, trace_space
from hwnas.validate import Reference, measure_network

FOLDER = "landing"
JOURNAL = "measured.jsonl"
NETWORK = {"network": "net"}  # the one scope that budgets are held against
LEAST_REPEATABILITY = 0.003  # of a latency between processes; no machine was seen to do better


def check_measurable(latency: LatencyTable) -> dict[str, Any]:
    """Return the provenance of measurements made here with a table's engine.

    Raises:
        HwnasError: If the table is of another device, or its engine is not here.
    """
    instead = "leave --measure away, or derive there"
    try:
        latency.require_device(provenance_here(latency.where))
    except ProvenanceError as e:
        raise ProvenanceError(f"networks can only be measured where the table is of; {instead}: {e}") from e
    engine = latency.where["engine"]
    try:
        with using_engine(str(engine["name"]), int(engine["threads"]), str(engine["precision"])) as opened:
            return dict(provenance(opened))
    except (MissingExtra, BrokenPackage) as e:
        raise type(e)(f"{e}; or {instead}") from e


def repeatability(latency: LatencyTable) -> float:
    """Return the standard deviation of a latency between processes, relative: what the table's networks showed.

    Some of them were measured twice, in two processes, so their ratio has the error of both.
    """
    again = latency.report.get("derived", {}).get("again", ())
    seen = float(np.std(np.log(again), ddof=1)) / np.sqrt(2) if len(again) > 2 else 0.0
    return max(LEAST_REPEATABILITY, float(seen))


def name_of(candidate: Candidate) -> str:
    """Return what a derived network is called in a record: its architecture and size."""
    assert candidate.arch is not None
    return f"{candidate.arch.id}-c{candidate.scale.channels}-d{candidate.scale.cells}"


class NotLanded(BudgetError):
    """No network was measured at the budget.

    Attributes:
        rounds: What was measured.
    """

    def __init__(self, message: str, rounds: Sequence[derived.Measurement]) -> None:
        super().__init__(message)
        self.rounds = tuple(rounds)


class Bench:
    """Builds networks and measures each in a process of its own, or replays what was measured before.

    Latency needs no trained weights: what is built is what `hwnas profile` measures, with made-up ones.

    Attributes:
        measured: How many networks were measured, and not replayed.
    """

    def __init__(self, folder: Path, latency: LatencyTable, space: Space, beside: Sequence[Reference] = ()) -> None:
        """Name the folder; nothing is written before entering.

        Args:
            folder: Gets the journal, and the network under way.
            latency: The table whose engine is measured with.
            space: Any scale.
            beside: Networks of the table that are measured beside each.
        """
        self._folder, self._latency, self._space, self._beside = folder, latency, space, beside
        self._exporter = OpExporter()
        self._replay: dict[str, list[dict[str, Any]]] = {}
        self.measured = 0

    def __enter__(self) -> Bench:
        """Open the journal.

        Raises:
            HwnasError: If the engine is not here, another process measures here, or a line of the journal is damaged.
            ProvenanceError: If what is there was measured with another table, or under other conditions.
        """
        where = check_measurable(self._latency)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / JOURNAL
        self._journal = Journal(path, {"plan": sha256(self._latency.text()), "where": where})
        try:
            self._journal.__enter__()
        except ProvenanceError as e:
            raise ProvenanceError(f"{e}, or remove {self._folder}") from e
        for record in self._journal.records:
            self._replay.setdefault(str(record["network"]), []).append(record)
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the journal."""
        self._journal.__exit__(*exc)

    def measure(self, candidate: Candidate, update: Update = ignore) -> Latency:
        """Measure a network once more, unless that is in the journal already.

        Raises:
            HwnasError: If the engine could not run it.
        """
        left = self._replay.get(name_of(candidate), [])
        record = left.pop(0) if left else self._measure(candidate, update)
        slowdown = record["slowdown"]
        return Latency(float(record["measured_ms"]), None if slowdown is None else float(slowdown))

    def _measure(self, candidate: Candidate, update: Update) -> dict[str, Any]:
        assert candidate.arch is not None
        space, engine = self._space.at(candidate.scale), self._latency.where["engine"]
        trace = trace_space(space, candidate.arch, merge=bool(self._latency.where["merges"]))
        model = self._exporter.network(trace)
        if engine["precision"] == "fp16":
            model = to_half(model)
        content = model.SerializeToString(deterministic=True)
        path = self._folder / "network" / "model.onnx"
        write_atomic(path, content)
        _, measured, slowdown = measure_network(
            path, trace, OUTPUT, engine, self._beside, update, NETWORK, candidate.latency_ms or 0.0
        )
        network = measured["network"]
        record = {
            "type": "network",
            "network": name_of(candidate),
            "predicted_ms": candidate.latency_ms,
            "measured_ms": network.latency_ms,
            "ci_ms": list(network.ci_ms),
            "wall_ms": network.wall_ms,
            "slowdown": slowdown,
            "visits": network.visits,
            "doubtful": network.doubtful,
            "onnx_sha256": sha256(content),
        }
        self._journal.append(record)
        self.measured += 1
        return record


def land_on_budget(
    contest: Contest,
    space: Space,
    latency: LatencyTable,
    beside: Sequence[Reference],
    folder: Path,
    budget_ms: float,
    tolerance: float = Goal.tolerance,
    report: Reporter = SILENT,
) -> tuple[Candidate, float, derived.Landing]:
    """Derive and measure until a network is at the budget.

    Args:
        contest: What is derived from.
        space: Whose networks are built.
        latency: The table it is priced by.
        beside: Networks of the table to measure beside each.
        folder: Of the run that gets the network.
        budget_ms: What the network may take.
        tolerance: How much more frames per second than the budget's it may have.
        report: Told how far it is.

    Returns:
        The network, what it took, and how it was reached.

    Raises:
        HwnasError: If nothing can be measured here.
        NotLanded: If no network was found at the budget.
    """
    candidates: dict[str, Candidate] = {}
    margin = safety(contest.models[0])

    def derive(target_ms: float) -> Network:
        best = contest.winner(target_ms * margin)
        if best is None:
            raise contest.refusal(target_ms * margin)
        candidates.setdefault(name_of(best), best)
        return Network(name_of(best), best.latency_ms, best.utility)

    goal = Goal(budget_ms, tolerance, repeatability(latency), contest.models[0].relative_error or Goal.error)
    rounds: list[Round] = []
    with Bench(folder / FOLDER, latency, space, beside) as bench:

        def measure(network: Network) -> Latency:
            with report.bar(f"measure network {len(rounds) + 1}", None) as update:
                return bench.measure(candidates[network.key], update)

        try:
            landing = land(goal, derive, measure, rounds.append)
        except BudgetError as e:
            raise NotLanded(str(e), _measurements(rounds)) from e
    chosen = candidates[landing.best.network.key]
    return chosen, landing.latency_ms, _record(goal, landing, candidates)


def budget_of(contest: Contest, landed: Candidate) -> float:
    """Return the least budget that a landed network would have been derived for without measuring."""
    return landed.latency_ms * safety(contest.models[0]) / BELOW


def rivals(contest: Contest, landed: Candidate, k: int = 1) -> list[Candidate]:
    """Return the k best of each scale that are predicted no slower than a landed network, which is among them."""
    _, every = choose(contest, budget_of(contest, landed), k)
    return [landed if (c.scale, c.arch) == (landed.scale, landed.arch) else c for c in every]


def _record(goal: Goal, landing: Landing, candidates: dict[str, Candidate]) -> derived.Landing:
    tried = {r.network.key: candidates[r.network.key] for r in landing.rounds}
    up = landing.next_up
    return derived.Landing(
        landing.verdict,
        landing.why,
        goal.tolerance,
        goal.repeatability,
        None if up is None else derived.Step(up.key, up.predicted_ms, up.utility),
        _measurements(landing.rounds),
        {key: derived.Tried(c.arch, c.scale, c.utility) for key, c in tried.items() if c.arch is not None},
    )


def _measurements(rounds: Sequence[Round]) -> tuple[derived.Measurement, ...]:
    return tuple(
        derived.Measurement(
            r.target_ms, r.network.key, r.network.predicted_ms, r.latency.ms, r.latency.slowdown, r.verdict
        )
        for r in rounds
    )
