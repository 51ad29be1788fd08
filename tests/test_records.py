"""Stored records: what is read is what was written, and what cannot be read is said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from hwnas import recipes
from hwnas.derived import Derived
from hwnas.errors import HwnasError
from hwnas.learn import TrainConfig
from hwnas.problem import Architecture
from hwnas.recipes import Recipe, base
from hwnas.recipes.base import changed_settings
from hwnas.records import Difference, File, decode, encode, save, signed, stored, text_of
from hwnas.run import FILE as RUN_FILE
from hwnas.run import Run, Settings
from hwnas.search.config import SearchConfig
from hwnas.search.costs import CostConfig
from hwnas.search.relax import GumbelSoftmax, SinglePath, Temperature
from hwnas.spaces import Scale
from tests.verbs import RECIPE, done, edit, hwnas


class Shape(Protocol):
    """A choice of classes."""

    def area(self) -> float:
        """Return it."""


@stored("test-square")
@dataclass(frozen=True)
class Square:
    side: float = 1.0

    def area(self) -> float:
        return self.side**2


@dataclass(frozen=True)
class Nameless:
    def area(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Inner:
    n: int
    pair: tuple[int, str] = (0, "")


@stored("test-outer", version=2)
@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    mode: Literal["a", "b"] = "a"
    shapes: tuple[Shape, ...] = ()
    weight: float | Square = 1.0
    more: Mapping[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None
    nothing: float | None = None


FILE = File("an outer", "make it anew", lambda data: {"name": "old", **data})
WHOLE = Outer(
    "x", Inner(3, (1, "y")), "b", (Square(2.0),), Square(3.0), {"k": Inner(1)}, Inner(2), 0.5
)  # nothing is left at its default


@pytest.mark.parametrize("record", [WHOLE, Outer("x", Inner(1)), replace(WHOLE, weight=2.5, nothing=None)])
def test_what_is_read_is_what_was_written(record: Outer, tmp_path: Path) -> None:
    for indent in (None, 1):
        save(tmp_path / "a.json", record, indent)
        assert FILE.load(tmp_path / "a.json", Outer) == record


def test_objects_say_their_class_only_where_there_is_a_choice() -> None:
    data = encode(WHOLE, Outer)
    assert data["inner"] == {"n": 3, "pair": [1, "y"]}
    assert data["maybe"] == {"n": 2, "pair": [0, ""]}
    assert data["shapes"] == [{"type": "test-square", "side": 2.0}]
    assert data["weight"] == {"type": "test-square", "side": 3.0}
    assert "nothing" not in encode(replace(WHOLE, nothing=None), Outer)


def test_a_class_without_a_name_is_not_stored() -> None:
    with pytest.raises(HwnasError, match=r"Nameless has no name that files know it by: put @stored\('...'\)"):
        encode(replace(WHOLE, shapes=(Nameless(),)), Outer)
    with pytest.raises(HwnasError, match="a set cannot be stored"):
        encode(replace(WHOLE, name={1}), Outer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": 1}, "name should be of type str, got '1'"),
        ({"mode": "c"}, r"mode should be \('a', 'b'\), got 'c'"),
        ({"inner": {"n": True}}, "inner.n should be of type int, got 'True'"),
        ({"inner": {"pair": [1, "y"]}}, "inner needs 'n': a Inner has n, pair"),
        ({"inner": {"n": 1, "m": 2}}, "inner has no 'm': a Inner has n, pair"),
        ({"inner": {"n": 1, "pair": [1]}}, "inner.pair should have 2 items, got 1"),
        ({"inner": 1}, "inner should be an object of Inner, got '1'"),
        ({"shapes": {}}, "shapes should be a list"),
        ({"shapes": [{"side": 1.0}]}, r"shapes\[0\] should be one of .*, an object with its 'type'"),
        ({"shapes": [{"type": "circle"}]}, r"shapes\[0\] is of the type 'circle', which is not known here; import"),
        ({"weight": {"type": "test-outer"}}, "weight.type should be a type that is one of"),
        ({"weight": "much"}, "weight should be one of"),
        ({"more": []}, "more should be an object"),
        ({"more": {"k": {"n": 1.5}}}, "more.k.n should be of type int"),
        ({"odd": 1}, "it has no 'odd': a Outer has name, inner"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save(path, WHOLE)
    edit(path, **change)
    with pytest.raises(HwnasError, match=f"a.json is not an outer: {match}.*; make it anew"):
        FILE.load(path, Outer)


def test_a_damaged_file_another_version_and_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save(path, WHOLE)
    text = path.read_text()
    path.write_text(text.replace('"n":3', '"n":4'))
    with pytest.raises(HwnasError, match=r"its checksum does not fit, so it was damaged; make it anew"):
        FILE.load(path, Outer)
    data = json.loads(text)
    del data["sha256"]
    path.write_text(json.dumps(data))
    with pytest.raises(HwnasError, match="its checksum does not fit"):
        FILE.load(path, Outer)
    path.write_text(text_of(signed(data | {"schema": 3})))
    with pytest.raises(HwnasError, match="is of version 3, this hwnas reads 2; make it anew"):
        FILE.load(path, Outer)
    path.write_text('{"schema": 1, "inner": {"n": 1}}')
    assert FILE.load(path, Outer) == Outer("old", Inner(1))
    with pytest.raises(HwnasError, match="is of version 1, this hwnas reads 2"):
        replace(FILE, older=None).load(path, Outer)
    path.write_text("[]")
    with pytest.raises(HwnasError, match="an object was expected"):
        FILE.load(path, Outer)
    with pytest.raises(HwnasError, match="cannot read an outer at .*b.json"):
        FILE.load(tmp_path / "b.json", Outer)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_read_as_it_was_written(name: str) -> None:
    recipe = recipes.get(name)
    assert decode(json.loads(json.dumps(encode(recipe, Recipe))), Recipe) == recipe
    for relaxation in (GumbelSoftmax(Temperature(2.0, 0.5, "linear")), SinglePath()) if recipe.stages else ():
        first, *later = recipe.stages
        if not isinstance(first.strategy, SearchConfig):
            continue
        strategy = replace(first.strategy, relaxation=relaxation, cost=CostConfig("two-sided", 0.5))
        other = replace(recipe, stages=(replace(first, strategy=strategy), *later))
        assert decode(json.loads(json.dumps(encode(other, Recipe))), Recipe) == other
        assert {d.name.split(".")[0] for d in changed_settings(recipe, other)} == {first.name}


def test_differences_are_named_with_dots() -> None:
    recipe = recipes.get(RECIPE)
    other = replace(recipe.searching(steps=7), widths=(4,))
    assert changed_settings(recipe, other) == (
        Difference("search.steps", recipe.search.steps, 7),
        Difference("widths", list(recipe.widths), [4]),
    )
    assert str(changed_settings(recipe, other)[0]) == f"search.steps {recipe.search.steps}, now 7"
    assert changed_settings(recipe, recipe) == ()


@pytest.fixture
def changed(profiled: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe darts-tiny as somebody edited it after the run was made."""
    old = recipes.get(RECIPE)
    new = old.searching(steps=3, warmup=1)
    monkeypatch.setattr(base, "_RECIPES", {RECIPE: lambda: new})
    return new


def test_a_run_goes_on_with_its_own_recipe_and_says_what_has_changed(changed: Recipe) -> None:
    own = Run(RECIPE).recipe
    said = " ".join(done("search", RECIPE, "--fps", "3000").out.split())
    assert f"the recipe {RECIPE} has changed since the run {RECIPE} was made, which goes on with its own: " in said
    assert f"search.steps {own.search.steps}, now 3; search.warmup 2, now 1; to use the new one, give another" in said
    assert len((Run(RECIPE).folder / "search.jsonl").read_text().splitlines()) == own.search.steps
    other = done("search", RECIPE, "--run", "new", "--table", f"runs/{RECIPE}/table.json", "--fps", "3000")
    assert "has changed" not in other.out
    assert Run("new").recipe == changed


def test_a_run_is_not_gone_on_with_by_a_recipe_that_differs(changed: Recipe) -> None:
    with pytest.raises(HwnasError, match=r"was made with other settings of darts-tiny: search.steps 6, now 3; .*--run"):
        Run(RECIPE).ask(recipe=changed)
    Run(RECIPE).ask(recipe=Run(RECIPE).recipe)


def test_a_run_needs_its_recipe_in_no_code(profiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_RECIPES", {})
    assert f"search {RECIPE}" in done("profile", RECIPE).following
    assert RECIPE in done("ls").out
    done("search", RECIPE, "--fps", "3000")
    assert "unknown recipe" in hwnas("search", RECIPE, "--run", "another").err


def test_files_of_the_first_version_are_read(finished: Path) -> None:
    run = Run(RECIPE)
    settings, derived = run.settings, run.derived()
    data = json.loads((finished / "run.json").read_text())
    first = {k: data[k] for k in ("recipe", "data", "search_seed", "engine", "threads", "precision", "budget_ms")}
    (finished / "run.json").write_text(json.dumps({"schema": 1, **first}))
    assert Run(RECIPE).settings == settings
    data = json.loads((finished / "arch.json").read_text())
    keys = ("architecture", "scale", "budget_ms", "predicted_ms", "candidates", "margins", "discretisation_gap")
    (finished / "arch.json").write_text(json.dumps({"schema": 1, **{k: data[k] for k in keys}, "odd": 1}))
    assert Run(RECIPE).derived() == Derived(
        derived.architecture, derived.scale, derived.budget_ms, derived.predicted_ms
    )
    data = json.loads((finished / "report.json").read_text())
    (finished / "report.json").write_text(
        json.dumps({k: v for k, v in data.items() if k not in ("schema", "sha256", "task")})
    )
    assert "measured before, nothing to do" in done("validate", RECIPE).out
    assert "nothing to do" in done("train", RECIPE).out


def test_what_users_read_in_a_derived_network_is_where_it_was(finished: Path) -> None:
    data = json.loads((finished / "arch.json").read_text())
    assert Architecture.from_json(data["architecture"]) == Run(RECIPE).derived().architecture
    assert Scale(**data["scale"]).channels in recipes.get(RECIPE).widths
    assert {"budget_ms", "predicted_ms", "table", "candidates", "margins", "coin_tosses", "flips"} <= data.keys()
    assert "measured_ms" not in data
    assert re.fullmatch(r"[0-9a-f]{64}", data["sha256"])


@stored("narrow training of a test")
@dataclass(frozen=True)
class Narrow(TrainConfig):
    """Settings of a training that have one more."""

    extra: int = 3


def test_a_subclass_in_the_place_of_a_class_is_read_as_it_was_written(tmp_path: Path) -> None:
    recipe = recipes.get("darts-tiny")
    own = replace(recipe, train=Narrow(**{f.name: getattr(recipe.train, f.name) for f in fields(TrainConfig)}))
    assert decode(encode(own, Recipe), Recipe) == own


@pytest.mark.parametrize("change", [{"title": 3}, {"rerank_steps": 2.5}])
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, change: dict[str, Any]) -> None:
    recipe = replace(recipes.get("darts-tiny"), **change)
    with pytest.raises(HwnasError, match=r"run\.json is not written, for it could not be read again"):
        save(tmp_path / "run.json", Settings(recipe.name, recipe))
    assert not list(tmp_path.iterdir())


def test_a_number_too_large_for_a_float_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema":2,"recipe":"x","budget_ms":1e999,"sha256":""}')
    with pytest.raises(HwnasError, match="1e999 is not a number a file may hold"):
        RUN_FILE.load(tmp_path / "run.json", Settings)
