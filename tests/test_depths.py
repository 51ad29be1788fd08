"""A recipe of several depths: what is profiled, derived and trained, on the fake engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hwnas import recipes
from hwnas.latency import LatencyTable
from hwnas.profile import Calibration
from hwnas.recipes import base
from hwnas.run import Run
from tests.verbs import done


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The recipe darts-tiny with two depths, under another name."""
    tiny = recipes.get("darts-tiny")
    calibration = Calibration(fit=4, test=3, derived=4, isolated=False)
    made = replace(tiny, name="deep", depths=(3, 5), depth_utility=0.5, widths=(4,), calibration=calibration)
    monkeypatch.setitem(base._RECIPES, "deep", lambda: made)
    monkeypatch.chdir(tmp_path)
    return "deep"


def test_scales_are_widths_and_depths_narrowest_and_shallowest_first() -> None:
    tiny = recipes.get("darts-tiny")
    assert [(s.channels, s.cells) for s in tiny.scales()] == [(4, 3), (8, 3)]
    deep = replace(tiny, depths=(2, 5))
    assert [(s.channels, s.cells) for s in deep.scales()] == [(4, 2), (4, 5), (8, 2), (8, 5)]
    assert {s.size for s in deep.scales()} == {(48, 64)}


@pytest.mark.slow
def test_a_table_covers_all_depths_and_the_derivation_chooses_among_them(deep: str) -> None:
    done("profile", deep, "--engine", "fake")
    table = LatencyTable.load(Path("runs/deep/table.json"))
    nets = [n.key for n in table.nets]
    assert len(set(nets)) == len(nets)
    assert {key.rpartition("-d")[2] for key in nets} == {"3", "5"}
    done("search", deep, "--fps", "1000")
    made = json.loads(Path("runs/deep/arch.json").read_text())
    assert [c["scale"]["cells"] for c in made["candidates"]] == [3, 5]
    assert made["scale"]["cells"] == 5  # nothing is lost under this budget, so the deeper one wins
    done("derive", deep, "--pareto", "6")
    points = json.loads(Path("runs/deep/pareto.json").read_text())["points"]
    assert (points[0]["scale"]["cells"], points[-1]["scale"]["cells"]) == (3, 5)
    done(*points[0]["command"].split()[1:], "--to", "tight")
    assert Run("tight").derived().scale.cells == 3
    assert done("train", "tight").following == "hwnas export tight"
