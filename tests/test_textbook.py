"""What search steps are measured against computes the same: the forms of scripts/bench/textbook*.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("search_step")


@pytest.mark.parametrize("name", ["tiny", "tiny-trellis", "tiny-cas", "tiny-gas"])
def test_supernets_are_the_textbooks(bench: Any, name: str, one_thread: None) -> None:
    """In float64, where gradients at kinks are not a matter of rounding: the logits of every group among them."""
    same = bench.equality(bench.CASES[name])
    assert same["fp64_scores"] < 1e-12
    assert same["fp64_alpha_gradients"] < 1e-11


@pytest.mark.parametrize("name", ["tiny-cas", "tiny-gas"])
def test_both_can_be_timed(bench: Any, name: str, one_thread: None) -> None:
    case = bench.CASES[name]
    for mode in ("textbook", "fast"):
        step = bench.step_of(case, 1, mode)
        assert bench.seconds(step) > 0
        step()
    assert bench.forward_macs(case) > 1e5
