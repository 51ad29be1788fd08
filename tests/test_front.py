"""The front of latency and utility: against brute force, against single derivations, and as a verb."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from hwnas import recipes
from hwnas.errors import BudgetError, HwnasError
from hwnas.latency import Correction, LatencyModel, LatencyTable, OpRow
from hwnas.problem import AtMost
from hwnas.run import Run
from hwnas.search.front import Point, pareto_front, rates
from hwnas.search.widths import MIN_SCORE, SAFETY, Constraint, Contest, choose, count, price
from hwnas.spaces import Scale, Space
from tests.contracts import random_probs, roofline_table
from tests.test_derive import WHERE, Brute, cells
from tests.verbs import RECIPE, done, hwnas, tree

SIZE = (32, 48)
SCALES = (Scale(4, 3, SIZE), Scale(4, 4, SIZE), Scale(12, 3, SIZE), Scale(12, 4, SIZE))
UTILITY, DEPTH_UTILITY = 0.3, 0.1


@pytest.fixture(scope="module")
def space() -> Space:
    return cells(2, 3)


@pytest.fixture(scope="module")
def models(space: Space) -> list[LatencyModel]:
    rows: dict[str, OpRow] = {}
    for s in SCALES:
        rows |= roofline_table(space.at(s)).rows
    table = LatencyTable(WHERE, rows, correction=Correction(0.02, 0.9, {}, 0.02, 0.05, 12))
    return price(space, SCALES, table)


def contest(space: Space, models: list[LatencyModel], seed: int) -> Contest:
    return Contest(space.problem, SCALES, models, random_probs(space, seed), UTILITY, DEPTH_UTILITY)


@pytest.mark.parametrize("seed", range(3))
def test_no_network_of_any_scale_is_better_within_the_budget_of_a_point(
    space: Space, models: list[LatencyModel], seed: int
) -> None:
    brute = Brute(space.groups, space.rules())
    probs = random_probs(space, seed)
    score = brute.scores(space.groups, probs)
    ms = np.concatenate([m.base_ms + brute.opened(m.gates) @ m.gate_ms for m in models])
    bonus = [UTILITY * math.log2(s.channels / 4) + DEPTH_UTILITY * math.log2(s.cells / 3) for s in SCALES]
    kept = score / score.max()
    utility = np.concatenate([kept + b - (1 + max(bonus)) * (kept < MIN_SCORE) for b in bonus])
    points = pareto_front(contest(space, models, seed), 10)
    assert len(points) >= 5
    for p in points:
        fits = ms * (1 + SAFETY * 0.02) <= p.budget_ms  # the table's error
        assert p.candidate.utility == pytest.approx(utility[fits].max(), abs=1e-6)
        # It is on the front of all networks: none that is faster is as good.
        faster = ms < p.candidate.latency_ms * (1 - 1e-9)
        assert not faster.any() or utility[faster].max() < p.candidate.utility + 1e-9
    # From the fastest network there is to the one that a budget takes nothing from.
    assert points[0].candidate.latency_ms <= ms.min() * 1.002
    assert points[-1].candidate.utility == pytest.approx(utility.max(), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_each_point_is_what_its_rate_derives(space: Space, models: list[LatencyModel], seed: int) -> None:
    told: list[int] = []
    points = pareto_front(contest(space, models, seed), 8, lambda done, *_, **__: told.append(done))
    assert told == list(range(1, 9))
    probs = random_probs(space, seed)
    for p in points:
        assert re.fullmatch(r"[\d.]+", p.fps)
        own = Contest(space.problem, SCALES, models, probs, UTILITY, DEPTH_UTILITY)
        chosen, _ = choose(own, p.budget_ms)
        assert chosen == p.candidate


def test_it_rises_strictly_and_has_no_network_twice(space: Space, models: list[LatencyModel]) -> None:
    points = pareto_front(contest(space, models, 0), 40)
    for attribute in ("latency_ms", "utility"):
        values = [getattr(p.candidate, attribute) for p in points]
        assert all(a < b for a, b in itertools.pairwise(values))
    assert len({(p.candidate.scale, p.candidate.arch) for p in points}) == len(points) < 40
    assert len({p.candidate.scale for p in points}) > 1


def test_of_networks_that_are_equally_good_the_fastest_is_kept(space: Space, models: list[LatencyModel]) -> None:
    """Where probabilities tie, the paper's order may take a slower one under a larger budget."""
    rng = np.random.default_rng(0)
    equal = 0
    for _ in range(3):
        probs = {g.name: rng.choice([0.1, 0.2], g.shape) for g in space.groups}
        own = Contest(space.problem, SCALES[:1], models[:1], probs, UTILITY)
        points = pareto_front(own, 12)
        utilities = [p.candidate.utility for p in points]
        assert all(b - a > 1e-6 for a, b in itertools.pairwise(utilities))
        every = {c.arch: c.utility for fps in rates(own, 12) if (c := own.candidates(0, 1000 / float(fps))[0])}
        equal += len(every) - len({round(u, 6) for u in every.values()})
    assert equal > 0  # it happened


def test_rates_are_spread_evenly_and_can_be_typed(space: Space, models: list[LatencyModel]) -> None:
    asked = rates(contest(space, models, 0), 6)
    fps = [float(r) for r in asked]
    assert fps == sorted(fps, reverse=True)
    steps = np.diff(np.log(fps))
    assert steps == pytest.approx(np.full(5, steps.mean()), abs=2e-3)  # four digits
    assert all(len(r.replace(".", "").strip("0")) <= 4 for r in asked)


def test_limits_and_constraints_hold_on_the_whole_front(space: Space, models: list[LatencyModel]) -> None:
    probs = random_probs(space, 1)
    limit = AtMost.of(space.groups[0], "skip_connect", 0)
    counts = count(space, SCALES, "params")
    free = pareto_front(contest(space, models, 1), 8)
    most = 0.8 * counts[SCALES.index(free[-1].candidate.scale)].predict_ms(free[-1].candidate.arch)  # type: ignore[arg-type]
    bound = Contest(
        space.problem.with_rules(limit),
        SCALES,
        models,
        probs,
        UTILITY,
        DEPTH_UTILITY,
        [Constraint("params", counts, most)],
    )
    points = pareto_front(bound, 8)
    assert points
    for p in points:
        assert p.candidate.arch is not None
        assert limit.holds(p.candidate.arch)
        assert p.candidate.others[0] <= most
        chosen, _ = choose(bound, p.budget_ms)
        assert chosen == p.candidate


def test_what_nothing_meets_is_refused(space: Space, models: list[LatencyModel]) -> None:
    with pytest.raises(HwnasError, match="2 points or more, got 1"):
        pareto_front(contest(space, models, 0), 1)
    few = Constraint("params", count(space, SCALES, "params"), 10.0)
    with pytest.raises(BudgetError, match=r"10 params \(at best"):
        pareto_front(Contest(space.problem, SCALES, models, random_probs(space, 0), UTILITY, constraints=[few]), 4)


def test_a_point_says_its_budget() -> None:
    assert Point("312.5", None).budget_ms == 3.2  # type: ignore[arg-type]


class TestVerb:
    def test_the_front_is_written_drawn_and_each_of_its_commands_derives_its_network(self, finished: Path) -> None:
        before = tree(finished)
        said = done("derive", RECIPE, "--pareto", "5")
        after = tree(finished)
        assert {k: v for k, v in after.items() if k in before} == before
        assert set(after) - set(before) == {"pareto.json", "pareto.svg"}
        front = json.loads((finished / "pareto.json").read_text())
        points = front["points"]
        assert 3 <= len(points) <= front["asked"] == 5
        for one, other in itertools.pairwise(points):
            assert one["predicted_ms"] < other["predicted_ms"]
            assert one["utility"] < other["utility"]
            assert one["interval_ms"][0] < one["predicted_ms"] < one["interval_ms"][1]
        assert (finished / "pareto.svg").read_text().count("channels, 3 cells") >= 1
        p = points[1]
        assert p["command"] in said.out
        derived = Run(done(*shlex.split(p["command"])[1:]).following.removeprefix("hwnas train ")).derived()
        assert derived.architecture.to_json() == p["architecture"]
        assert derived.scale.to_json() == p["scale"] | {"size": tuple(p["scale"]["size"])}
        assert (derived.predicted_ms, derived.budget_ms) == (p["predicted_ms"], p["budget_ms"])
        # The same front again is the same files; another one does not take their place.
        done("derive", RECIPE, "--pareto", "5")
        assert tree(finished) == after
        refused = hwnas("derive", RECIPE, "--pareto", "6")
        assert refused.code == 2
        assert "holds another front; remove it" in refused.err
        assert tree(finished) == after

    @pytest.mark.parametrize(
        ("args", "match"),
        [
            (("--pareto", "1"), "a front needs 2 points or more"),
            (("--pareto", "5", "--fps", "3000"), "leave out --to, --fps"),
            (("--pareto", "5", "--rerank", "supernet"), "are for one budget, not for --pareto"),
            (("--pareto", "5", "--max-params", "10"), r"10 params \(at best"),
        ],
    )
    def test_what_is_no_front(self, finished: Path, args: tuple[str, ...], match: str) -> None:
        before = tree(finished)
        said = hwnas("derive", RECIPE, *args)
        assert (said.code, said.out) == (2, "")
        assert re.search(match, said.err)
        assert tree(finished) == before


@pytest.mark.slow
def test_twelve_budgets_of_darts_quick_take_seconds() -> None:
    """A front of the recipe from random alphas, with prices of roofline arithmetic."""
    import time

    recipe = recipes.get("darts-quick")
    rows: dict[str, OpRow] = {}
    for s in recipe.scales():
        rows |= roofline_table(recipe.space.at(s)).rows
    models = price(recipe.space, recipe.scales(), LatencyTable(WHERE, rows))
    start_s = time.process_time()
    own = Contest(recipe.space.problem, recipe.scales(), models, random_probs(recipe.space, 0), recipe.width_utility)
    points = pareto_front(own, 12)
    assert time.process_time() - start_s < 5
    assert len(points) >= 6
