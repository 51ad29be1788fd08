"""Settings of a recipe by name: what they mean, what is refused, and that a run keeps them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hwnas import recipes
from hwnas.errors import HwnasError
from hwnas.learn import TrainConfig
from hwnas.profile import Calibration
from hwnas.recipes import Recipe, base
from hwnas.recipes.override import assignments, override
from hwnas.records import encode
from hwnas.run import Run, Settings
from hwnas.search.config import SearchConfig
from hwnas.search.costs import CostConfig
from hwnas.search.guards import Guards
from hwnas.search.multiplier import Multiplier
from hwnas.search.relax import GumbelSoftmax, SinglePath, Softmax, Temperature
from hwnas.spaces import Scale, Trellis
from tests.test_verb_errors import nothing, refused
from tests.verbs import RECIPE, done, edit, hwnas

__all__ = ["nothing"]  # a fixture

TINY = recipes.get(RECIPE)


def written(value: Any) -> str:
    """Return a value as a user writes it."""
    if isinstance(value, dict):
        return ",".join(f"{k}:{written(v)}" for k, v in value.items())
    if isinstance(value, tuple):
        return ",".join("x".join(map(str, v)) if isinstance(v, tuple) else written(v) for v in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name of each setting that has none of its own, and its value."""
    for f in (f for f in fields(value) if f.init):
        name, own = f"{at}{f.name}", getattr(value, f.name)
        if name == "stages":  # their strategies, by their names
            for stage in own:
                yield from leaves(stage.strategy, f"{stage.name}.")
                if stage.before is not None:
                    yield from leaves(stage.before, f"{stage.name}.before.")
        elif is_dataclass(own):
            yield from leaves(own, f"{name}.")
        elif name != "name":
            yield name, written(own)


def kinds(data: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name of each setting that is an object of one of several classes, and the name of its class."""
    for name, value in data.items():
        if isinstance(value, dict):
            if "type" in value:
                yield f"{at}{name}", value["type"]
            yield from kinds(value, f"{at}{name}.")
        elif name == "stages":
            before = {stage["name"]: {"before": stage["before"]} for stage in value if "before" in stage}
            yield from kinds({stage["name"]: stage["strategy"] | before.get(stage["name"], {}) for stage in value})


class TestEveryRecipe:
    @pytest.mark.parametrize("name", recipes.names())
    def test_any_setting_at_the_value_it_has_changes_nothing(self, name: str) -> None:
        recipe = recipes.get(name)
        own = dict(leaves(recipe))
        assert {f"{s.name}.steps" for s in recipe.stages} <= own.keys()
        assert {"train.crop", "stop.min_s", "space.encoder.scale.size", "widths"} <= own.keys()
        for setting in own.items():
            assert override(recipe, dict([setting])) == recipe, setting
        assert override(recipe, own) == recipe

    @pytest.mark.parametrize("name", recipes.names())
    def test_any_class_as_it_is_keeps_its_settings(self, name: str) -> None:
        recipe = recipes.get(name)
        own = dict(kinds(encode(recipe, Recipe)))
        gradients = [s for s in recipe.stages if isinstance(s.strategy, SearchConfig)]
        assert {f"{s.name}.relaxation" for s in gradients[:1]} | {"space.encoder", "space.head"} <= own.keys()
        for setting in own.items():
            assert override(recipe, dict([setting])) == recipe, setting


@pytest.mark.parametrize(
    ("texts", "change"),
    [
        (("steps=60",), {"steps": 60}),
        (("steps = 60", "steps=60"), {"steps": 60}),
        (("w_lr=3e-2", "level=single"), {"w_lr": 0.03, "level": "single"}),
        (("crop=96x128",), {"crop": (96, 128)}),
        (("crop=96, 128",), {"crop": (96, 128)}),
        (("crop.1=40",), {"crop": (32, 40)}),
        (("scale.size=64x96",), {"scale": Scale(4, 3, (64, 96))}),
        (("relaxation=gumbel-softmax",), {"relaxation": GumbelSoftmax()}),
        (("relaxation=gumbel",), {"relaxation": GumbelSoftmax()}),
        (
            ("relaxation.temperature.end=0.1", "relaxation=single"),
            {"relaxation": SinglePath(Temperature(10, 0.1, "linear"))},
        ),
        (("cost.weight=0.5",), {"cost": CostConfig(weight=0.5)}),
        (("cost.weight=multiplier", "cost.weight.lr=0.1"), {"cost": CostConfig(weight=Multiplier(0.1))}),
        (("cost.weight.reset=true",), {"cost": CostConfig(weight=Multiplier(reset=True))}),
        (("cost.weight=0.5", "cost.form=product"), {"cost": CostConfig("product", 0.5)}),
        (("guards.most_skips=2",), {"guards": Guards(most_skips=2)}),
        (("steps=1", "warmup=0"), {"steps": 1, "warmup": 0}),  # neither will do without the other
    ],
)
def test_what_settings_mean(texts: tuple[str, ...], change: dict[str, Any]) -> None:
    mixture = TINY.searching(relaxation=Softmax())
    changed = override(mixture, assignments([f"search.{text}" for text in texts]))
    assert changed == mixture.searching(**change)


def test_what_settings_of_the_recipe_itself_mean() -> None:
    texts = ("widths=8", "depths=3,6", "data=none", "budget_percentile=50", "title=a=b, c", "train.precision=bf16")
    train = replace(TINY.train, precision="bf16")
    expected = replace(TINY, widths=(8,), depths=(3, 6), data=None, budget_percentile=50.0, title="a=b, c", train=train)
    assert override(TINY, assignments(texts)) == expected
    assert override(expected, {"depths": ""}).depths == ()


def test_another_encoder_takes_what_it_needs_from_the_present_one() -> None:
    encoder = override(TINY, {"space.encoder": "trellis", "space.encoder.nodes": "2"}).space.encoder
    assert encoder == Trellis(TINY.space.scale, nodes=2)


REFUSED = [
    (("search.stps=3",), "unknown setting 'search.stps'; did you mean 'search.steps'. known: search.accumulate, "),
    (("serch.steps=3",), "unknown setting 'serch'; did you mean 'search'. known: "),
    (("search.cost.wieght=3",), "unknown setting 'search.cost.wieght'; did you mean 'search.cost.weight'"),
    (
        ("search.relaxation=softmax", "search.relaxation.temperature.end=1"),
        "unknown setting 'search.relaxation.temperature'",
    ),
    (("search.relaxation=gumble",), "unknown search.relaxation 'gumble'; did you mean 'gumbel-softmax'. known: "),
    (("search.relaxation=s",), "search.relaxation 's' may be single-path or softmax; write more of it"),
    (("search.order=secnd",), "unknown search.order 'secnd'; did you mean 'second'. known: first, second, "),
    (("search.steps=many",), "search.steps should be a whole number, got 'many'"),
    (("search.steps=1.5",), "search.steps should be a whole number, got '1.5'"),
    (("search.w_lr=nan",), "search.w_lr should be a number, got 'nan'"),
    (("search.cost.weight=much",), "unknown search.cost.weight 'much'; known: a number, multiplier"),
    (("train.compile=maybe",), "train.compile should be true or false, got 'maybe'"),
    (("search.crop=96",), "search.crop should have 2 items, got 1"),
    (("search.crop=96xa",), "search.crop should be a whole number, got 'a'"),
    (("search.crop=0x128",), r"a search needs a crop \(height, width\) of 1 or more, got \(0, 128\)"),
    (("search.steps=0",), "a search needs steps of 1 or more, got 0"),
    (("search.warmup=7",), "a search needs a warmup from 0 to its steps, got 7"),
    (("search.relaxation=gumbel", "search.relaxation.temperature.end=0"), "a temperature needs end of more than 0"),
    (("widths=8,4",), r"a recipe needs widths of 1 or more, narrowest first, got \(8, 4\)"),
    (("search=fast",), "unknown search 'fast'; known: "),
    (("stop=fast",), "stop has settings of its own: set stop.min_visits, stop.max_visits"),
    (("search.steps.a=1",), "search.steps has no settings of its own: it is 6"),
    (("name=other",), "name is what the recipe is called by, and no setting; name the run with --run"),
    (("search.steps",), "a setting is written as NAME=VALUE, such as search.steps=600; got 'search.steps'"),
    (("search.steps=3", "search.steps=4"), "search.steps is set twice, to '3' and to '4'"),
    (("space.encoder.ops=none,skip_conect",), "unknown candidate op 'skip_conect'; did you mean 'skip_connect'"),
]


@pytest.mark.parametrize("verb", ["profile", "search"])
@pytest.mark.parametrize(("texts", "match"), REFUSED)
def test_what_cannot_be_set_is_said_and_nothing_is_written(
    nothing: Path, verb: str, texts: tuple[str, ...], match: str
) -> None:
    refused(verb, RECIPE, *(word for text in texts for word in ("--set", text)), match=match)
    assert not list(nothing.iterdir())


def test_a_plan_for_another_box_is_of_what_was_set(nothing: Path) -> None:
    refused("profile", RECIPE, "--plan-only", "plan", "--set", "widths=0", match="a recipe needs widths of 1 or more")
    sets = ("widths=4", "calibration.isolated=false", "space.encoder.ops=none,skip_connect,max_pool_3x3")
    done("profile", RECIPE, "--plan-only", "plan", *(word for text in sets for word in ("--set", text)))
    assert "max_pool" in (text := Path("plan/plan.json").read_text())
    assert "sep_conv" not in text


OUT_OF_RANGE = [
    (TINY.search, {"steps": 0}),
    (TINY.search, {"batch": 0}),
    (TINY.search, {"warmup": -1}),
    (TINY.search, {"warmup": 7}),
    (TINY.search, {"crop": (0, 8)}),
    (TINY.search, {"w_lr": 0.0}),
    (TINY.search, {"w_lr": float("inf")}),
    (TINY.search, {"alpha_lr": -1.0}),
    (TINY.search, {"w_momentum": 1.0}),
    (TINY.search, {"w_clip": 0.0}),
    (TINY.search, {"alpha_decay": -1.0}),
    (TINY.search, {"cutout": -1}),
    (TINY.search, {"accumulate": 0}),
    (TINY.search, {"seed": -1}),
    (TINY.train, {"steps": 0}),
    (TINY.train, {"lr": 0.0}),
    (TINY.train, {"crop": (8, 0)}),
    (TINY.train, {"decay": -1.0}),
    (TINY.train, {"seed": -1}),
    (TINY, {"widths": ()}),
    (TINY, {"widths": (0, 4)}),
    (TINY, {"depths": (3, 3)}),
    (TINY, {"budget_percentile": 101.0}),
    (TINY, {"width_utility": float("nan")}),
    (TINY, {"rerank_steps": 0}),
    (TINY.stop, {"min_visits": 0}),
    (TINY.stop, {"relative_ci": 0.0}),
    (TINY.space, {"classes": 0}),
    (TINY.space.encoder, {"nodes": 0}),
    (TINY.space.head, {"channels": 0}),
    (Calibration(), {"fit": -1}),
    (CostConfig(weight=1.0), {"weight": -1.0}),
    (CostConfig(weight=1.0), {"form": "square"}),
    (CostConfig(), {"form": "product"}),
    (Guards(), {"check_every": 0}),
    (Guards(), {"auxiliary_skip": -0.1}),
    (Multiplier(), {"lr": 0.0}),
    (Multiplier(), {"damping": -1.0}),
    (Temperature(), {"start": 0.0}),
    (Temperature(), {"end": float("inf")}),
    (Scale(4, 3, (8, 8)), {"channels": 0}),
    (Settings(RECIPE, TINY), {"budget_ms": -1.0}),
    (Settings(RECIPE, TINY), {"threads": 0}),
    (Settings(RECIPE, TINY), {"search_seed": -1}),
]


@pytest.mark.parametrize(("whole", "change"), OUT_OF_RANGE, ids=str)
def test_what_is_out_of_range_is_refused_in_a_line(whole: Any, change: dict[str, Any]) -> None:
    with pytest.raises(HwnasError) as e:
        replace(whole, **change)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"search": {"steps": -5}}, "a search needs steps of 1 or more, got -5"),
        ({"search": {"relaxation": {"type": "multiplier"}}}, "relaxation.type should be a type that is one of"),
        ({"train": {"lr": -1.0}}, "a training needs lr of more than 0, got -1.0"),
        ({"widths": [0]}, r"a recipe needs widths of 1 or more, narrowest first, got \(0,\)"),
    ],
)
def test_a_run_with_impossible_settings_is_refused_however_it_is_signed(
    profiled: Path, change: dict[str, Any], match: str
) -> None:
    stored = encode(Run(RECIPE).recipe, Recipe)
    (stage,) = stored["stages"]
    strategy = stage["strategy"] | change.get("search", {})
    new = {k: stored[k] | v if isinstance(v, dict) else v for k, v in change.items() if k != "search"}
    new["stages"] = [stage | {"strategy": strategy}]
    edit(profiled / "run.json", recipe_settings=stored | new)
    refused("search", RECIPE, match=rf"run\.json is not the settings of a run: .*{match}")


class TestRuns:
    def test_a_run_keeps_what_was_set(self, nothing: Path) -> None:
        sets = ("--set", "search.steps=4", "--set", "calibration.fit=5")
        first = done("profile", RECIPE, "--engine", "fake", *sets)
        assert re.search(r"^set +calibration.fit=5 search.steps=4$", first.out, re.MULTILINE)
        assert first.following == f"hwnas search {RECIPE}"
        settings = Run(RECIPE).settings
        assert settings.overrides == {"search.steps": "4", "calibration.fit": "5"}
        assert settings.recipe_settings == override(TINY, settings.overrides)
        assert "calibration.fit=5 search.steps=4" in done("ls").out
        refused("search", RECIPE, "--set", "search.steps=5", match="was made with search.steps=4, not 5; .*--run$")
        refused("search", RECIPE, "--set", "widths=8", match=r"was made with widths \[4,8\], not \[8\]; .*--run$")
        said = done("search", RECIPE, *sets, "--set", "search.warmup=1", "--set", "search.steps=4")
        assert "has changed" not in said.out
        assert len((Run(RECIPE).folder / "search.jsonl").read_text().splitlines()) == 4
        settings = Run(RECIPE).settings
        assert settings.overrides == {"search.steps": "4", "calibration.fit": "5", "search.warmup": "1"}
        assert settings.recipe_settings.search == replace(TINY.search, steps=4, warmup=1)
        refused("search", RECIPE, "--set", "search.w_lr=0.2", match="was made with search.w_lr 0.1, not 0.2; ")
        for options in ((), sets, ("--set", "search.warmup=1"), ("--set", "search.w_lr=0.1")):
            again = done("search", RECIPE, *options)
            assert "nothing to do" in again.out
            assert "has changed" not in again.out
        derived = done("derive", RECIPE, "--to", "other")
        assert "search.warmup=1" in derived.out
        assert Run("other").settings.overrides == settings.overrides
        assert not Run("other").changes()

    def test_an_interrupted_search_goes_on_with_it(self, profiled: Path) -> None:
        done("search", RECIPE, "--set", "search.relaxation=gumbel", "--set", "search.steps=4")
        (profiled / "arch.json").unlink()
        refused("search", RECIPE, "--set", "search.steps=5", match="was made with search.steps=4, not 5")
        done("search", RECIPE)
        assert isinstance(Run(RECIPE).recipe.search.relaxation, GumbelSoftmax)

    def test_what_the_code_has_otherwise_is_told_apart(self, profiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done("search", RECIPE, "--set", "search.steps=4")
        assert not Run(RECIPE).changes()
        new = replace(TINY, width_utility=0.1)
        monkeypatch.setattr(base, "_RECIPES", {RECIPE: lambda: new})
        assert [d.name for d in Run(RECIPE).changes()] == ["width_utility"]

    def test_a_command_that_is_to_be_run_first_has_the_settings(self, nothing: Path) -> None:
        line = refused("search", RECIPE, "--run", "a", "--set", "search.crop=9, 9", match="run first", leaves="runs")
        assert line.strip().endswith(f"hwnas profile {RECIPE} --run a --set 'search.crop=9, 9'")

    def test_from_python(self, nothing: Path) -> None:
        run = Run("own")
        run.ask(replace(TINY, rerank_steps=7), {"search.steps": "9"}, engine="fake")
        assert (run.recipe.rerank_steps, run.recipe.search.steps) == (7, 9)
        run.commit()
        again = Run("own")
        again.ask(overrides={"search.steps": "9"})
        with pytest.raises(HwnasError, match="the run 'own' was made with search.steps=9, not 8"):
            again.ask(overrides={"search.steps": "8"})

    def test_a_run_without_them_says_nothing_of_them(self, profiled: Path) -> None:
        assert "overrides" not in (profiled / "run.json").read_text()
        assert not re.search("^set ", done("search", RECIPE).out, re.MULTILINE)
        shutil.rmtree(profiled)
        assert hwnas("train", RECIPE).code == 2


def test_settings_are_those_of_the_dataclasses() -> None:
    with pytest.raises(HwnasError) as e:
        override(TINY, {"train.x": "1"})
    assert all(f"train.{f.name}" in str(e.value) for f in fields(TrainConfig))
    with pytest.raises(HwnasError) as e:
        override(TINY, {"search.x": "1"})
    assert all(f"search.{f.name}" in str(e.value) for f in fields(SearchConfig))
