"""Jobs as a Python API: what they return, what they report, and what they open once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hwnas import recipes
from hwnas.derived import Demands
from hwnas.errors import HwnasError
from hwnas.files import read_json
from hwnas.jobs import (
    DeriveSettings,
    ExportSettings,
    ProfileSettings,
    Run,
    SearchSettings,
    derive,
    export,
    profile,
    search,
    train,
    validate,
)
from hwnas.jobs.deriving import SKIP, skip_groups
from hwnas.problem import AtMost
from hwnas.progress import Update, ignore
from tests.verbs import RECIPE


class Told:
    """Keeps what a job reports."""

    def __init__(self) -> None:
        self.bars: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Update]:
        self.bars.append(title)
        yield ignore

    def note(self, text: str, warning: bool = False) -> None:
        self.notes.append(text)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that are opened."""
    real, splits = Run.data, list[str]()

    def noted(self: Run, split: str, size: tuple[int, int] | None = None) -> object:
        splits.append(split)
        return real(self, split, size)

    monkeypatch.setattr(Run, "data", noted)
    return splits


def test_a_search_opens_its_data_once_and_prints_nothing(
    profiled: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told, run = Told(), Run(RECIPE)
    result = search(run, SearchSettings(fps=(3000.0,)), told)
    assert opened == ["train", "val", "test"]
    assert told.bars[-3:] == ["search", "what changing a decision costs", "discretisation gap"]
    assert told.notes[0].startswith("budget 0.3333 ms (3000.0 fps); random networks take ")
    assert capsys.readouterr() == ("", "")
    assert not result.complete
    assert [s["step"] for s in result.stages[0].steps] == list(range(recipes.get(RECIPE).search.steps))
    assert result.derived == run.derived()
    again = search(run, SearchSettings(fps=(3000.0,)))
    assert again.complete
    assert again.derived == result.derived


def test_results_of_the_other_jobs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(RECIPE)
    assert profile(run).complete
    assert train(run).complete
    exported, validated = export(run), validate(run)
    assert exported.complete
    assert validated.complete
    assert exported.complexity.macs == run.derived().macs
    assert validated.report.predicted_ms == read_json(finished / "report.json", "a report")["predicted_ms"]
    with pytest.raises(HwnasError, match="was made with engine 'fake', not 'torch'"):
        profile(run, ProfileSettings(engine="torch"))
    with pytest.raises(HwnasError, match="is another export of this run"):
        export(run, ExportSettings("scores"))
    assert capsys.readouterr() == ("", "")


def test_a_constraint_is_in_what_fvcore_counts(finished: Path) -> None:
    own = Run(RECIPE).derived()
    assert own.macs is not None
    result = derive(Run(RECIPE), DeriveSettings("fewer", demands=Demands(max_macs=0.9 * own.macs)))
    assert result.derived.macs is not None
    (constraint,) = result.derived.constraints
    assert constraint.predicted == result.derived.macs <= 0.9 * own.macs
    with pytest.raises(HwnasError, match="fewer/arch.json was derived with {'max_macs': .*give --to NAME"):
        derive(Run(RECIPE), DeriveSettings("fewer"))


@pytest.mark.parametrize("name", recipes.names())
def test_skips_can_be_limited_in_every_space(name: str) -> None:
    space = recipes.get(name).space
    groups = skip_groups(space)
    assert bool(groups) == any(SKIP in d.options for d in space.problem.decisions)
    problem = space.problem.with_rules(*(AtMost.of(g, SKIP, 1) for g in groups))
    rng = np.random.default_rng(0)
    for _ in range(3):
        arch = problem.draw(rng)
        for g in groups:
            assert sum(arch.get(d.name) == SKIP for d in g.decisions) <= 1
