"""Searches by trials: what every sampler has to keep, the study through kills and processes, and what trials score."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import recipes
from hwnas.data.base import SEGMENTATION
from hwnas.errors import BudgetError, HwnasError
from hwnas.jobs import DeriveSettings, Run, SearchSettings, derive, search
from hwnas.jobs.findings import read_findings
from hwnas.learn.settings import TrainConfig
from hwnas.metrics import ConfusionMatrix
from hwnas.problem import Architecture, Decision, Group, NoTwins, Problem
from hwnas.progress import ignore
from hwnas.records import decode, encode
from hwnas.search.costs import Bound
from hwnas.search.strategy import Inputs, Strategy
from hwnas.search.study import (
    PPO,
    SAMPLERS,
    Choices,
    EarlyStop,
    Evolution,
    HeadOnFeatures,
    NearBest,
    Reinforce,
    Sampler,
    ShortTraining,
    Trials,
    Tried,
    Uniform,
)
from hwnas.search.study.evaluators.base import LEAST, parts, reward
from hwnas.search.study.evaluators.features import FIRST, Heads
from hwnas.search.study.ledger import OWNER, Ledger, file_url
from hwnas.search.study.samplers.controller import Controller, Experience, Learner
from hwnas.search.study.strategy import StudySearch
from hwnas.spaces import SpaceNet
from tests.study_parts import DATA, POOLS, SPACE, Edges, Planted, inputs, run, search_in, trials, value
from tests.verbs import done, hwnas

ROOT = Path(__file__).resolve().parents[1]
CHOICES = Choices.of(inputs(), {})
STRICT = Bound("pools", POOLS.resource, 0.01)  # no pooling at all
NOTHING = Bound("edges", Edges(), 1.0)  # what no network is within: there are nine


def quick(name: str) -> Sampler:
    """Return a sampler whose interesting part begins early, and that computes little."""
    settings: dict[str, dict[str, Any]] = {
        "evolution": {"population": 4, "sample": 2},
        "tpe": {"startup": 3},
        "nsga2": {"population": 4},
        "reinforce": {"hidden": 8, "lr": 0.1},
        "ppo": {"hidden": 8, "lr": 0.1, "batch": 4},
    }
    return SAMPLERS[name](**settings.get(name, {}))


@pytest.mark.parametrize("name", SAMPLERS)
class SamplerContract:
    """Laws of samplers; a new one holds them by its line in `SAMPLERS`."""

    STEPS = 9

    def test_the_same_seed_asks_the_same_and_only_what_is_valid_and_within(self, name: str, tmp_path: Path) -> None:
        strategy = trials(quick(name), self.STEPS)
        first = run(strategy, inputs(), tmp_path / "first")
        assert first == run(strategy, inputs(), tmp_path / "second")
        assert first != run(strategy.with_seed(1), inputs(), tmp_path / "other")
        assert len(first) == self.STEPS
        problem = SPACE.problem.with_rules(NoTwins(SPACE.twins()))
        for t in first:
            problem.check(t.architecture)
            assert POOLS.resource(problem.one_hot(t.architecture)) <= POOLS.budget
            assert t.score == value(t.architecture)

    def test_a_resumed_search_asks_the_same(self, name: str, tmp_path: Path) -> None:
        strategy = trials(quick(name), self.STEPS)
        whole = run(strategy, inputs(), tmp_path / "whole")
        folder = tmp_path / "study"
        state: dict[str, Any] = {}
        for at in (4, 6):
            s = strategy.begin(inputs(folder))
            if state:
                s.restore(state)
            while s.step < at:
                s.advance()
            state = copy.deepcopy(s.state())
            s.close()
        s.ledger.claim(self.STEPS, s.asking.sampler, 100)  # left when the process ends
        s.close()
        s = strategy.begin(inputs(folder))
        s.restore(state)
        while not s.finished:
            s.advance()
        s.close()
        assert s.findings().trials == whole

    def test_more_trials_begin_with_those_there_are(self, name: str, tmp_path: Path) -> None:
        strategy = trials(quick(name), 4)
        few = run(strategy, inputs(tmp_path / "study"), tmp_path)
        more = run(strategy.extended(self.STEPS), inputs(tmp_path / "study"), tmp_path)
        assert more[:4] == few
        assert more == run(strategy.extended(self.STEPS), inputs(), tmp_path / "at once")

    def test_it_ends_where_no_network_is_within_the_budget(self, name: str) -> None:
        s = trials(quick(name), asks=20).begin(inputs(bounds=[NOTHING]))
        with pytest.raises(BudgetError, match="none of 20 architectures asked for is predicted to be within"):
            s.advance()
        s.close()

    def test_its_settings_are_stored(self, name: str) -> None:
        strategy = trials(quick(name))
        assert decode(json.loads(json.dumps(encode(strategy, Strategy))), Strategy) == strategy


class TestSamplers(SamplerContract):
    pass


def test_they_ask_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_study import *\n"
        "for n in SAMPLERS:\n"
        "    print([t.architecture.id for t in run(trials(quick(n), 4), inputs(), Path(sys.argv[1]) / n)])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )
    here = [[t.architecture.id for t in run(trials(quick(n), 4), inputs(), tmp_path / f"here-{n}")] for n in SAMPLERS]
    assert said.stdout.splitlines() == [str(ids) for ids in here]


class TestChoices:
    @pytest.mark.parametrize("recipe", ["darts-tiny", "cas-tiny", "autodeeplab-tiny", "gas-tiny", "trials-tiny"])
    def test_any_answers_stand_for_a_network_and_valid_ones_for_themselves(self, recipe: str) -> None:
        space = recipes.get(recipe).space
        choices = Choices.of(Inputs(space, DATA), {})
        rng = np.random.default_rng(0)
        for _ in range(10):
            raw = {d: str(rng.choice(options)) for d, options in choices.options.items()}
            arch = choices.network(raw)
            assert arch == choices.network(dict(reversed(raw.items())))
            assert all(rule.holds(arch) for rule in space.problem.rules if rule.decisions)
            drawn = choices.draw(rng)
            assert all(o in choices.options[d] for d, o in drawn.items())
            assert choices.answers(choices.network(drawn)) == drawn
            near = choices.neighbour(drawn, rng)
            assert all(rule.holds(choices.network(near)) for rule in space.problem.rules if rule.decisions)

    def test_a_repair_prefers_no_edge(self) -> None:
        """Where all edges are asked for, each is dropped about equally often."""
        rng, kept = np.random.default_rng(0), dict.fromkeys(CHOICES.options, 0)
        for _ in range(200):
            raw = {d: str(rng.choice(options[1:])) for d, options in CHOICES.options.items()}
            for d, o in CHOICES.answers(CHOICES.network(raw)).items():
                kept[d] += o != "none"
        last = [kept[d] for d in kept if "4" in d.rpartition("/")[2].split("-")[1]]
        assert len(last) == 4
        assert all(70 <= n <= 130 for n in last)  # two of four: 100, with a deviation of 7

    def test_what_a_later_stage_decides_is_refused(self) -> None:
        space = recipes.get("darts-tiny").space
        with pytest.raises(HwnasError, match="is left to a later stage; put the stage that decides it first"):
            Choices.of(Inputs(space, DATA, open_groups=("normal",)), {})

    def test_limits_take_the_place_of_what_is_typical(self) -> None:
        bounds = [Bound("ms", POOLS.resource, 3.0), Bound("macs", POOLS.resource, 5.0)]
        made = Choices.of(inputs(bounds=bounds), {"macs": 2.0})
        assert [b.budget for b in made.bounds] == [3.0, 2.0]
        for wrong in ({"watts": 1.0}, {"macs": 0.0}):
            with pytest.raises(HwnasError, match="limits above 0 of macs and params"):
                trials(limits=wrong)
        assert trials(limits={"macs": 1.0}).resources == ("macs",)


class TestRandomSearches:
    def test_near_the_best_is_near_the_best(self, tmp_path: Path) -> None:
        sampler = NearBest(share=1.0, changes=1)
        found = run(trials(sampler, 10), inputs(bounds=()), tmp_path)
        best = found[0]
        for t in found[1:]:
            differ = [d for d, o in t.architecture.answers if best.architecture.get(d) != o]
            assert 1 <= len(differ) <= 3  # a repair may drop one edge for another
            best = max(best, t, key=lambda x: x.score)

    def test_evolution_mutates_members_of_its_population(self, tmp_path: Path) -> None:
        found = run(trials(Evolution(4, 4), 14), inputs(bounds=()), tmp_path)
        for i in range(4, 14):
            parent = max(found[i - 4 : i], key=lambda t: t.score)  # the sample is the population
            differ = [d for d, o in found[i].architecture.answers if parent.architecture.get(d) != o]
            assert 1 <= len(differ) <= 3

    @pytest.mark.parametrize("make", [lambda: NearBest(2.0), lambda: NearBest(changes=0), lambda: Evolution(4, 5)])
    def test_settings_out_of_range_are_refused(self, make: Any) -> None:
        with pytest.raises(HwnasError, match="needs"):
            make()


def fast_nas_problem() -> Problem:
    """Return the decisions of the published controller, by name: 4, 5 and 6 inputs, positions 1, 4 and 7, 11 ops."""
    groups = [
        Group(f"conn{k}", tuple(Decision(f"conn{k}/{i}", tuple(map(str, range(4 + k)))) for i in range(2)))
        for k in range(3)
    ]
    groups += [
        Group(f"pos{k}", tuple(Decision(f"pos{k}/{i}", tuple(map(str, range(n)))) for i in range(2)))
        for k, n in enumerate((1, 4, 7))
    ]
    groups.append(Group("op", tuple(Decision(f"op/{i}", tuple(map(str, range(11)))) for i in range(7))))
    return Problem("published", tuple(groups))


class TestControllers:
    def test_it_has_the_published_number_of_parameters(self) -> None:
        """169,365 in DrSleep/nas-segm-pytorch@src/rl/micro_controllers.py, less an embedding that is never read."""
        controller = Controller(PPO(lead=4, shared=("op",)), Choices(fast_nas_problem()))
        assert sum(p.numel() for p in controller.parameters()) == 169_365 - 11 * 100
        assert len(controller()) == 6 + 6 + 7
        with pytest.raises(HwnasError, match="shares 'ops', which is no group; there are conn0"):
            Controller(PPO(shared=("ops",)), Choices(fast_nas_problem()))

    @pytest.mark.parametrize("kind", [PPO, Reinforce])
    def test_the_first_trial_changes_nothing_and_later_ones_make_what_is_better_more_probable(self, kind: Any) -> None:
        learner = Learner(kind(hidden=8, lr=0.01), CHOICES, 0)
        rng = np.random.default_rng(0)
        first, second = (CHOICES.draw(rng) for _ in range(2))
        taken = [tuple(o.index(a[d]) for d, o in CHOICES.options.items()) for a in (first, second)]
        before = learner.log_probs(taken).detach()
        learner._see(Tried(0, first, 0.5, {}))
        assert torch.equal(learner.log_probs(taken), before)  # what it scored is the mean
        learner._see(Tried(1, second, 0.9, {}))
        assert learner.baseline == pytest.approx(0.95 * 0.5 + 0.05 * 0.9)
        after = learner.log_probs(taken).detach()
        assert after[1] > before[1]

    def test_ppo_stops_at_the_edge_of_its_region(self) -> None:
        """A ratio beyond 1 + epsilon with an advantage has no gradient (Schulman et al. 2017, equation 7)."""
        learner = Learner(PPO(hidden=8, lr=0.01), CHOICES, 0)
        learner.baseline = 0.2
        answers = CHOICES.draw(np.random.default_rng(0))
        taken = tuple(o.index(answers[d]) for d, o in CHOICES.options.items())
        now = float(learner.log_probs([taken]).detach()[0])
        before = [p.detach().clone() for p in learner.net.parameters()]
        learner.config.learn(learner, Experience(0, taken, 0.9, now - np.log(1.11)))
        assert all(torch.equal(p, b) for p, b in zip(learner.net.parameters(), before, strict=True))
        learner.memory.clear()
        learner.config.learn(learner, Experience(0, taken, 0.9, now - np.log(1.09)))
        assert not all(torch.equal(p, b) for p, b in zip(learner.net.parameters(), before, strict=True))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["ppo", "reinforce"])
    def test_it_beats_random_search_on_a_planted_reward(self, name: str) -> None:
        said = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "bench" / "samplers.py"), "--only", name, "--seeds", "4"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        rows = {line.split()[0]: line.split() for line in said.stdout.splitlines() if line.strip()}
        assert float(rows[name][1]) > float(rows["uniform"][1])
        assert rows[name][-1] == "4/4"


def ledger(url: str | None = None, made_with: str = "x", grace_s: float = 60.0) -> Ledger:
    return Ledger(url, "search", made_with, CHOICES, grace_s)


class TestLedger:
    def test_a_trial_is_claimed_once_and_that_of_a_dead_process_again(self, tmp_path: Path) -> None:
        url, asking = file_url(tmp_path / "study.db"), Uniform().asking(CHOICES, 0)
        one, other = ledger(url), ledger(url)
        claims = [one.claim(4, asking.sampler, 100), other.claim(4, asking.sampler, 100)]
        assert [c.number for c in claims if c] == [0, 1]
        assert claims[1] is not None
        other.close()  # as one that died: its trial is left
        again = one.claim(4, asking.sampler, 100)
        assert again is not None
        assert (again.number, again.answers) == (1, claims[1].answers)
        late = ledger(url)
        assert not late.tell(claims[1], 0.5, {})  # the first try comes back from the dead
        assert late.tell(again, 0.25, {"a": [1, 2]})
        assert {n: (t.value, t.user_attrs["a"]) for n, t in late.finished().items()} == {1: (0.25, [1, 2])}
        rest = [one.claim(4, asking.sampler, 100) for _ in range(3)]
        assert [c and c.number for c in rest] == [2, 3, None]
        for x in (one, late):
            x.close()

    def test_one_of_another_machine_is_left_when_its_pulse_stops(self, tmp_path: Path) -> None:
        url, asking = file_url(tmp_path / "study.db"), Uniform().asking(CHOICES, 0)
        elsewhere, here = ledger(url, grace_s=0.2), ledger(url, grace_s=0.2)
        claim = elsewhere.claim(1, asking.sampler, 100)
        assert claim is not None
        mark = json.dumps({"host": "another", "pid": 1, "started": "1"})
        elsewhere.storage.set_trial_user_attr(claim.handle, OWNER, mark)
        with elsewhere.pulse(claim):
            for _ in range(8):
                assert here.claim(1, asking.sampler, 100) is None
                time.sleep(0.05)
        assert here.claim(1, asking.sampler, 100) is None
        time.sleep(0.3)
        again = here.claim(1, asking.sampler, 100)
        assert again is not None
        assert again.answers == claim.answers
        for x in (elsewhere, here):
            x.close()

    def test_another_study_is_refused(self, tmp_path: Path) -> None:
        url = file_url(tmp_path / "study.db")
        ledger(url).close()
        with pytest.raises(HwnasError, match="was made with other settings, data or budgets"):
            ledger(url, "y")

    @pytest.mark.parametrize("url", ["sqlite:////no/such/folder/study.db", "nonsense", "nosuch://me:secret@host/db"])
    def test_a_database_that_cannot_be_opened_is_named_without_its_password(self, url: str) -> None:
        with pytest.raises(HwnasError, match="cannot open the study 'search'") as e:
            ledger(url)
        assert "secret" not in str(e.value)
        assert "\n" not in str(e.value)

    def test_a_study_that_lost_trials_is_refused(self, tmp_path: Path) -> None:
        strategy = trials(steps=3)
        run(strategy, inputs(tmp_path / "study"), tmp_path)
        for path in (tmp_path / "study").glob("study.db*"):
            path.unlink()
        with pytest.raises(HwnasError, match="trial 1 of 3 is not in the study any more"):
            run(strategy, inputs(tmp_path / "study"), tmp_path)


def killed(folder: Path, strategy: Trials, after_s: float) -> bool:
    """Run a search in a process and kill it; return whether it was still at work."""
    process = multiprocessing.get_context("fork").Process(target=search_in, args=(str(folder), strategy))
    process.start()
    process.join(after_s)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


@pytest.mark.parametrize(
    ("name", "kills"),
    [("evolution", 4), *(pytest.param(name, 10, marks=pytest.mark.slow) for name in SAMPLERS)],
)
def test_kills_change_nothing(name: str, kills: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    strategy = trials(quick(name), 24, evaluator=Planted(0.01, str(log)))
    whole = run(trials(quick(name), 24), inputs(), tmp_path / "whole")
    rng, cut = np.random.default_rng(0), 0
    for _ in range(10 * kills):
        if cut < kills:
            cut += killed(tmp_path, strategy, float(rng.uniform(0.05, 0.4)))
    assert cut == kills
    assert run(strategy, inputs(tmp_path / "study"), tmp_path) == whole
    steps = [json.loads(line)["step"] for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    assert steps == list(range(24))
    tried = log.read_text().split()
    assert len(tried) <= len(set(tried)) + kills  # a kill costs at most the trial that was under way
    assert not list((tmp_path / "study" / "trials").glob("*"))


def work(folder: str, strategy: Trials) -> None:
    """Do trials of a study until there is none left: a process of several."""
    s = StudySearch(strategy, inputs(Path(folder)), leads=False)
    while len(s.ledger.finished()) < strategy.steps:
        if not s.work():
            time.sleep(0.01)
    s.close()


@pytest.mark.parametrize("steps", [20, pytest.param(120, marks=pytest.mark.slow)])
def test_four_processes_of_which_one_is_killed_do_each_trial_once(steps: int, tmp_path: Path) -> None:
    folder, log = tmp_path / "study", tmp_path / "log"
    strategy = trials(Uniform(), steps, evaluator=Planted(0.05, str(log)))
    StudySearch(strategy, inputs(folder)).close()
    context = multiprocessing.get_context("fork")
    crew = [context.Process(target=work, args=(str(folder), strategy)) for _ in range(4)]
    for p in crew:
        p.start()
    while len(log.read_text().split() if log.exists() else ()) < steps // 4:
        time.sleep(0.01)
    assert crew[0].pid is not None
    os.kill(crew[0].pid, signal.SIGKILL)
    for p in crew:
        p.join()
    assert [p.exitcode for p in crew] == [-signal.SIGKILL, 0, 0, 0]
    # Uniform answers follow from the number alone, whoever asks and whenever.
    assert run(strategy, inputs(folder), tmp_path) == run(trials(Uniform(), steps), inputs(), tmp_path / "whole")
    tried = sorted(map(int, log.read_text().split()))
    assert set(tried) == set(range(steps))
    assert len(tried) <= steps + 1  # that of the one that was killed, if it had been evaluated


@pytest.mark.slow
def test_a_crew_does_the_same_trials(tmp_path: Path) -> None:
    """Processes of their own, as `hwnas search --processes` starts them."""
    strategy = trials(Uniform(), 10)
    given = inputs(tmp_path / "study", processes=2)
    assert run(strategy, given, tmp_path) == run(strategy, inputs(), tmp_path / "whole")
    failing = trials(Uniform(), 10, asks=5)
    with pytest.raises(BudgetError, match="none of 5 architectures"):
        run(failing, inputs(tmp_path / "other", bounds=[NOTHING], processes=2), tmp_path / "failing")


SHORT = TrainConfig(steps=3, batch=2, crop=(32, 48), lr=3e-3, class_weights="none")


class TestEvaluators:
    def heads(self, folder: Path, **more: Any) -> Heads:
        settings = {"images": 6, "held_out": 0.3} | more
        evaluator = HeadOnFeatures(settings.pop("train", SHORT), **settings)
        return evaluator.evaluation(Inputs(SPACE, DATA), folder, 0)

    def test_features_are_what_the_network_computes(self, tmp_path: Path) -> None:
        heads = self.heads(tmp_path)
        arch = SPACE.problem.draw(np.random.default_rng(3))
        net = SPACE.build(arch, form="deploy")
        assert isinstance(net, SpaceNet)
        net.load_state_dict(heads.start, strict=False)
        net.eval()
        for cache, indices in ((heads.train_features, [0, 5]), (heads.val_features, [1])):
            images, _, maps = heads._batch(cache, indices)
            with torch.no_grad():
                torch.testing.assert_close(net.head(images, maps), net(images), rtol=1e-4, atol=1e-4)
        assert len(heads.train_features) == 6
        assert len(heads.val_features) == 3
        assert heads.val_features.arrays[1].shape == (3, 64, 96)  # whole images are scored

    def test_they_are_computed_once_and_damage_is_found(self, tmp_path: Path) -> None:
        first = self.heads(tmp_path)
        path = tmp_path / "learned" / "2.npy"
        written = path.stat().st_mtime_ns
        second = self.heads(tmp_path)
        assert path.stat().st_mtime_ns == written
        arch = SPACE.problem.draw(np.random.default_rng(0))
        assert first.evaluate(arch, 0, tmp_path, []) == second.evaluate(arch, 7, tmp_path, [])
        self.heads(tmp_path, train=replace(SHORT, crop=(48, 48)))
        assert path.stat().st_mtime_ns != written  # of another crop
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(HwnasError, match="is not as it was written; remove"):
            self.heads(tmp_path, train=replace(SHORT, crop=(48, 48)))

    def test_a_head_learns(self, tmp_path: Path) -> None:
        """On the crops that it learns from: what an encoder of random weights gives for other images says little."""
        arch, correct = SPACE.problem.draw(np.random.default_rng(0)), []
        for steps, lr in ((1, 1e-5), (30, 1e-2)):
            heads = self.heads(tmp_path, train=replace(SHORT, steps=steps, batch=6, average=0.9, lr=lr))
            head, weights = heads._trained(arch, ignore)
            assert head is not None
            assert set(weights) == {k for k in SPACE.build(arch, form="deploy").state_dict() if k.startswith("head.")}
            images, labels, maps = heads._batch(heads.train_features, range(6))
            correct.append(float((head(images, maps).argmax(1) == labels).float().mean()))
        assert correct[1] > 0.5 > 2 * correct[0]

    def test_what_is_promising_is_trained_end_to_end_from_what_it_learned(self, tmp_path: Path) -> None:
        always, never = EarlyStop(start=0.0, decay=0.999), EarlyStop(start=1e9, delta=0.0)
        arch = SPACE.problem.draw(np.random.default_rng(0))
        only = self.heads(tmp_path).evaluate(arch, 0, tmp_path / "a", [])
        then = ShortTraining(replace(SHORT, steps=1, lr=1e-9, freeze_norm=True))
        both = self.heads(tmp_path, then=then, stop=always).evaluate(arch, 0, tmp_path / "b", [])
        stopped = self.heads(tmp_path, then=then, stop=never).evaluate(arch, 0, tmp_path / "c", [])
        assert both.facts[FIRST] == only.score == stopped.score
        assert (tmp_path / "b").exists()
        assert not (tmp_path / "c").exists()
        assert stopped.facts["stopped"]
        # A step that changes next to nothing leaves nearly the score of the head: the weights were handed on.
        assert both.score == pytest.approx(only.score, rel=0.5)

    def test_a_training_that_diverges_scores_least(self, tmp_path: Path) -> None:
        wild = replace(SHORT, lr=1e30, clip=0.0, steps=6, optimizer="sgd", warmup=0.0)
        arch = SPACE.problem.draw(np.random.default_rng(0))
        for outcome in (
            self.heads(tmp_path, train=wild).evaluate(arch, 0, tmp_path / "a", []),
            ShortTraining(wild).evaluation(Inputs(SPACE, DATA), tmp_path, 0).evaluate(arch, 0, tmp_path / "b", []),
        ):
            assert outcome.score == LEAST
            assert outcome.facts["diverged"]

    def test_a_short_training_scores_the_same_again(self, tmp_path: Path) -> None:
        arch = SPACE.problem.draw(np.random.default_rng(0))
        evaluator = ShortTraining(replace(SHORT, average=0.9), held_out=0.3, reward="geometric")
        scores = [
            evaluator.evaluation(Inputs(SPACE, DATA), tmp_path, 0).evaluate(arch, i, tmp_path / str(i), []).score
            for i in range(2)
        ]
        assert scores[0] == scores[1] > LEAST

    def test_what_learns_and_what_is_scored_share_no_image(self) -> None:
        learned, held_out = parts(DATA, 0.3, 0)
        assert sorted([*learned.indices, *held_out.indices]) == list(range(10))
        assert len(held_out) == 3
        assert len(parts(DATA, 0.3, 0, most=4)[0]) == 4
        with pytest.raises(HwnasError, match="holds out 10 of 10 images"):
            parts(DATA, 0.99, 0)

    def test_the_reward_is_the_published_mean_of_three(self) -> None:
        """Of labels (0, 0, 0, 1) and predictions (0, 0, 1, 1): IoU 2/3 and 1/2, recall 2/3 and 1."""
        counts = ConfusionMatrix(2)
        counts.update(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
        miou, accuracy, weighted = 7 / 12, 5 / 6, 3 / 4 * 2 / 3 + 1 / 4 * 1 / 2
        assert reward(counts, SEGMENTATION, "score") == pytest.approx(miou)
        assert reward(counts, SEGMENTATION, "geometric") == pytest.approx((miou * accuracy * weighted) ** (1 / 3))

    def test_an_encoder_with_open_decisions_is_refused(self, tmp_path: Path) -> None:
        darts = recipes.get("darts-tiny").space
        with pytest.raises(HwnasError, match="features are those of one encoder, and 'normal/0-2' of 'chain' is open"):
            HeadOnFeatures(SHORT).evaluation(Inputs(darts, DATA), tmp_path, 0)
        with pytest.raises(HwnasError, match="takes no weights of a supernet"):
            ShortTraining(SHORT).evaluation(Inputs(SPACE, DATA, weights={}), tmp_path, 0)

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: ShortTraining(SHORT, held_out=1.0), "a held_out between 0 and 1"),
            (lambda: ShortTraining(SHORT, reward="best"), "a reward of score or geometric"),  # type: ignore[arg-type]
            (lambda: ShortTraining(replace(SHORT, distill="run")), "no distill"),
            (lambda: HeadOnFeatures(replace(SHORT, aux_weight=0.4)), "an aux_weight and a drop_path of 0"),
            (lambda: EarlyStop(delta=2.0), "a delta from 0 to 1"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, make: Any, said: str) -> None:
        with pytest.raises(HwnasError, match=said):
            make()


class TestEarlyStop:
    def test_without_chance_it_asks_for_more_than_the_mean(self) -> None:
        """The mean of DrSleep/nas-segm-pytorch@src/helpers/utils.py takes a score in before the two are compared."""
        stop, mean, before = EarlyStop(delta=0.0), 0.01, []
        for n, score in enumerate((0.2, 0.012, 0.013, 0.5, 0.0165)):
            mean = 0.99 * mean + 0.01 * score
            assert stop.goes_on(before, n, score, 0) == (score > mean)
            before.append((n, score))

    def test_chance_lets_through_as_many_as_it_says_and_fewer_later(self) -> None:
        """At half of the mean: U from 0 to delta is above one half in 1 - 0.5 / delta of the cases."""
        shares = []
        for count in (0, 100, 200):
            stop = EarlyStop(decay=1 - 1e-12, start=1.0)
            before = [(n, 0.1) for n in range(count)]  # far below: one each
            shares.append(np.mean([stop.goes_on(before, count, 0.5, seed) for seed in range(400)]))
        want = [1 - 0.5 / d for d in (0.9, 0.81, 0.648)]
        assert shares == pytest.approx(want, abs=0.08)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run trials-tiny, profiled on the fake engine and searched."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        done("profile", "trials-tiny", "--engine", "fake")
        (folder / "said.txt").write_text(done("search", "trials-tiny").out)
    return folder


@pytest.fixture
def searched(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, ours to change, below the current directory."""
    shutil.copytree(tiny, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path / "tiny")
    return tmp_path / "tiny" / "runs" / "trials-tiny"


class TestJob:
    def test_the_best_trial_is_derived_and_all_are_kept(self, searched: Path) -> None:
        run_ = Run("trials-tiny")
        found = read_findings(run_).trials
        assert len(found) == 6
        assert run_.derived().architecture in [t.architecture for t in found]
        lines = [json.loads(line) for line in (searched / "search.jsonl").read_text().splitlines()]
        assert [line["score"] for line in lines] == [t.score for t in found]
        assert lines[-1]["best"] == max(t.score for t in found)
        assert (searched / "study" / "features" / "learned" / "cache.json").exists()

    def test_a_finished_search_goes_on_with_more_trials(self, searched: Path) -> None:
        before, arch = read_findings(Run("trials-tiny")).trials, (searched / "arch.json").read_bytes()
        done("search", "trials-tiny", "--trials", "8")
        found = read_findings(Run("trials-tiny")).trials
        assert len(found) == 8
        assert found[:6] == before
        assert (searched / "arch-1.json").read_bytes() == arch
        assert (searched / "arch.json").exists()
        done("search", "trials-tiny", "--trials", "8")  # there is nothing to do
        assert not (searched / "arch-2.json").exists()
        fewer = hwnas("search", "trials-tiny", "--trials", "7")
        assert fewer.code == 2
        assert "expected 8 trials or more" in fewer.err
        (searched / "train").mkdir()
        trained = hwnas("search", "trials-tiny", "--trials", "9")
        assert trained.code == 2
        assert "has train of the network it found" in trained.err

    def test_trials_serve_another_budget(self, searched: Path) -> None:
        found = read_findings(Run("trials-tiny")).trials
        own = Run("trials-tiny").derived()
        result = derive(Run("trials-tiny"), DeriveSettings("other", fps=(1000 / (own.predicted_ms * 1.5),)))
        assert result.derived.architecture in [t.architecture for t in found]

    def test_what_only_trials_can_is_refused_elsewhere(self, profiled: Path) -> None:
        for option, value_ in (("--trials", "9"), ("--processes", "2"), ("--storage", "sqlite:///x.db")):
            said = hwnas("search", "darts-tiny", option, value_)
            assert said.code == 2
            assert f"{option} is for searches by trials, and the recipe darts-tiny has none" in said.err

    def test_a_budget_that_no_trial_can_meet_is_refused_before_any(self, tiny: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tiny)
        run_ = Run("impossible")
        run_.ask(recipe="trials-tiny")
        with pytest.raises(BudgetError):
            search(run_, SearchSettings((Path("runs/trials-tiny/table.json"),), (1e7,), foreign_table=True))
        assert not (run_.folder / "study").exists()


def test_other_recipes_need_no_optuna() -> None:
    code = "import sys, hwnas.recipes, hwnas.jobs.searching; assert not {'optuna', 'sqlalchemy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_architectures_are_not_evaluated_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    strategy = trials(NearBest(share=1.0, changes=1), 14, evaluator=Planted(0.0, str(log)))
    found = run(strategy, inputs(bounds=[STRICT]), tmp_path / "run")
    assert len(log.read_text().split()) == len({t.architecture for t in found})


def test_complete_architectures_are_tried(tmp_path: Path) -> None:
    for t in run(trials(steps=2), inputs(), tmp_path):
        assert isinstance(t.architecture, Architecture)
        assert {d for d, _ in t.architecture.answers} == {d.name for d in SPACE.problem.decisions}
