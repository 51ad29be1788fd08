"""What a search is said to take is what it takes, and where that is too much it is said what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from hwnas import recipes
from hwnas.data import Synthetic
from hwnas.search import memory
from hwnas.search.memory import Forecast, forecast
from hwnas.search.strategy import Inputs
from hwnas.show.console import TERMINAL, console

# In a process of its own: how high memory rises there, nothing else has raised before.
FORETELL_AND_DO = """
import json, sys
from dataclasses import replace
from hwnas import recipes
from hwnas.data import Synthetic
from hwnas.search.gradient import BilevelSearch
from hwnas.search.relax import Softmax
from hwnas.search.strategy import Inputs
from hwnas.search.memory import forecast, peak_bytes, reset_peak

name, order, evaluation = sys.argv[1:]
recipe = recipes.get(name)
config = replace(recipe.search, warmup=0, order=order, evaluation=evaluation, batch=8, crop=(160, 208))
config = replace(config, relaxation=Softmax())  # a sampled path takes as much as what was drawn
data = Synthetic("train", config.crop, length=4)
foretold = forecast(config, Inputs(recipe.space, data))
reset_peak()
search = BilevelSearch(recipe.space, config, data)
built = peak_bytes()
for _ in range(2):
    search.advance()
print(json.dumps([foretold.peak_bytes, peak_bytes(), built]))
"""


@pytest.mark.parametrize(
    ("recipe", "order", "evaluation"),
    [
        pytest.param("darts-quick", "first", "fast", marks=pytest.mark.slow),
        pytest.param("darts-quick", "second", "lean", marks=pytest.mark.slow),
        pytest.param("darts-quick", "first", "plain", marks=pytest.mark.slow),
        pytest.param("autodeeplab-quick", "first", "lean", marks=pytest.mark.slow),
    ],
)
def test_a_search_takes_what_was_foretold(recipe: str, order: str, evaluation: str) -> None:
    command = [sys.executable, "-c", FORETELL_AND_DO, recipe, order, evaluation]
    ratios = []
    for _ in range(3):  # how full pages are differs between processes by more than a tenth: the median counts
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        foretold, peak, built = json.loads(said)
        assert peak - built > 100 * 2**20  # the steps make up much of it
        ratios.append((foretold - built) / (peak - built))
    assert median(ratios) == pytest.approx(1, rel=0.15), ratios


RECIPE = recipes.get("darts-tiny")
DATA = Synthetic("train", RECIPE.search.scale.size, length=4)


def test_a_container_allows_less_than_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMITS", (tmp_path / "not there", limit))
    limit.write_text("max\n")
    assert memory._free_bytes() > 2**28
    limit.write_text(f"{2**28}\n")
    assert memory._free_bytes() == 2**28


def test_where_the_system_does_not_tell_nothing_is_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path / "not there")
    assert forecast(RECIPE.search, Inputs(RECIPE.space, DATA)) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "cannot be forecast"),
        (Forecast(3 * 2**30, 4 * 2**30), "about 3.0 GiB of 4.0 that are free"),
        (Forecast(5 * 2**30, 4 * 2**30), "the system may end the search"),
    ],
)
def test_what_is_said(found: Forecast | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "forecast", lambda *_: found)
    with console.capture() as captured:
        memory.report_memory(RECIPE.search, Inputs(RECIPE.space, DATA), TERMINAL)
    assert said in captured.get()
    assert ("may end the search" in captured.get()) == (found is not None and not found.enough)
