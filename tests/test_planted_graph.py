"""The task of scripts/bench/planted_graph.py: a chain of cells that agree, and what is said of how it was found."""

from __future__ import annotations

import json
import math
import runpy
import sys
from typing import Any

import pytest

from hwnas.search.graph_logits import GraphLogits, GraphModule
from hwnas.search.logits import LogitModel, Table
from tests.conftest import ROOT

SCRIPT = str(ROOT / "scripts" / "bench" / "planted_graph.py")
MODELS = [Table(), GraphLogits()]


@pytest.fixture
def bench() -> dict[str, Any]:
    return runpy.run_path(SCRIPT)


@pytest.mark.parametrize(
    ("logits", "same", "found"),
    [(Table(), True, True), (Table(), False, True), (GraphLogits(), True, True), (GraphLogits(), False, False)],
    ids=["table, one op", "table, an op for each edge", "graph, one op", "graph, an op for each edge"],
)
def test_what_the_evidence_says_clearly_is_found(
    bench: dict[str, Any], logits: LogitModel, same: bool, found: bool
) -> None:
    """But for edges that differ, through the graph: docs/systems/gas.md says that it stands in the way there."""
    run = bench["run"]
    run.__globals__.update(EDGE=3.0, NOISE=0.1, AGREE=0.0, ALPHA_LR=0.2)
    right, probability, module = run(logits, same, cells=3, steps=60, seed=0)
    assert (right == 1.0) == found
    assert (probability > 0.8) == found
    assert isinstance(module, GraphModule) == isinstance(logits, GraphLogits)


@pytest.mark.parametrize("logits", MODELS, ids=lambda m: type(m).__name__)
def test_a_seed_is_a_search(bench: dict[str, Any], logits: LogitModel) -> None:
    first, again, other = (bench["run"](logits, True, cells=2, steps=5, seed=s)[:2] for s in (3, 3, 4))
    assert first == again != other


def test_without_steps_nothing_is_known(bench: dict[str, Any]) -> None:
    _, probability, _ = bench["run"](Table(), True, cells=2, steps=0, seed=0)
    assert probability == pytest.approx(1 / 8, rel=0.01)


def test_it_ends_with_a_line_of_json(
    bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--seeds", "1", "--cells", "3", "--steps", "10"])
    bench["main"]()
    *_, last = capsys.readouterr().out.splitlines()
    out = json.loads(last)
    assert out.pop("settings") == {"seeds": 1, "cells": 3, "steps": 10}
    assert out.keys() == {"one op", "an op for each edge"}
    for case in out.values():
        assert case.keys() == {"independent", "independent + graph"}
        for name, found in case.items():
            (right,) = found["right"]
            assert found["found"] == (right == 1.0)
            assert math.isclose(right * 3 * 5, round(right * 3 * 5), abs_tol=1e-2)  # of 3 cells of 5 edges
            assert 0 < found["probability"] < 1
            assert ("own_edge" in found) == (name == "independent + graph")
            assert 0 < found.get("own_edge", 0.2) < 1
