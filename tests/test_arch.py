"""Decisions, groups, and architectures as data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import HwnasError
from hwnas.problem import Architecture, Decision, Group

OPTIONS = ("none", "skip_connect", "sep_conv_3x3")
A, B, C = (Decision(name, OPTIONS) for name in ("normal/0-2", "normal/1-2", "reduce/0-2"))
WHOLE = {"normal/0-2": "none", "normal/1-2": "skip_connect", "reduce/0-2": "sep_conv_3x3"}

texts = st.text(max_size=8)


@pytest.mark.parametrize("options", [(), ("a", "a"), ("a", "b", "a")])
def test_a_decision_needs_distinct_options(options: tuple[str, ...]) -> None:
    with pytest.raises(HwnasError, match="'normal/0-2' needs distinct options, at least one"):
        Decision("normal/0-2", options)


def test_a_group_is_one_matrix() -> None:
    group = Group("normal", (A, B))
    assert group.options == OPTIONS
    assert group.shape == (2, 3)
    for decisions in ((), (A, Decision("normal/2-3", OPTIONS[::-1]))):
        with pytest.raises(HwnasError, match="group 'normal' needs at least one decision, all with the same options"):
            Group("normal", decisions)


@given(st.dictionaries(texts, texts), st.randoms(use_true_random=False))
def test_answers_make_the_architecture_whatever_their_order(answers: dict[str, str], random: Any) -> None:
    pairs = list(answers.items())
    random.shuffle(pairs)
    one, other = Architecture.of("chain", answers), Architecture("chain", tuple(pairs))
    assert one == other
    assert hash(one) == hash(other)
    assert one.id == other.id
    assert all(one.get(d) == o for d, o in pairs)


@given(st.dictionaries(texts, texts), st.dictionaries(texts, texts))
def test_equal_ids_are_equal_answers(left: dict[str, str], right: dict[str, str]) -> None:
    one, other = Architecture.of("chain", left), Architecture.of("chain", right)
    assert (one.id == other.id) == (left == right)
    assert (one == other) == (left == right)


@given(texts, st.dictionaries(texts, texts))
def test_json_round_trip(space: str, answers: dict[str, str]) -> None:
    arch = Architecture.of(space, answers)
    again = Architecture.from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert again.id == arch.id


def test_the_id_never_changes() -> None:
    """Files of a run are named by it: another id would orphan them."""
    assert Architecture.of("chain", WHOLE).id == "1400ac7a7f82"
    assert Architecture.of("other", WHOLE).id != Architecture.of("chain", WHOLE).id


def test_a_decision_is_answered_once() -> None:
    with pytest.raises(HwnasError, match="answers each decision once"):
        Architecture("chain", (("a", "x"), ("a", "y")))


def test_an_open_decision_has_no_answer() -> None:
    assert Architecture.of("chain", {"a": "x"}).get("b") is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "an architecture of schema 1 was expected, got schema 'list'"),
        (None, "got schema 'NoneType'"),
        ({}, "got schema None"),
        ({"schema": 2, "space": "chain", "answers": {}}, "got schema 2"),
        ({"schema": 1, "space": "chain"}, "needs 'answers': a mapping from decision to option"),
        ({"schema": 1, "space": "chain", "answers": [["a", "x"]]}, "needs 'answers'"),
        ({"schema": 1, "space": "chain", "answers": {"a": 3}}, "needs 'answers'"),
    ],
)
def test_what_is_no_architecture_is_refused(data: object, message: str) -> None:
    with pytest.raises(HwnasError, match=message):
        Architecture.from_json(data)


def test_check_accepts_complete_and_on_request_partial_answers() -> None:
    Architecture.of("chain", WHOLE).check([A, B, C])
    partial = Architecture.of("chain", {"normal/0-2": "none"})
    partial.check([A, B, C], partial=True)
    with pytest.raises(HwnasError, match="2 decisions are open, the first is 'normal/1-2'; answer them all"):
        partial.check([A, B, C])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"normal/0-3": "none"}, "unknown decision 'normal/0-3'; did you mean 'normal/0-2'"),
        ({"normal/0-2": "sep_conv_3x4"}, "unknown option of normal/0-2 'sep_conv_3x4'; did you mean 'sep_conv_3x3'"),
    ],
)
def test_check_refuses_strangers_and_suggests_the_nearest(answers: dict[str, str], message: str) -> None:
    for partial in (True, False):
        with pytest.raises(HwnasError, match=message):
            Architecture.of("chain", answers).check([A, B, C], partial)
