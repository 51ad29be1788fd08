"""What was searched and derived, and what competed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hwnas.derived import Contender, Derived, Landing, Measurement, Reranking
from hwnas.jobs.deriving import UNDECIDED, DeriveResult
from hwnas.jobs.fronts import FrontResult
from hwnas.jobs.landing import NotLanded
from hwnas.jobs.reranking import REPEATS
from hwnas.jobs.searching import SearchResult, StageResult
from hwnas.latency.resources import RESOURCES
from hwnas.search.widths import MIN_SCORE
from hwnas.show.console import console, summary, table
from hwnas.show.drawings import draw_front, picture
from hwnas.show.searches import History, draw_search


def searched(result: SearchResult) -> None:
    """Show what each stage searched, how sure it is of that, and what was derived."""
    for stage in result.stages:
        if len(result.stages) > 1:
            console.print(f"stage {stage.name}", style="bold", markup=False)
        summary(_searched(stage, result.aim_ms) | _drawn(stage, result.derivation), None)
    derived(result.derivation)


def _drawn(stage: StageResult, derivation: DeriveResult) -> dict[str, object]:
    """Draw how the probabilities of a stage went, if it has any; return what a summary says of it."""
    history = History.of(stage.steps)
    if history is None or derivation.space is None:
        return {}
    problem, arch = derivation.space.problem, derivation.derived.architecture
    path = stage.log.with_suffix(".svg")
    return {"drawing": picture(path, lambda figure: draw_search(figure, history, problem, stage.groups, arch))}


def _searched(stage: StageResult, aim_ms: float) -> dict[str, object]:
    """Return what a summary says of a stage: what its steps logged."""
    why = "" if stage.stopped is None else f", ended early: {stage.stopped}"
    last = stage.steps[-1] if stage.steps else {}
    on = f" on {last['device']}" if "device" in last else ""
    facts: dict[str, object] = {
        "searched": f"{len(stage.steps)} steps, {sum(s.get('seconds', 0.0) for s in stage.steps):.0f} s{on}{why}",
        "decisions": f"{stage.decisions} in {', '.join(stage.groups)}; {'scores' if stage.trials else 'logits'} in "
        f"{stage.findings}",
    }
    if stage.trials:
        facts["trials"] = stage.trials
    if "train_loss" in last:
        facts["loss"] = f"{last['train_loss']:.4g} where the weights learn" + (
            f", {last['val_loss']:.4g} where the alphas do" if "val_loss" in last else ""
        )
    if "entropy" in last:
        entropy, margin = last["entropy"], last["margin"]
        facts["entropy"] = f"{entropy:.3f} (1: nothing decided, 0: everything); mean margin {margin:.3f}"
    if "lambda" in last:
        facts["cost"] = (
            f"lambda {last['lambda']:.4g}; derived without a budget {last['derived_ms']:.4g} ms, "
            f"{last['derived_ms'] / aim_ms:.3f} of the {aim_ms:.4g} ms that are aimed at"
        )
    return facts


def derived(result: DeriveResult) -> None:
    """Show a derived network and what it competed with, and draw it."""
    run, network = result.run, result.derived
    if result.complete:
        summary({"arch": run.folder / "arch.json", "state": "complete, nothing to do"}, run.command("train"))
        return
    space = result.space
    assert space is not None
    assert result.probs is not None
    probs = result.probs.matrices()

    def draw(figure: Any) -> None:
        space.draw(figure, network.architecture, probs, result.parts_ms)

    picture(run.folder / "arch.svg", draw)
    if network.landing is not None:
        _measurements(network.landing.rounds)
    if network.rerank is not None:
        _reranking(network.rerank)
    _contenders(network.candidates)
    console.print(network.genotype, markup=False)
    summary(_facts(run.folder / "arch.json", network), run.command("train"))


@contextmanager
def landing() -> Iterator[None]:
    """Show what was measured also where no network was found at the budget."""
    try:
        yield
    except NotLanded as e:
        _measurements(e.rounds)
        raise


def front(result: FrontResult, name: str) -> None:
    """Show a front, and draw it."""
    points = result.front.points
    drawn = draw_front(result.path.with_suffix(".svg"), points, f"{name}, {result.front.table}")
    rows = []
    for p in points:
        size = [str(p.scale.channels), str(p.scale.cells)]
        figures = [f"{p.predicted_ms:.4g}", _interval(p.interval_ms), f"{p.score:.3f}", f"{p.utility:.3f}"]
        rows.append([f"{1000 / p.predicted_ms:.1f}", *size, *figures])
    header = ("fps", "channels", "cells", "predicted ms", "95 % interval", "score", "utility")
    table("front, fastest first", header, rows, numbers=True)
    console.print("derived by", style="bold")
    for p in points:
        console.print(f"  {p.command}", markup=False)
    facts = {"front": f"{result.path}: {len(points)} networks of {result.front.asked} budgets", "drawing": drawn}
    summary(facts, points[-1].command)


def _interval(interval_ms: tuple[float, float] | None) -> str:
    return "" if interval_ms is None else "{:.4g} to {:.4g}".format(*interval_ms)


def _contenders(contenders: Sequence[Contender]) -> None:
    """Print what competed, with the latency that is predicted and the interval that holds the measured one."""
    constraints = next(c.constraints for c in contenders if c.architecture is not None)
    rows = []
    for c in contenders:
        size, fps = [str(c.scale.channels), str(c.scale.cells)], f"{1000 / c.latency_ms:.1f}"
        if c.architecture is None:
            rows.append([*size, "", "", f"at best {c.latency_ms:.4g}", "", fps, *[""] * len(constraints), "over"])
            continue
        figures = [f"{c.score:.3f}", f"{c.utility:.3f}", f"{c.latency_ms:.4g}", _interval(c.interval_ms), fps]
        values = [
            f"{v.predicted:.4g} {v.name}" if v.name in RESOURCES else f"{1000 / v.predicted:.1f} fps by {v.name}"
            for v in c.constraints
        ]
        note = "<- chosen" if c.chosen else "low score" if (c.score or 0.0) < MIN_SCORE else ""
        rows.append([*size, *figures, *values, note])
    header = ("channels", "cells", "score", "utility", "predicted ms", "95 % interval", "fps")
    table("candidates", (*header, *(v.name for v in constraints), ""), rows, numbers=True)


def _facts(path: Path, network: Derived) -> dict[str, object]:
    """Return the summary of a derivation."""
    decisions = len(network.margins)
    costs = [(c, d) for d, c in network.cost_of_change.items() if c is not None]
    least = "" if not costs else "; the least sure is {1}, by {0:.4f}".format(*min(costs))
    facts: dict[str, object] = {
        "arch": path,
        "predicted": f"{network.predicted_ms:.4g} ms ({1000 / network.predicted_ms:.1f} fps), "
        f"budget {network.budget_ms:.4g} ms",
    }
    if not network.architecture.answers:  # there is one network, and the size was all there was to choose
        return facts | _measured(network)
    facts |= {
        "undecided": f"{len(network.coin_tosses)} of {decisions} decisions: the best option leads by less than "
        f"{UNDECIDED}",
        "would flip": f"{len(network.flips)} of {decisions} answers: another network that differs there and meets the "
        f"budget scores less than {UNDECIDED} less{least}",
    }
    facts |= _measured(network)
    gap = network.discretisation_gap
    facts["discretisation gap"] = (
        f"not measured: {gap.reason}"
        if gap.reason
        else f"{gap.gap:+.3f}: the supernet's loss is {gap.mixture_loss:.3f} as the mixture and "
        f"{gap.derived_loss:.3f} as this network, on {gap.images} held-out images"
        + ("" if gap.device is None else f", computed on {gap.device}")
    )
    if network.rerank is not None:
        facts["rerank"] = network.rerank.reason
    return facts


def _measured(network: Derived) -> dict[str, object]:
    """Return what a summary says of a network that was measured before it was taken; nothing of others."""
    if network.landing is None or network.measured_ms is None:
        return {}
    return _landed(network.budget_ms, network.measured_ms, network.landing)


def _landed(budget_ms: float, ms: float, landing: Landing) -> dict[str, object]:
    facts: dict[str, object] = {
        "measured": f"{ms:.4g} ms ({1000 / ms:.1f} fps), {budget_ms / ms - 1:+.1%} of the {1000 / budget_ms:.1f} fps "
        f"asked for, after {len(landing.rounds)} measurements of {len(landing.tried)} networks"
    }
    if landing.verdict == "close":
        facts["close"] = "it is below the budget by less than processes differ: another may find it above"
    up = landing.next_up
    if landing.why == "no step" and up is not None:
        facts["no step"] = f"the next network of a higher utility is predicted to take {up.predicted_ms:.4g} ms"
    elif landing.why == "no step":
        facts["no step"] = "there is no network of a higher utility at any budget"
    return facts


def _measurements(rounds: Sequence[Measurement]) -> None:
    rows = []
    for n, r in enumerate(rounds, start=1):
        slow = "" if r.slowdown is None else f"{r.slowdown:.3f}"
        figures = [f"{r.target_ms:.4g}", f"{r.predicted_ms:.4g}", f"{r.measured_ms:.4g}", slow]
        rows.append([str(n), r.network, *figures, f"{1000 / r.measured_ms:.1f}", r.verdict])
    if rows:
        header = ("round", "network", "target ms", "predicted ms", "measured ms", "machine", "fps", "verdict")
        table("landing on the budget", header, rows, numbers=True)


def _reranking(reranking: Reranking) -> None:
    rows = []
    for i, c in enumerate(reranking.candidates):
        mark = ["choice of utility"] * (i == reranking.kept) + ["<- chosen"] * (i == reranking.chosen)
        lead = "" if i == reranking.kept else "{:+.4f} ({:+.4f} to {:+.4f})".format(*c.difference)
        figures = [f"{c.utility:.3f}", f"{c.score:.4f}", f"{c.loss:.4f}", lead, ", ".join(mark)]
        rows.append([c.id, str(c.channels), str(c.cells), *figures])
    header = ("network", "channels", "cells", "utility", reranking.metric, "loss", "better by (interval)", "")
    trained = f"means of {REPEATS} short trainings, on"
    by = "with the weights of the search, on" if reranking.by == "supernet" else trained
    table(f"{by} {reranking.images} held-out images", header, rows, numbers=True)
