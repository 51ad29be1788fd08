"""What a restructuring must leave as it was is as it was recorded: see `tests/unchanged.py`."""

from __future__ import annotations

import numpy as np
import pytest

from tests import unchanged

MANY = 12  # lines that a failure shows


def cases(equal: bool) -> list[object]:
    """Return names of cases as parameters; those that take long are marked."""
    names = [name for name in unchanged.CASES if (name in unchanged.EQUAL) == equal]
    return [pytest.param(name, marks=[pytest.mark.slow] * unchanged.is_slow(name)) for name in names]


def compare(name: str) -> None:
    """Hold what a case gives now against what was recorded."""
    found = list(unchanged.differences(unchanged.recorded()[name], unchanged.CASES[name]()))
    if found:
        more = f"\n({len(found) - MANY} more)" if len(found) > MANY else ""
        pytest.fail("\n".join([f"{name}:", *found[:MANY]]) + more, pytrace=False)


def test_every_case_is_recorded_and_every_record_is_a_case() -> None:
    assert list(unchanged.recorded()) == list(unchanged.CASES)


def test_probabilities_add_up_to_one_and_closed_options_have_none() -> None:
    for alphas in unchanged.ALPHAS.values():
        probs = unchanged.matrices(alphas)
        for name, _, _, closed in unchanged.groups_of(unchanged.space_of(alphas.recipe)):
            np.testing.assert_allclose(probs[name].sum(axis=1), 1.0, rtol=1e-12)
            assert not probs[name][np.array(closed)].any()


@pytest.mark.parametrize("name", cases(equal=False))
def test_it_is_as_it_was(name: str) -> None:
    compare(name)


@pytest.mark.parametrize("name", cases(equal=True))
def test_of_networks_that_are_equally_good_it_is_the_same_one(name: str) -> None:
    """Stricter than what is promised: only the order of the program's rows says which one it is."""
    compare(name)


class TestDifferences:
    """The comparison itself: it sees what differs and says where."""

    @pytest.mark.parametrize(
        ("was", "now", "said"),
        [
            ({"a": [1.0, 2.0]}, {"a": [1.0, 2.0 + 1e-8]}, "a: 1: 2.0 was recorded, this is 2.00000001"),
            ({"a": "01"}, {"a": "10"}, "a: '01' was recorded, this is '10'"),
            ({"a": 1, "b": 2}, {"a": 1}, "b: is gone"),
            ({"a": 1}, {"a": 1, "b": 2}, "b: is new"),
            ([1], [1, 2], "[1] was recorded, this is [1, 2]"),
            (None, 1.0, "None was recorded, this is 1.0"),
            (3, 4, "3 was recorded, this is 4"),
        ],
    )
    def test_what_differs_is_named(self, was: object, now: object, said: str) -> None:
        assert list(unchanged.differences(was, now)) == [said]
        assert not list(unchanged.differences(was, was))

    def test_numbers_may_differ_by_rounding(self) -> None:
        assert not list(unchanged.differences([3.0], [3.0 * (1 + 1e-10)]))

    @pytest.mark.parametrize(("now", "line"), [(["x", "z"], 1), (["x"], 1), (["x", "y", "z"], 2), (["y", "x"], 0)])
    def test_the_first_line_that_differs_is_shown(self, now: list[str], line: int) -> None:
        was = unchanged.written(unchanged.Lines(["x", "y"], whole=True))
        assert not list(unchanged.differences(was, unchanged.Lines(["x", "y"], whole=True)))
        counted, shown = unchanged.differences(was, unchanged.Lines(now, whole=True))
        assert f"2 lines of digest {was['sha256'][:12]} were recorded" in counted
        assert shown.startswith(f"line {line} was")
