"""How probabilities went over the steps of a search: what the log keeps of them, and the picture of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hwnas import optional, recipes
from hwnas.data.synthetic import Synthetic
from hwnas.errors import MissingExtra
from hwnas.problem import Architecture
from hwnas.search import gradient
from hwnas.search.graph_logits import GraphLogits
from hwnas.search.guards import Guards
from hwnas.search.logits import Drawable, Table
from hwnas.show import drawings
from hwnas.show.drawings import picture
from hwnas.show.searches import History, draw_search
from hwnas.spaces import Scale, Space, autodeeplab_space, gas_space

SPACES = {
    **{name: recipes.get(name).space for name in ("darts-tiny", "cas-tiny", "gas-tiny", "autodeeplab-tiny")},
    "gas of 14 cells": gas_space(Scale(4, 14, (64, 64)), 5),
    "autodeeplab of 12 layers": autodeeplab_space(Scale(4, 12, (64, 64)), 5),
}


def history(space: Space, steps: int = 9) -> tuple[History, Architecture]:
    """Return random probabilities, and what they would derive."""
    rng = np.random.default_rng(0)

    def walk(shape: tuple[int, ...], closed: NDArray[np.bool_]) -> NDArray[np.float64]:
        p = np.exp(rng.standard_normal((steps, *shape)).cumsum(0)) * ~closed
        out: NDArray[np.float64] = p / p.sum(-1, keepdims=True)
        return out

    by_group = {g.name: walk(g.shape, np.array(g.closed)) for g in space.groups}
    last = space.problem.probabilities({k: torch.from_numpy(p[-1]) for k, p in by_group.items()})
    return History(tuple(range(0, 5 * steps, 5)), by_group), space.problem.strongest(last)


def texts(figure: Any) -> list[str]:
    return [t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")) if t.get_text()]


@pytest.mark.parametrize("name", SPACES)
def test_every_decision_is_drawn_with_its_answer(name: str) -> None:
    space = SPACES[name]
    known, arch = history(space)
    figure = Figure(layout="constrained")
    draw_search(figure, known, space.problem, tuple(known.probabilities), arch)
    said = texts(figure)
    for g in space.groups:
        as_maps = f"{g.name}: probability over steps" in said
        assert as_maps != (f"{g.name}: probability of each option over steps; bold: derived" in said)
        for d in g.decisions:
            answer, own = arch.get(d.name), d.name.removeprefix(f"{g.name}/")
            dropped = answer in d.closed or (answer == "none" and "gas" not in name)
            assert dropped or f"{own}: {answer}" in said
            assert not dropped or as_maps or f"{own}: dropped" in said
    assert figure.get_size_inches()[1] < 30


def test_lines_are_the_probabilities_and_that_of_the_answer_is_bold() -> None:
    space = SPACES["darts-tiny"]
    known, arch = history(space)
    group = space.groups[0]
    figure = Figure()
    draw_search(figure, known, space.problem, (group.name,), arch)
    panels = {a.get_title(): a.get_lines()[: len(group.options)] for a in figure.findobj(match=is_axes)}
    for row, d in enumerate(group.decisions):
        answer, own = arch.get(d.name), d.name.removeprefix(f"{group.name}/")
        lines = panels[f"{own}: {'dropped' if answer == 'none' else answer}"]
        for k, line in enumerate(lines):
            np.testing.assert_array_equal(line.get_ydata(), known.probabilities[group.name][:, row, k])
            np.testing.assert_array_equal(line.get_xdata(), known.steps)
            assert (line.get_linewidth() > 2) == (answer != "none" and d.options[k] == answer)


def is_axes(artist: object) -> bool:
    return hasattr(artist, "get_lines") and hasattr(artist, "get_title")


def test_the_graph_shows_which_edge_reads_which() -> None:
    space = SPACES["gas-tiny"]
    module = GraphLogits().build(space.groups, seed=0)
    assert isinstance(module, Drawable)
    assert not isinstance(Table().build(space.groups, seed=0), Drawable)
    shown = module.drawings()
    assert [d.title for d in shown] == ["cell1 reads cell0", "cell2 reads cell1"]
    known, arch = history(space)
    figure = Figure()
    drawn = replace(known, drawings=tuple(asdict(d) for d in shown))
    draw_search(figure, drawn, space.problem, tuple(known.probabilities), arch)
    said = texts(figure)
    for d, adjacency in zip(shown, module.adjacency().values(), strict=True):
        assert d.rows == d.columns == ("0-2", "1-2", "0-3", "1-3", "2-3")
        np.testing.assert_allclose(d.values, adjacency.detach().numpy())
        np.testing.assert_allclose(np.sum(d.values, axis=1), 1, rtol=1e-6)
        assert d.title in said


class TestLog:
    TINY = recipes.get("gas-tiny")

    def lines(self, steps: int, **settings: Any) -> tuple[list[Mapping[str, Any]], Mapping[str, NDArray[Any]]]:
        config = replace(self.TINY.search, steps=steps, warmup=1, **settings)
        search = gradient.BilevelSearch(self.TINY.space, config, Synthetic("train", self.TINY.search.size, length=4))
        out = []
        while not search.finished:
            out.append({k: v for k, v in search.advance().items() if not isinstance(v, torch.Tensor)})
        return json.loads(json.dumps(out)), search.findings().probabilities

    def test_snapshots_are_few_and_the_last_is_what_was_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gradient, "SNAPSHOTS", 3)
        lines, found = self.lines(8)
        assert [line["step"] for line in lines if "probabilities" in line] == [0, 3, 6, 7]
        assert [line["step"] for line in lines if "drawings" in line] == [7]
        known = History.of(lines)
        assert known is not None
        assert known.steps == (0, 3, 6, 7)
        assert known.probabilities.keys() == found.keys()
        for name, p in known.probabilities.items():
            np.testing.assert_allclose(p[-1], found[name], atol=0.5 * 10.0**-gradient.DIGITS + 1e-7)
            assert not np.allclose(p[0], p[-1], atol=1e-3)
        assert len(known.drawings) == len(found) - 1

    def test_a_search_that_ends_early_has_its_last_step(self) -> None:
        lines, _ = self.lines(400, guards=Guards(stable_checks=1, check_every=1))
        assert [line["step"] for line in lines if "probabilities" in line] == [0, 1]
        assert len(lines) == 2
        assert "drawings" in lines[1]

    def test_no_more_than_what_a_picture_needs(self) -> None:
        for steps in (1, 199, 200, 201, 1000, 59_480):
            every = math.ceil(steps / gradient.SNAPSHOTS)
            assert len(range(0, steps, every)) <= gradient.SNAPSHOTS

    def test_of_a_log_without_probabilities_there_is_nothing_to_draw(self) -> None:
        assert History.of([]) is None
        assert History.of([{"step": 0, "train_loss": 1.0}]) is None


def test_without_matplotlib_the_summary_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(module: str, extra: str) -> Any:
        raise MissingExtra(f"{module} is not installed; run: pip install 'hwnas[{extra}]'")

    monkeypatch.setattr(drawings, "require", missing)
    assert optional.require("json", "report") is json
    said = picture(tmp_path / "search.svg", lambda figure: None)
    assert said == "none: matplotlib.figure is not installed; run: pip install 'hwnas[report]'"
    assert not (tmp_path / "search.svg").exists()
