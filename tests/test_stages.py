"""Searches in several stages, strategies that find trials, and models of logits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import checkpoint, recipes, records, show
from hwnas.data import Synthetic
from hwnas.derived import Demands
from hwnas.errors import BudgetError, HwnasError
from hwnas.files import read_json
from hwnas.jobs import DeriveSettings, Run, SearchResult, SearchSettings, derive, search
from hwnas.jobs.findings import FILE, Alphas, read_findings
from hwnas.latency.table import LatencyTable
from hwnas.problem import Architecture
from hwnas.recipes import Recipe
from hwnas.records import decode, encode, stored
from hwnas.search.gradient import BilevelSearch
from hwnas.search.strategy import Findings, Inputs, Search, Stage, Strategy, Trial, check_stages
from hwnas.search.trials import TrialSolver
from hwnas.search.widths import Contest, price
from hwnas.show.console import console
from tests.verbs import RECIPE, done, hwnas

TINY = recipes.get(RECIPE)
SPACE = TINY.space
DATA = Synthetic("train", TINY.search.scale.size, length=8)
BUDGET = 1000 / 3000.0  # ms
IN_TWO = replace(
    TINY,
    name="in-two",
    stages=(
        Stage("first", replace(TINY.search, steps=3, warmup=0), ("reduce",)),
        Stage("second", replace(TINY.search, steps=4, warmup=0), weights_from="first"),
    ),
)


@stored("test-draws")
@dataclass(frozen=True)
class Drawn(Strategy):
    """Random architectures of the open groups; the first is worth the most."""

    steps: int = 8
    seed: int = 0
    checkpoint_every: int = 1

    def begin(self, inputs: Inputs) -> Search:
        return Draws(self, inputs)


class Draws(Search):
    def __init__(self, config: Drawn, inputs: Inputs) -> None:
        self.config, self.inputs, self.step = config, inputs, 0

    @property
    def strategy(self) -> Drawn:
        return self.config

    def advance(self) -> dict[str, Any]:
        self.step += 1
        return {"step": self.step - 1}

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]

    def findings(self) -> Findings:
        names = {d.name for g in self.inputs.groups for d in g.decisions}
        out = []
        for i in range(self.config.steps):
            drawn = self.inputs.problem.draw(np.random.default_rng([self.config.seed, i]))
            own = tuple((d, o) for d, o in drawn.answers if d in names)
            out.append(Trial(Architecture(drawn.space, own), 1 / (1 + i)))
        return Findings({}, {}, tuple(out))


BY_TRIALS = replace(TINY, name="by-trials", stages=(Stage("search", Drawn()),))


def searched(recipe: Recipe, name: str, fps: float = 3000.0) -> SearchResult:
    """Search by the table of the run darts-tiny."""
    run = Run(name)
    run.ask(recipe=recipe)
    return search(run, SearchSettings((Path("runs") / RECIPE / "table.json",), (fps,)))


class TestStages:
    def test_a_later_stage_keeps_what_an_earlier_one_decided(self, profiled: Path) -> None:
        result = searched(IN_TWO, "two")
        assert [s.groups for s in result.stages] == [("reduce",), ("normal",)]
        assert [len(s.steps) for s in result.stages] == [3, 4]
        found = read_findings(Run("two"))
        assert {d.split("/")[0] for d, _ in found.decided.answers} == {"reduce"}
        assert set(found.decided.answers) < set(result.derived.architecture.answers)
        assert result.derived.predicted_ms <= BUDGET
        assert result.derived.discretisation_gap.gap is not None
        folder = profiled.parent / "two"
        assert {p.name for p in folder.glob("search*")} == {
            f"search-{stage}.{ending}" for stage in ("first", "second") for ending in ("pt", "jsonl")
        }
        with console.capture() as captured:
            show.searched(result)
        out = captured.get()
        assert out.index("stage first") < out.index("stage second") < out.index("alphas-second.json")
        assert {p.name for p in folder.glob("alphas*")} == {"alphas-first.json", "alphas-second.json"}

    def test_it_starts_from_the_weights_of_an_earlier_one(self) -> None:
        first = BilevelSearch(SPACE, TINY.search, DATA, open_groups=("reduce",))
        first.advance()
        weights = {k: v.clone() for k, v in first.net.state_dict().items()}
        fixed = Architecture.of(SPACE.name, {d: o for d, o in _drawn(0).answers if d.startswith("reduce/")})
        other = replace(TINY.search, seed=99)
        second = BilevelSearch(SPACE, other, DATA, fixed=fixed, weights=weights)
        own = second.net.state_dict()
        assert own.keys() <= weights.keys()
        assert all(torch.equal(v, weights[k]) for k, v in own.items())
        anew = BilevelSearch(SPACE, other, DATA, fixed=fixed).net.state_dict()
        assert any(not torch.equal(v, weights[k]) for k, v in anew.items())

    def test_weights_of_another_scale_are_refused(self) -> None:
        wider = replace(TINY.search, scale=replace(TINY.search.scale, channels=8))
        weights = BilevelSearch(SPACE, wider, DATA).net.state_dict()
        with pytest.raises(HwnasError, match="has another shape there; give both one scale"):
            BilevelSearch(SPACE, TINY.search, DATA, weights=weights)
        with pytest.raises(HwnasError, match="they share no name"):
            BilevelSearch(SPACE, TINY.search, DATA, weights={"a": torch.zeros(1)})

    def test_groups_of_later_stages_are_mixed_evenly_and_learn_nothing(self) -> None:
        s = BilevelSearch(SPACE, replace(TINY.search, warmup=0), DATA, open_groups=("reduce",))
        before = {k: a.detach().clone() for k, a in s.logits().items()}
        for _ in range(2):
            s.advance()
        assert not torch.equal(s.logits()["reduce"], before["reduce"])
        assert torch.equal(s.logits()["normal"], torch.zeros_like(before["normal"]))
        assert set(s.findings().probabilities) == {"reduce"}

    def test_a_stage_that_is_done_is_not_done_again(self, profiled: Path) -> None:
        whole = searched(IN_TWO, "whole")
        folder, half = profiled.parent / "whole", profiled.parent / "half"
        shutil.copytree(folder, half, ignore=shutil.ignore_patterns("*-second*", "arch.*"))
        settings = half / "run.json"
        before = {p.name: p.read_bytes() for p in half.glob("*-first*")}
        assert settings.exists()
        result = searched(IN_TWO, "half")
        assert {p.name: p.read_bytes() for p in half.glob("*-first*")} == before
        assert result.derived.architecture == whole.derived.architecture
        one, other = (checkpoint.read(f / "search-second.pt")["net"] for f in (folder, half))
        assert all(torch.equal(one[k], other[k]) for k in one)

    def test_another_budget_keeps_it_too(self, profiled: Path) -> None:
        searched(IN_TWO, "two")
        result = derive(Run("two"), DeriveSettings(fps=(2000.0,)))
        assert set(read_findings(Run("two")).decided.answers) < set(result.derived.architecture.answers)
        judged = derive(Run("two"), DeriveSettings("judged", demands=Demands(candidates=2, rerank="supernet")))
        assert judged.derived.rerank is not None

    @pytest.mark.parametrize(
        ("stages", "said"),
        [
            ([], "at least one"),
            ([Stage("a", TINY.search), Stage("a", TINY.search)], "different names"),
            ([Stage("a", TINY.search, ("normal",))], "no stage decides the group 'reduce'"),
            ([Stage("a", TINY.search), Stage("b", TINY.search)], "'b' decides nothing"),
            ([Stage("a", TINY.search, ("normal", "norml"))], "'norml'; the space has normal, reduce"),
            ([Stage("a", TINY.search, ("normal",)), Stage("b", TINY.search, ("normal",))], "an earlier stage"),
            ([Stage("a", TINY.search, weights_from="b")], "no earlier stage"),
        ],
    )
    def test_stages_that_do_not_fit_are_refused(self, stages: list[Stage], said: str) -> None:
        with pytest.raises(HwnasError, match=said):
            check_stages(stages, SPACE.groups)
        with pytest.raises(HwnasError, match=said):
            replace(TINY, stages=tuple(stages))
        with pytest.raises(HwnasError, match="a stage's name"):
            Stage("A b", TINY.search)

    def test_a_seed_is_that_of_all_stages(self) -> None:
        assert {s.strategy.seed for s in IN_TWO.seeded(7).stages} == {7}
        assert IN_TWO.seeded(7).train.seed == 7
        assert IN_TWO.seeded(None) is IN_TWO
        with pytest.raises(HwnasError, match="no single stage"):
            _ = IN_TWO.search

    def test_a_recipe_from_before_there_were_stages_is_read(self) -> None:
        stored_recipe = encode(TINY, Recipe)
        settings = {k: v for k, v in stored_recipe.pop("stages")[0]["strategy"].items() if k not in ("type", "logits")}
        assert decode({**stored_recipe, "search": settings}, Recipe) == TINY

    def test_alphas_without_probabilities_are_read(self, finished: Path) -> None:
        probs, path = read_findings(Run(RECIPE)).probs, finished / "alphas.json"
        old = replace(FILE.load(path, Alphas), probabilities=None)
        path.unlink()
        records.save(path, old)
        assert torch.equal(read_findings(Run(RECIPE)).probs.vector, probs.vector)


class TestTrials:
    def test_the_best_that_meets_the_budget_is_derived(self, profiled: Path) -> None:
        result = searched(BY_TRIALS, "trials")
        found, space, table = read_findings(Run("trials")), BY_TRIALS.space, LatencyTable.load(profiled / "table.json")
        assert [t.score for t in found.trials] == [1 / (1 + i) for i in range(8)]
        assert result.stages[0].trials == 8
        models = dict(zip(BY_TRIALS.scales(), price(space, BY_TRIALS.scales(), table), strict=True))
        assert result.derived.architecture in [t.architecture for t in found.trials]
        assert models[result.derived.scale].predict_ms(result.derived.architecture) <= BUDGET
        assert result.derived.margins == {}
        assert "trains no supernet" in result.derived.discretisation_gap.reason

    def test_in_a_first_stage_they_are_answers(self, profiled: Path) -> None:
        stages = (Stage("first", Drawn(), ("reduce",)), Stage("second", TINY.search))
        result = searched(replace(TINY, name="mixed", stages=stages), "mixed")
        decided = read_findings(Run("mixed")).decided
        first = FILE.load(Run("mixed").folder / "alphas-first.json", Alphas)
        assert decided in [t.architecture for t in first.trials]
        assert set(decided.answers) < set(result.derived.architecture.answers)

    def test_where_none_meets_the_budget_it_says_so(self, profiled: Path) -> None:
        models = price(SPACE, TINY.scales(), LatencyTable.load(profiled / "table.json"))
        fastest = Contest(SPACE.problem, TINY.scales(), models, SPACE.problem.uniform(), 0.0).fastest_ms(0)
        with pytest.raises(BudgetError, match="none of the 8 trials meets"):
            searched(BY_TRIALS, "trials", 1000 / (1.0001 * fastest))
        assert read_json(profiled.parent / "trials" / "alphas.json", "alphas")["trials"]  # they are kept

    def test_a_front_of_them(self, profiled: Path) -> None:
        searched(BY_TRIALS, "trials")
        out = done("derive", "trials", "--pareto", "3").out
        assert "fps" in out
        refused = hwnas("derive", "trials", "--rerank", "supernet", "--to", "x")
        assert refused.code == 2
        assert "trains no supernet" in refused.err

    def test_the_solver_agrees_with_a_plain_search(self, profiled: Path) -> None:
        table = LatencyTable.load(profiled / "table.json")
        (model, *_) = price(SPACE, TINY.scales(), table)
        problem, trials = SPACE.problem, [Trial(_drawn(i), float(s)) for i, s in enumerate((3, 5, 5, 1, 4))]
        solver = TrialSolver(problem, trials, [model])
        times = [model.predict_ms(t.architecture) for t in trials]
        for budget in sorted(times):
            inside = [t for t, ms in zip(trials, times, strict=True) if ms <= budget]
            want = [t.architecture for t in sorted(inside, key=lambda t: -t.score)]
            best = solver.best(problem.uniform(), [budget], 9)
            assert [s.arch for s in best] == want
            assert solver.beats(problem.uniform(), [budget], best[0].score + 1e-9) is None
            assert solver.beats(problem.uniform(), [budget], best[0].score) == best[0]
            lost = solver.cost_of_change(problem.uniform(), want[0], [budget])
            for decision, option in want[0].answers:
                others = [t.score for t in inside if t.architecture.get(decision) != option]
                assert lost[decision] == (best[0].score - max(others) if others else float("inf"))
        assert solver.fastest().latency_ms == min(times)
        assert solver.nearest([min(times) / 2]) == pytest.approx(2.0)
        with pytest.raises(BudgetError, match="none of 5 trials"):
            solver.best(problem.uniform(), [min(times) / 2])


def _drawn(seed: int) -> Architecture:
    return SPACE.problem.draw(np.random.default_rng(seed))
