"""How long it still takes: forecasts on replayed slow machines, bounds on the whole, and what displays make of them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hwnas import recipes
from hwnas.jobs import ProfileSettings, profile, profiling
from hwnas.jobs.profiling import forecast_s
from hwnas.latency.table import LatencyTable
from hwnas.profile.derived import LEFT_OUT
from hwnas.progress import WINDOW_S, Eta, Update, duration, span
from hwnas.run import Run
from hwnas.runtime import __main__ as command_line
from hwnas.runtime.measuring import forecast
from hwnas.runtime.measuring.forecast import Forecast, Moment, visits_needed
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan
from hwnas.runtime.measuring.results import History
from hwnas.runtime.measuring.work import Progress, measure_plan
from hwnas.show import console
from tests.slow_machine import LOAD_S, SPEED, begin, slow_plan
from tests.verbs import RECIPE

RULE = StopRule()
ENGINE = "tests.slow_machine:Simulated"


# --- replayed machines


class Told(NamedTuple):
    """What was told at a moment: seconds since the start, the estimate, the bound, and how many visits."""

    at_s: float
    left_s: float
    most_s: float
    note: str
    done: int
    total: int


class Replay(NamedTuple):
    """One run on a machine in virtual time."""

    took_s: float
    told: list[Told]
    slow_share: float
    share: float


def replay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, slow_share: float, seed: int, minutes: float | None = None
) -> Replay:
    """Measure several hundred ops and some fifty networks on a machine that is slow such a share of the time."""
    clock, told, bounds = begin(monkeypatch, slow_share, seed), list[Told](), [0.0]
    at_most = forecast.at_most

    def noted(left: forecast.Left) -> str:
        bounds.append(left.most_s)
        return at_most(left)

    monkeypatch.setattr("hwnas.runtime.measuring.work.at_most", noted)

    def tell(p: Progress) -> None:
        assert p.left_s is not None
        told.append(Told(clock.now_s - 1000, p.left_s, bounds[-1], p.note, p.done, p.total))

    measure_plan(slow_plan(folder), ENGINE, stop=RULE, on_record=tell, minutes=minutes)
    took_s = clock.now_s - 1000
    return Replay(took_s, told, clock.slow_s / took_s, slow_share)


# Share of the time that a machine is slow, and the seed of when. Of six seeds each, all machines that are quiet or slow
# 30 % of the time are foretold within 30 %, of those slow 60 % four are: not seeds 2 and 3, whose first third is unlike
# the rest.
MACHINES = [
    pytest.param((share, seed), id=f"slow-{share:.0%}-{seed}", marks=() if seed == 2 else pytest.mark.slow)
    for share in (0.0, 0.3, 0.6)
    for seed in range(1, 7)
]
WITHIN = {0.0: 0.3, 0.3: 0.3, 0.6: 0.45}


@pytest.fixture(scope="module", params=MACHINES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    with pytest.MonkeyPatch.context() as patch:
        yield replay(tmp_path_factory.mktemp("slow"), patch, *request.param)


def test_from_a_third_on_the_end_is_foretold(run: Replay) -> None:
    said = np.array([(t.at_s + t.left_s) / run.took_s for t in run.told if t.at_s >= run.took_s / 3])
    assert len(said) > 3000
    within = WITHIN[run.share]
    assert 1 - within <= said.min() <= said.max() <= 1 + within


def test_the_bound_holds_always(run: Replay) -> None:
    assert all(t.most_s >= t.left_s for t in run.told if t.note)
    assert all(t.at_s + t.most_s >= run.took_s for t in run.told if t.note)


def test_nothing_is_said_to_be_over_long_before_it_is(run: Replay) -> None:
    over = [t.at_s for t in run.told if t.left_s < 1]
    assert over
    assert run.took_s - over[0] < 10
    assert all(t.total > t.done and t.left_s > 0 for t in run.told[:-1])
    last = run.told[-1]
    assert (last.left_s, last.note, last.total) == (0, "", last.done)


def test_it_is_said_why_it_goes_on(run: Replay) -> None:
    assert run.told[0].note.startswith("each is visited at least 30 times; at most ")
    late = next(t for t in run.told if t.at_s >= 0.9 * run.took_s)
    assert re.fullmatch(r"(\d+ networks?)?( and )?(\d+ ops?)? (is|are) not precise yet; at most \d+ (s|min)", late.note)


def test_the_range_before_the_start_holds_the_time_it_takes(run: Replay, tmp_path: Path) -> None:
    low_s, high_s = forecast_s(load_plan(slow_plan(tmp_path)), RULE, load_s=LOAD_S["op"])
    assert low_s <= run.took_s / SPEED * 1.25
    assert run.took_s / SPEED <= high_s


def test_a_bound_on_minutes_bounds_the_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replay(tmp_path, monkeypatch, 0.3, 1, minutes=2)
    assert 110 < run.took_s < 121
    for t in run.told:
        assert t.at_s + t.left_s < 122
        assert t.at_s + t.most_s < 122
    third = [t.at_s + t.left_s for t in run.told if t.at_s > 40]
    assert min(third) > 0.9 * run.took_s


def test_a_run_that_goes_on_knows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time was for the first process: the second starts with its visits, and learns its speed again."""
    whole = replay(tmp_path / "whole", monkeypatch, 0.0, 1)
    with monkeypatch.context() as patch:
        replay(tmp_path / "halves", patch, 0.0, 1, minutes=2.6)
    rest = replay(tmp_path / "halves", monkeypatch, 0.0, 2)
    assert rest.took_s < 0.7 * whole.took_s
    early = next(t for t in rest.told if t.at_s > 0.2 * rest.took_s)
    assert early.at_s + early.left_s == pytest.approx(rest.took_s, rel=0.3)


# --- the parts of a forecast


def test_visits_follow_from_the_interval() -> None:
    rng = np.random.default_rng(0)
    noise = np.abs(rng.standard_normal(400))

    def needed(n: int, sigma: float, stop: StopRule = RULE, net: bool = True) -> float:
        return visits_needed((1 + sigma * noise[:n]).tolist(), stop, net)

    assert visits_needed([], RULE, True) == visits_needed([1.0], RULE, True) == float("inf")
    assert visits_needed([1.0] * 5, RULE, True) == 1
    assert needed(30, 0.04) == pytest.approx(4 * needed(30, 0.02), rel=0.15)  # the square of the width
    assert needed(30, 0.08, net=False) == pytest.approx(needed(30, 0.04), rel=0.15)  # ops may be twice as wide
    unsettled = replace(RULE, net_stable=False)
    assert 2 * RULE.min_visits < needed(30, 0.3) < RULE.max_visits < needed(30, 0.3, unsettled)


def test_the_spread_over_time_counts(tmp_path: Path) -> None:
    plan = load_plan(slow_plan(tmp_path, ops=4, networks=1))
    left = Forecast(plan.entries, History([], plan), min_s=45, load_s=0.02).left(Moment(0, 0, 0.0))
    assert 45 <= left.seconds < 47
    assert left.most_s >= left.seconds
    assert Forecast(plan.entries, History([], plan), min_s=0, load_s=0.02).left(Moment(0, 0, 0.0)).seconds < 10


# --- all of a profile


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time as `profile` sees it, in seconds: it passes only where a test says so."""
    now = [time.monotonic()]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(profiling, "time", Clock)
    return now


class Passing:
    """Reports whose bars take time: seconds for each update of the bar with this title."""

    def __init__(self, now: list[float], each_s: dict[str, float]) -> None:
        self.now, self.each_s, self.notes, self.bars = now, each_s, list[str](), list[str]()

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Update]:
        self.bars.append(title)

        def update(done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
            self.now[0] += self.each_s.get(title, 0.0)

        yield update

    def note(self, text: str, warning: bool = False) -> None:
        self.notes.append(text)


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Name of the folder and bound in minutes of all that is measured."""
    seen, supervise = list[tuple[str, float]](), profiling.supervise

    def noted(folder: Path, *args: object, minutes: float, **_: object) -> Path:
        seen.append((folder.parent.name, minutes))
        return supervise(folder, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(profiling, "supervise", noted)
    return seen


def test_minutes_bound_plan_and_derived_networks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticking: list[float], bounds: list[tuple[str, float]]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipes.get(RECIPE)
    both = replace(recipe, calibration=replace(recipe.calibration, refit=2))
    told = Passing(
        ticking,
        {"plan: trace the scales": 20.0, "measure": 0.5, "derive networks to fit the table on": 1.0},
    )
    start_s = ticking[0]
    run = Run(RECIPE)
    run.ask(recipe=both)
    result = profile(run, ProfileSettings(engine="fake", minutes=10), told)
    assert "fake in fp32; takes a moment, at most 10 min in all: what matters most comes first" in told.notes[0]
    traced_min = 20 * (1 + len(both.scales())) / 60
    assert bounds[0] == (RECIPE, pytest.approx(0.85 * 10 - traced_min))
    assert [name for name, _ in bounds[1:]] == ["derived", "derived"]
    before_min = (ticking[0] - start_s) / 60
    assert bounds[2][1] == pytest.approx(10 - before_min)  # the last has what is left
    assert bounds[1][1] == pytest.approx((1 - 0.15 / 2) * 10 - before_min, abs=0.1)
    assert result.table.unsettled == []
    assert told.bars == [
        "plan: trace the scales",
        "plan: trace networks",
        "plan: write files",
        "measure",
        "make the table",
        "derive networks to fit the table on",
        "plan derived networks: write files",
        "measure derived networks",
        "derive networks to check the table on",
        "plan derived networks: write files",
        "measure derived networks",
    ]


def test_networks_that_there_is_no_time_to_derive_are_left_out_and_derived_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticking: list[float], bounds: list[tuple[str, float]]
) -> None:
    monkeypatch.chdir(tmp_path)
    slow = Passing(ticking, {"derive networks to check the table on": 40.0})
    run = Run(RECIPE)
    run.ask(recipe=recipes.get(RECIPE))
    result = profile(run, ProfileSettings(engine="fake", minutes=1), slow)
    assert len(bounds) == 1
    assert result.table.unsettled == [LEFT_OUT]
    assert "derived" not in result.table.report
    again = profile(Run(RECIPE), ProfileSettings(minutes=9), Passing(ticking, {})).table
    assert again.unsettled == []
    assert again.report["derived"]["n"] >= 1
    assert LatencyTable.load(Path("runs") / RECIPE / "table.json").unsettled == []


# --- displays


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_an_estimate_that_is_handed_over_counts_down_and_never_ends_before_the_work() -> None:
    clock = Clock()
    eta = Eta(clock)
    assert eta.left_s() is None
    eta.told(1, 10, 100.0)
    assert eta.text() == "2 min left"
    clock.now_s += 30
    assert eta.left_s() == 70
    clock.now_s += 69
    assert eta.left_s() == 99  # it is late by now: what has taken so long may take as long again
    eta.told(9, 10, 0.2)
    assert eta.text() == "under 1 s left"
    eta.told(10, 10, 0.0)
    assert eta.text() == ""


def test_without_an_estimate_the_pace_is_that_of_recent_steps() -> None:
    clock = Clock()
    eta = Eta(clock)
    clock.now_s += 20  # what comes before the first step is no step
    eta.told(1, 354)
    assert eta.left_s() is None
    clock.now_s += 0.02
    eta.told(2, 354)
    assert eta.left_s() == pytest.approx(352 * 0.02)
    for done in range(3, 200):
        clock.now_s += 0.02
        eta.told(done, 354)
    for done in range(200, 300):
        clock.now_s += 2
        eta.told(done, 354)
    assert eta.left_s() == pytest.approx(55 * 2)  # by the last minute; over all it would be 55 x 0.7 s
    assert WINDOW_S < 100 * 2


def test_few_long_steps_and_phases_that_count_anew_have_a_pace() -> None:
    clock = Clock()
    eta = Eta(clock)
    for done in range(4):
        eta.told(done, 6)
        clock.now_s += 100
    assert eta.left_s() == pytest.approx(200)  # three steps of 100 s left, 100 s after the last update
    eta.told(0, 4)
    assert eta.left_s() is None
    clock.now_s += 1
    eta.told(1, None)
    assert eta.left_s() is None  # of an unknown total


def test_times_as_people_say_them() -> None:
    assert [duration(s) for s in (0, 0.99, 1, 47.4, 99.4, 100, 1020, 7199, 7500)] == [
        "under 1 s", "under 1 s", "1 s", "47 s", "99 s", "2 min", "17 min", "2 h 0 min", "2 h 5 min",
    ]  # fmt: skip
    assert [span(*s) for s in ((240, 720), (12, 40), (0.1, 0.4), (290, 310), (20, 130))] == [
        "4 to 12 min", "12 to 40 s", "1 s", "5 min", "1 to 2 min",
    ]  # fmt: skip


def test_lines_show_the_estimate_and_the_reason_where_there_is_no_terminal() -> None:
    clock = Clock()
    lines = console._Lines("measure", None, clock)
    with console.console.capture() as captured:
        for done in range(1, 13):
            clock.now_s += 5
            lines(done, "30 networks are not precise yet; at most 17 min", 12, 500.0 if done < 12 else 0.0)
    assert captured.get().splitlines() == [
        "measure 3/12, 8 min left, 30 networks are not precise yet; at most 17 min",
        "measure 6/12, 8 min left, 30 networks are not precise yet; at most 17 min",
        "measure 9/12, 8 min left, 30 networks are not precise yet; at most 17 min",
        "measure 12/12, 30 networks are not precise yet; at most 17 min",
    ]


def test_lines_never_say_zero_while_work_goes_on() -> None:
    clock = Clock()
    lines = console._Lines("search", 100, clock)
    with console.console.capture() as captured:
        for done in (0, 50, 99, 99, 99):
            clock.now_s += 20
            lines(done, "loss 1.2")
    said = captured.get().splitlines()
    assert said[0] == "search 0/100, loss 1.2"
    assert said[1] == "search 50/100, 20 s left, loss 1.2"
    assert not any(" 0 s left" in line for line in said)


def test_a_bar_on_a_terminal_shows_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = console.Console(force_terminal=True, width=160, record=True)
    monkeypatch.setattr(console, "console", terminal)
    with terminal.capture() as captured, console.bar("measure", None) as update:
        update(3, "30 networks are not precise yet; at most 17 min", 12, 500.0)
    assert "3/12" in captured.get()
    assert "8 min left" in captured.get()
    assert "30 networks are not precise yet; at most 17 min" in captured.get()


def test_the_runtime_shows_the_estimate_on_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "LINE_S", 0.0)
    reporter = command_line._Reporter()
    record = {"key": "a", "status": "ok", "latency_ms": [1.0]}
    reporter(Progress(8, 9, record, 95.4, "2 networks are not precise yet; at most 3 min"))
    reporter(Progress(9, 9, record, 0.0))
    assert capsys.readouterr().out.splitlines() == [
        "[8/9] a  1.000 ms  95 s left; 2 networks are not precise yet; at most 3 min",
        "[9/9] a  1.000 ms",
    ]
