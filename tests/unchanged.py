"""What a restructuring of the package must leave as it was: derivations, traces, parameters and draws.

`tests/data/unchanged.json` holds what the code gave when it was recorded, `tests/test_unchanged.py` holds the code
against it. Everything that knows the package's API is among the adapters at the top.

    python -m tests.unchanged    # records anew: only where a change of results is meant
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hwnas import recipes
from hwnas.errors import BudgetError
from hwnas.latency import Correction, LatencyModel, LatencyTable, OpRow
from hwnas.problem import Architecture, AtMost, Gate, NoTwins, Problem, Rule
from hwnas.recipes import Recipe
from hwnas.search.derive import Solution, Solver, strongest
from hwnas.search.front import pareto_front
from hwnas.search.widths import Candidate, Constraint, Contest, choose, price
from hwnas.seeding import seeded
from hwnas.spaces import Scale, Space, trace_space

RECORDED = Path(__file__).parent / "data" / "unchanged.json"
Probs = dict[str, np.ndarray]
Counted = tuple[str, str, int]  # at most so many of an option in a group


# Adapters: what is recorded, in terms of the package's API.


def recipe_of(name: str) -> Recipe:
    """Return a recipe."""
    return recipes.get(name)


def space_of(name: str, scale: Scale | None = None) -> Space:
    """Return the space of a recipe at its own scale or another."""
    space = recipes.get(name).space
    return space if scale is None else space.at(scale)


def groups_of(space: Space | Problem) -> list[tuple[str, list[str], tuple[str, ...], list[list[bool]]]]:
    """Return of each group its name, the names of its decisions, its options, and which of these are closed."""
    return [(g.name, [d.name for d in g.decisions], g.options, g.closed) for g in space.groups]


def twins_of(space: Space) -> list[list[tuple[str, str]]]:
    """Return which answers make two nodes compute the same."""
    return [list(answers) for answers in space.twins()]


def rules_of(space: Space) -> list[tuple[str, tuple[str, ...]]]:
    """Return of each rule its kind and the decisions that it is about."""
    return [(type(rule).__name__, rule.decisions) for rule in space.rules()]


def architecture_of(space: Space, answers: Mapping[str, str]) -> Architecture:
    """Return an architecture from answers by decision."""
    return Architecture.of(space.name, answers)


def limits_of(space: Space, counted: Counted | None) -> list[Rule]:
    """Return the limits that every derivation has, and one on how often an option is taken."""
    if counted is None:
        return [NoTwins(space.twins())]
    group, option, most = counted
    return [NoTwins(space.twins()), AtMost.of(next(g for g in space.groups if g.name == group), option, most)]


def strongest_of(space: Space, probs: Probs, limits: Sequence[Rule]) -> Architecture:
    """Derive by the paper's rule, without a budget."""
    return strongest(space.problem.with_rules(*limits), probs)


def table_of(keys: Iterable[str], merges: bool, correction: Correction, ms: Callable[[str], float]) -> LatencyTable:
    """Return a table of a device that exists on paper."""
    where = {
        "device": {"name": "paper"},
        "engine": {"name": "paper", "precision": "fp32", "version": "1", "threads": 1},
        "clock": "thread_cpu",
        "batch": 1,
        "merges": merges,
    }
    return LatencyTable(where, {key: OpRow(key, ms(key)) for key in keys}, correction=correction)


def models_of(space: Space, scales: Sequence[Scale], table: LatencyTable) -> list[LatencyModel]:
    """Return the latency models of the deploy form, one for each scale."""
    return price(space, scales, table)


def expected_ms_of(model: LatencyModel, probs: Probs) -> float:
    """Return the expected latency of a network whose decisions are random."""
    return float(model(probs))


def solver_of(space: Space, models: Sequence[LatencyModel], limits: Sequence[Rule]) -> Solver:
    """Return the exact derivation at one scale under a budget for each model."""
    return Solver(space.problem.with_rules(*limits), models)


def contest_of(
    recipe: Recipe,
    models: Sequence[LatencyModel],
    probs: Probs,
    limits: Sequence[Rule],
    constraints: Sequence[Constraint],
) -> Contest:
    """Return the derivation at all scales of a recipe."""
    problem = recipe.space.problem.with_rules(*limits)
    utilities = recipe.width_utility, recipe.depth_utility
    return Contest(problem, recipe.scales(), models, probs, *utilities, constraints)


def trace_of(space: Space, arch: Architecture | None, merge: bool) -> tuple[list[tuple[str, str]], int]:
    """Return the op and the gate of each call of the deploy form, as text, and the multiply-adds of all."""
    traced = trace_space(space, arch, merge=merge)
    texts: dict[Gate, str] = {}
    for call in traced.calls:
        if call.gate not in texts:
            texts[call.gate] = gate_text(call.gate)
    return [(c.spec.key, texts[c.gate]) for c in traced.calls], traced.cost().macs


def gate_text(gate: Gate) -> str:
    """Return the one text of a gate: its clauses of literals, then its walks with how often each counts."""
    clauses = sorted(" or ".join(sorted(f"{d}={o}" for d, o in clause)) for clause in gate.clauses)
    walks = sorted(f"{n} x {' > '.join(f'{d}={o}' for d, o in walk)}" for walk, n in gate.walks.terms)
    return "; ".join([*clauses, *walks]) or "always"


def network_of(space: Space, form: str, arch: Architecture | None = None) -> torch.nn.Module:
    """Build a network in its ``"search"`` or ``"deploy"`` form, or what is trained beside it, ``"auxiliary"``."""
    if form == "auxiliary":
        return space.build_auxiliary()
    return space.build(arch, form=form)  # type: ignore[arg-type]


def drawn_from(space: Space, seed: int, concentration: float | None) -> Architecture:
    """Draw an architecture."""
    return space.problem.draw(np.random.default_rng(seed), concentration)


# Inputs: functions of names and numbers alone.

RECIPES = (
    "autodeeplab",
    "autodeeplab-camvid",
    "autodeeplab-quick",
    "autodeeplab-tiny",
    "darts-camvid",
    "darts-cifar10",
    "darts-cifar10-quick",
    "darts-cifar10-tiny",
    "darts-gpu",
    "darts-quick",
    "darts-tiny",
)
TINY = tuple(name for name in RECIPES if name.endswith("-tiny"))
CLASSIFIERS = tuple(name for name in RECIPES if "cifar10" in name)
ARCH_SEED = 7  # of the one architecture that each recipe's networks are fixed to
CONCENTRATION = 0.5
CORRECTIONS = {
    "a": Correction(0.21, 0.9, {"sep_conv": 1.6, "conv_bn": 1.2}, 0.03, interval=0.07, networks=6, call_ms=0.004),
    "b": Correction(0.05, 1.1, {"dil_conv": 1.3, "pool": 0.6, "relu": 0.4}, 0.4, networks=4, call_ms=0.011),
}
MERGES = {"a": True, "b": False}
# Budgets as shares of the way from the fastest network to the one without a budget.
LEVELS = {"tight": 0.15, "middle": 0.45, "generous": 0.8}
OUT_OF_REACH = {"impossible": -0.1}
SLOWEST = 1.4  # fastest networks: the end of that way at least, where a limit makes the fastest one slow


@dataclass(frozen=True)
class Alphas:
    """What a search might have found.

    Attributes:
        recipe: Whose space it is.
        kind: ``"decided"``, ``"hardly"``, ``"grid"``, ``"two"`` (values) or ``"zero"``.
        seed: Of the draw.
        counted: A limit that is asked for besides; the logits of its option are higher then, so that it binds.
    """

    recipe: str
    kind: str
    seed: int
    counted: Counted | None = None

    @property
    def name(self) -> str:
        """How cases call it."""
        return f"{self.recipe}, {self.kind} {self.seed}"


def _alphas() -> list[Alphas]:
    darts = ["darts-tiny", "darts-tiny", "darts-cifar10-quick"]
    trellis = ["autodeeplab-quick"] * 3
    out = []
    for names, group in ((darts, "normal"), (trellis, "cell")):
        for kind, many in (("decided", 3), ("hardly", 3), ("grid", 2), ("two", 1), ("zero", 1)):
            for seed in range(many):
                limited = (kind, seed) in {("decided", 1), ("hardly", 0), ("hardly", 2), ("grid", 1), ("two", 0)}
                counted = (group, "skip_connect", 1 + seed % 2) if limited else None
                out.append(Alphas(names[seed] if many == 3 else names[2 * seed], kind, seed, counted))
    return out


ALPHAS = {alphas.name: alphas for alphas in _alphas()}
KINDS = ("decided", "hardly", "grid", "two", "zero")


def matrices(alphas: Alphas) -> Probs:
    """Return probabilities, float64, with none for options that are closed."""
    rng = np.random.default_rng([alphas.seed, KINDS.index(alphas.kind)])
    out: Probs = {}
    for name, names, options, closed in groups_of(space_of(alphas.recipe)):
        normal = rng.standard_normal((len(names), len(options)))
        logits, step = {
            "decided": (3.0 * normal, 3.0),
            "hardly": (0.05 * normal, 0.05),
            "grid": (np.round(normal), 1.0),
            "two": ((normal > 0.5).astype(float), 0.0),
            "zero": (0.0 * normal, 0.0),
        }[alphas.kind]
        if alphas.counted is not None and name == alphas.counted[0]:
            logits[:, options.index(alphas.counted[1])] += step
        logits[np.array(closed)] = -np.inf
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[name] = shares / shares.sum(axis=1, keepdims=True)
    return out


def ms_of(key: str, table: str) -> float:
    """Return a price between 0.02 and 0.5 ms that an op has in a table."""
    number = int.from_bytes(hashlib.sha256(f"{table}:{key}".encode()).digest()[:6], "big")
    return 0.02 + 0.48 * number / 2**48


# What is computed from them, and kept while cases ask for it.


@cache
def made_up(recipe: str, table: str) -> tuple[LatencyTable, list[LatencyModel]]:
    """Return one of the two tables of a recipe, and its models at all of the recipe's scales."""
    scales = recipe_of(recipe).scales()
    calls = [c for s in scales for c in trace_of(space_of(recipe, s), None, MERGES[table])[0]]
    keys = dict.fromkeys(key for key, _ in calls)
    found = table_of(keys, MERGES[table], CORRECTIONS[table], partial(ms_of, table=table))
    return found, models_of(space_of(recipe), scales, found)


@cache
def solver(recipe: str, tables: str, counted: Counted | None) -> tuple[Solver, list[float]]:
    """Return the derivation at a recipe's first scale, and the fastest network's latency by each table."""
    space = space_of(recipe)
    found = solver_of(space, [made_up(recipe, t)[1][0] for t in tables], limits_of(space, counted))
    fastest = [found.fastest(i).latency_ms for i in range(len(tables))]
    return found, [ms for ms in fastest if ms is not None]


@cache
def fixed(recipe: str) -> Architecture:
    """Return the architecture that a recipe's networks are fixed to: the recorded one, as soon as there is one."""
    if not RECORDED.exists():
        return drawn_from(space_of(recipe), ARCH_SEED, None)
    answers: Mapping[str, str] = recorded()[f"architecture of {recipe}"]["answers"]
    return architecture_of(space_of(recipe), answers)


@cache
def recorded() -> Mapping[str, Any]:
    """Return what was recorded, by case."""
    found: Mapping[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def answers_text(space: Space | Problem, arch: Architecture) -> dict[str, str]:
    """Return an architecture in short: for each group the places of the answers among its options, one digit each."""
    return {
        name: "".join(str(options.index(str(arch.get(d)))) for d in names)
        for name, names, options, _ in groups_of(space)
    }


class Lines(NamedTuple):
    """Lines of text, of which the number and a digest are recorded, and if `whole` the lines as well."""

    lines: list[str]
    whole: bool


def digest(content: bytes | str) -> str:
    """Return the SHA-256 of bytes or of text, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


# Cases: each is recorded under its name.


def decisions_case(recipe: str) -> Any:
    """Return the decisions, rules and twins of a space."""
    space = space_of(recipe)
    groups = [f"{name} {names} {options} {closed}" for name, names, options, closed in groups_of(space)]
    return {"decisions": Lines([*groups, *map(str, rules_of(space)), *map(str, twins_of(space))], False)}


def architecture_case(recipe: str) -> Any:
    """Return the answers of the architecture that a recipe's networks are fixed to."""
    arch = drawn_from(space_of(recipe), ARCH_SEED, None)
    return {"answers": dict(arch.answers)}


def rule_case(alphas: Alphas, limits: str) -> Any:
    """Return what the paper's rule gives: as it is (``"free"``), with no twins, or with the limit of the set too."""
    space = space_of(alphas.recipe)
    kept = [] if limits == "free" else limits_of(space, alphas.counted if limits == "limited" else None)
    return answers_text(space, strongest_of(space, matrices(alphas), kept))


def derived_case(alphas: Alphas, tables: str, level: str, limited: bool, k: int) -> Any:
    """Return the k best networks under a budget for each table."""
    space, probs = space_of(alphas.recipe), matrices(alphas)
    found, fastest = solver(alphas.recipe, tables, alphas.counted if limited else None)
    free = strongest_of(space, probs, [])  # of equal networks it takes the first, where a solver may take any
    high = [max(SLOWEST * low, model.predict_ms(free)) for model, low in zip(found.models, fastest, strict=True)]
    share = (LEVELS | OUT_OF_REACH)[level]
    budgets = [a + share * (b - a) for a, b in zip(fastest, high, strict=True)]
    try:
        best = found.best(probs, budgets, k)
    except BudgetError:
        return {"budgets": budgets, "all must be eased by": found.nearest(budgets)}
    return {"budgets": budgets, "best": [_solution(space, s) for s in best]}


def _solution(space: Space, s: Solution) -> Any:
    assert s.latency_ms is not None
    return {"answers": answers_text(space, s.arch), "score": s.score, "ms": [s.latency_ms, *s.others]}


def _contest(alphas: Alphas, constrained: bool) -> tuple[Contest, list[float]]:
    """Return a contest, and the least budget that can be met and the one from which on nothing changes."""
    recipe = recipe_of(alphas.recipe)
    _, models = made_up(alphas.recipe, "a")
    others: list[Constraint] = []
    if constrained:
        there = made_up(alphas.recipe, "b")[1]
        arch = strongest_of(recipe.space, matrices(alphas), limits_of(recipe.space, None))
        others = [Constraint("b", there, 1.05 * there[0].predict_ms(arch))]
    contest = contest_of(recipe, models, matrices(alphas), limits_of(recipe.space, alphas.counted), others)
    scales = range(len(contest.scales))
    return contest, [min(contest.fastest_ms(i) for i in scales), max(contest.free_ms(i) for i in scales)]


def chosen_case(alphas: Alphas, level: str, constrained: bool) -> Any:
    """Return what is chosen among all scales under a budget, and the best of each: two where they are not equal."""
    contest, (low, high) = _contest(alphas, constrained)
    chosen, every = choose(contest, low + LEVELS[level] * (high - low), 1 if alphas.kind == "grid" else 2)
    return {"chosen": _candidate(contest, chosen), "every": [_candidate(contest, c) for c in every]}


def front_case(alphas: Alphas, constrained: bool) -> Any:
    """Return the front of latency and utility."""
    contest, _ = _contest(alphas, constrained)
    return [{"fps": p.fps, **_candidate(contest, p.candidate)} for p in pareto_front(contest, 6)]


def _candidate(contest: Contest, c: Candidate) -> dict[str, Any]:
    return {
        "channels": c.scale.channels,
        "cells": c.scale.cells,
        "answers": None if c.arch is None else answers_text(contest.problem, c.arch),
        "score": c.score,
        "utility": c.utility if math.isfinite(c.utility) else None,
        "ms": [c.latency_ms, *c.others],
        "interval": None if c.interval_ms is None else list(c.interval_ms),
    }


def expected_case(alphas: Alphas) -> Any:
    """Return the expected latency by each table at each scale."""
    probs = matrices(alphas)
    return {t: [expected_ms_of(m, probs) for m in made_up(alphas.recipe, t)[1]] for t in CORRECTIONS}


def trace_case(recipe: str, scale: Scale, whole: bool) -> Any:
    """Return the traces at one scale: of all alternatives and of one network, merged and not."""
    out = {}
    for what, arch in (("open", None), ("fixed", fixed(recipe))):
        for merge in (True, False):
            calls, macs = trace_of(space_of(recipe, scale), arch, merge)
            lines = Lines([f"{key}  if  {gate}" for key, gate in calls], whole)
            ops = digest("\n".join(key for key, _ in calls))  # tells whether only gates differ
            out[f"{what}, {'merged' if merge else 'as it is'}"] = {"macs": macs, "ops": ops, "calls": lines}
    return out


def parameters_case(recipe: str, form: str) -> Any:
    """Return the names, types and shapes of parameters and buffers."""
    made = recipe_of(recipe)
    with torch.device("meta"):
        if form == "deploy":
            network = network_of(space_of(recipe, made.scales()[0]), form, fixed(recipe))
        else:
            network = network_of(space_of(recipe, made.search.scale), form)
    state = network.state_dict()
    trained = dict(network.named_parameters())
    lines = [f"{k} {tuple(v.shape)} {v.dtype}{' trained' * (k in trained)}" for k, v in state.items()]
    return {"state": Lines(lines, recipe in TINY), "numbers": sum(p.numel() for p in trained.values())}


def weights_case(recipe: str) -> Any:
    """Return a digest of the initial weights of the supernet, and one of each tensor."""
    with seeded(0):
        network = network_of(space_of(recipe, recipe_of(recipe).search.scale), "search")
    lines = [f"{k} {digest(v.numpy().tobytes())[:8]}" for k, v in network.state_dict().items()]
    content = b"".join(v.numpy().tobytes() for v in network.state_dict().values())
    return {"tensors": Lines(lines, True), "sha256": digest(content)}


def samples_case(recipe: str) -> Any:
    """Return what three seeds draw, evenly and concentrated on few ops."""
    space = space_of(recipe)
    return {
        f"seed {seed}, {concentration or 'evenly'}": answers_text(space, drawn_from(space, seed, concentration))
        for seed in range(3)
        for concentration in (None, CONCENTRATION)
    }


Case = Callable[[], Any]


def _derivations() -> Iterator[tuple[str, Case]]:
    for name, alphas in ALPHAS.items():
        for limits in ("free", "no twins", *["limited"] * (alphas.counted is not None)):
            yield f"{name}: rule, {limits}", partial(rule_case, alphas, limits)
        asked = [(tables, level, False, 1) for tables in ("a", "b", "ab") for level in LEVELS]
        if alphas.counted is not None:
            asked += [("a", level, True, 1) for level in LEVELS] + [("ab", "middle", True, 1)]
        if (alphas.kind, alphas.seed) == ("decided", 0):
            asked += [("a", "generous", False, 3), ("ab", "impossible", False, 1)]
        for tables, level, limited, k in asked:
            text = f"{name}: {level} by {' and '.join(tables)}{', limited' * limited}{f', {k} best' * (k > 1)}"
            yield text, partial(derived_case, alphas, tables, level, limited, k)


def _contests() -> Iterator[tuple[str, Case]]:
    for kind, seed, constrained in (("decided", 0, False), ("hardly", 0, True), ("grid", 0, False)):
        alphas = ALPHAS[f"darts-tiny, {kind} {seed}"]
        for level in LEVELS:
            yield f"{alphas.name}: chosen, {level}", partial(chosen_case, alphas, level, constrained)
        if kind != "grid":
            yield f"{alphas.name}: front", partial(front_case, alphas, constrained)


def _at(scale: Scale) -> str:
    return f"{scale.channels} channels, {scale.cells} cells"


def _networks() -> Iterator[tuple[str, Case]]:
    for recipe in RECIPES:
        yield f"decisions of {recipe}", partial(decisions_case, recipe)
        yield f"architecture of {recipe}", partial(architecture_case, recipe)
        for scale in recipe_of(recipe).scales():
            first = scale == recipe_of(recipe).scales()[0]
            yield f"trace of {recipe}, {_at(scale)}", partial(trace_case, recipe, scale, recipe in TINY and first)
        for form in ("search", "deploy", *["auxiliary"] * (recipe in CLASSIFIERS)):
            yield f"parameters of {recipe}, {form}", partial(parameters_case, recipe, form)
        if recipe in TINY:
            yield f"weights of {recipe}", partial(weights_case, recipe)
            yield f"samples of {recipe}", partial(samples_case, recipe)
    for name in ("darts-tiny, decided 0", "darts-tiny, hardly 0", "autodeeplab-quick, decided 0"):
        yield f"{name}: expected", partial(expected_case, ALPHAS[name])


CASES: dict[str, Case] = dict([*_derivations(), *_contests(), *_networks()])
# Where all logits are equal, the score and the order of options leave open which of many networks is the answer of the
# solver: it follows from the order of the program's rows. So it is in one case of two values.
EQUAL = frozenset(name for name in CASES if re.search(r", zero .*( by |no twins)|darts.*, two .*rule, limited", name))


def is_slow(name: str) -> bool:
    """Tell whether a case is left to the slow tests: more budgets, larger scales, and what is open anyway."""
    if name in EQUAL or name in SLOW:
        return True
    if name.startswith("trace of "):
        recipe, at = name.removeprefix("trace of ").split(", ", 1)
        return recipe not in TINY and at != _at(recipe_of(recipe).scales()[0])
    asked = name.rpartition(": ")[2]
    if re.search("cifar10-quick, |autodeeplab.*(grid|two)", name):
        return " by " in asked and asked != "generous by a"
    return " by " in asked and asked not in QUICK


QUICK = (
    "generous by a",
    "generous by b",
    "generous by a and b",
    "generous by a, limited",
    "generous by a, 3 best",
    "impossible by a and b",
    "middle by a",
)
SLOW = (
    "trace of darts-cifar10, 36 channels, 20 cells",
    "trace of autodeeplab-camvid, 8 channels, 6 cells",
    "parameters of autodeeplab, search",
    "darts-tiny, hardly 0: chosen, tight",
    "darts-tiny, hardly 0: chosen, middle",
    "darts-tiny, grid 0: chosen, middle",
)


# Recording and comparing.


def written(value: Any) -> Any:
    """Return what is recorded of a value: JSON, with the digest of lines in their place."""
    if isinstance(value, Lines):
        text = "\n".join(value.lines)
        out: dict[str, Any] = {"lines": len(value.lines), "sha256": digest(text)}
        if value.whole:
            out["whole"] = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
        return out
    if isinstance(value, dict):
        return {k: written(v) for k, v in value.items()}
    return [written(v) for v in value] if isinstance(value, list) else value


def differences(was: Any, now: Any, at: str = "") -> Iterator[str]:
    """Say where a value differs from the recorded one; numbers may by 1e-9 of them."""
    if isinstance(now, Lines):
        yield from _other_lines(was, now, at)
    elif isinstance(was, dict) and isinstance(now, dict):
        for k in [*was, *(k for k in now if k not in was)]:
            if k not in was or k not in now:
                yield f"{at}{k}: {'is new' if k in now else 'is gone'}"
            else:
                yield from differences(was[k], now[k], f"{at}{k}: ")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for i, pair in enumerate(zip(was, now, strict=True)):
            yield from differences(*pair, f"{at}{i}: ")
    elif isinstance(was, float) and isinstance(now, float) and math.isclose(was, now, rel_tol=1e-9, abs_tol=1e-12):
        return
    elif was != now:
        yield f"{at}{was!r} was recorded, this is {now!r}"


def _other_lines(was: Any, now: Lines, at: str) -> Iterator[str]:
    if (was["lines"], was["sha256"]) == (len(now.lines), digest("\n".join(now.lines))):
        return
    yield f"{at}{was['lines']} lines of digest {was['sha256'][:12]} were recorded, these are {len(now.lines)} others"
    if "whole" in was:
        before = zlib.decompress(base64.b64decode(was["whole"])).decode().split("\n")
        i = next((i for i, (a, b) in enumerate(zip(before, now.lines, strict=False)) if a != b), None)
        i = min(len(before), len(now.lines)) if i is None else i
        first = [lines[i] if i < len(lines) else "(the end)" for lines in (before, now.lines)]
        yield f"{at}line {i} was\n    {first[0]}\n  and is\n    {first[1]}"


def main() -> None:
    """Record all cases."""
    RECORDED.unlink(missing_ok=True)
    found = {}
    for name, case in CASES.items():
        start_s = time.process_time()
        found[name] = written(case())
        print(f"{time.process_time() - start_s:7.2f} s  {name}", flush=True)
    lines = [f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in found.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
