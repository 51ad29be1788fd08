"""Tools for latency tables: showing, comparing and checking them, and pricing a network."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas import recipes
from hwnas.cli import main
from hwnas.derived import Derived
from hwnas.errors import HwnasError
from hwnas.files import canonical_json
from hwnas.jobs import pricing, tables
from hwnas.jobs.pricing import find_network, price_network
from hwnas.latency import Correction, LatencyModel, LatencyTable, NetRow, OpRow
from hwnas.latency.diff import NETWORK, RowDiff, by_kind, changes, diff_tables, order
from hwnas.ops.trace import INPUT
from hwnas.problem import Architecture
from hwnas.recipes import Recipe, base
from hwnas.run import Run
from hwnas.runtime.engines import fake, open_engine
from hwnas.runtime.measuring.device import provenance
from hwnas.spaces import Scale, published, sample, trace_space
from tests.test_verb_errors import refused
from tests.verbs import RECIPE, done, hwnas, tree

ERROR = 0.01


def row(ms: float, half_ms: float = 0.0, key: str = "relu()@1x8x4x4", **more: Any) -> OpRow:
    return OpRow(key, ms, (max(0.0, ms - half_ms), ms + half_ms), **more)


def rows(a: OpRow, b: OpRow) -> RowDiff:
    return RowDiff(a.kind, a, b)


def small(*ops: OpRow, nets: tuple[NetRow, ...] = (), **where: Any) -> LatencyTable:
    engine = {"name": "fake", "precision": "fp32", "threads": 1, "version": "1"}
    return LatencyTable(
        {"device": {"name": "paper"}, "engine": engine, "batch": 1, "merges": True, **where},
        {r.key: r for r in ops},
        nets,
    )


class TestVerdict:
    @pytest.mark.parametrize(
        ("a", "b", "verdict"),
        [
            (row(1.0, 0.02), row(0.9, 0.02), "better"),
            (row(1.0, 0.02), row(1.1, 0.02), "worse"),
            (row(1.0, 0.06), row(1.1, 0.06), "ambiguous"),  # they overlap
            (row(1.0, 0.05), row(1.1, 0.0500001), "ambiguous"),
            (row(1.0, 0.0), row(1.009, 0.0), "ambiguous"),  # less than 1 % apart, however sure
            (row(1.0, 0.0), row(0.985, 0.0), "better"),
            (row(0.0, 0.0), row(0.1, 0.01), "worse"),
            (row(0.0, 0.0), row(0.0, 0.0), "ambiguous"),
        ],
    )
    def test_of_intervals_and_difference(self, a: OpRow, b: OpRow, verdict: str) -> None:
        assert rows(a, b).verdict == verdict

    @given(*(st.floats(0, 10) for _ in range(4)))
    def test_of_exchanged_tables_is_the_opposite(self, a: float, half_a: float, b: float, half_b: float) -> None:
        opposite = {"better": "worse", "worse": "better", "ambiguous": "ambiguous"}
        first, second = row(a, half_a), row(b, half_b)
        assert rows(second, first).verdict == opposite[rows(first, second).verdict]
        assert rows(first, first).verdict == "ambiguous"

    def test_of_an_op_that_was_free_has_no_ratio(self) -> None:
        assert rows(row(0.0), row(0.1)).ratio is None
        assert rows(row(0.2), row(0.1)).ratio == 0.5

    def test_summary_by_kind(self) -> None:
        found = [rows(row(1.0), row(ms, key=f"{kind}()@1")) for kind, ms in (("add", 2.0), ("add", 0.5), ("add", 1.0))]
        found += [rows(row(0.0, key="cat()@1"), row(1.0, key="cat()@1"))]
        summary = by_kind([replace(r, kind=r.b.kind) for r in found if isinstance(r.b, OpRow)])
        assert list(summary) == ["add", "cat"]
        assert (summary["add"].rows, summary["add"].ratio) == (3, 1.0)
        assert summary["add"].verdicts == {"better": 1, "worse": 1, "ambiguous": 1}
        assert (summary["cat"].ratio, summary["cat"].verdicts["worse"]) == (None, 1)


class TestDiff:
    def test_rows_of_one_table_and_unmeasured_ones_are_apart(self) -> None:
        a = small(row(1, key="a()@1"), row(1, key="b()@1"), row(0, key="c()@1", status="failed", reason="x"))
        b = small(row(1, key="b()@1"), row(1, key="c()@1"), row(1, key="d()@1"))
        found = diff_tables(a, b)
        assert [r.a.key for r in found.ops] == ["b()@1"]
        assert (found.only_a, found.only_b) == (("a()@1",), ("c()@1", "d()@1"))
        assert found.where == ()

    def test_networks_are_compared_where_their_ops_are_the_same(self) -> None:
        one, other = (NetRow("net/1", {"b()@1": 1}, ms, "test", (ms, ms)) for ms in (1.0, 2.0))
        found = diff_tables(small(nets=(one,)), small(nets=(other,)))
        assert [(r.kind, r.ratio, r.verdict) for r in found.nets] == [(NETWORK, 2.0, "worse")]
        assert diff_tables(small(nets=(one,)), small(nets=(replace(other, ops={"b()@1": 2}),))).nets == ()

    def test_changes_of_provenance(self) -> None:
        old = {"engine": {"version": "1", "options": {"x": 1}}, "device": {"sets": ["a", "b"], "logical_cpus": 2}}
        new = {"engine": {"version": "2", "options": {}}, "device": {"sets": ["b", "c"], "logical_cpus": 4}, "os": "z"}
        assert [(c.name, c.old, c.new, c.counts) for c in changes(old, new)] == [
            ("device.logical_cpus", 2, 4, False),
            ("device.sets", ["a"], ["c"], True),
            ("engine.options.x", 1, None, True),
            ("engine.version", "1", "2", True),
            ("os", None, "z", False),
        ]
        assert changes(old, old) == ()


traced = cache(trace_space)  # the verbs trace one recipe again and again here


@cache
def prices() -> dict[str, OpRow]:
    """Return rows of all ops of the recipe, priced as the fake engine takes them in a network."""
    recipe = recipes.get(RECIPE)
    out = {}
    for call in (c for s in recipe.scales() for c in traced(recipe.space.at(s)).calls):
        ms = max(call.cost.macs / fake.PEAK_MACS_PER_MS, call.cost.bytes / fake.BYTES_PER_MS)
        ms += fake.LAUNCH_MS + (fake.RUN_MS if INPUT in call.inputs else -fake.SAVING_MS)
        out[call.spec.key] = row(ms, 0.001 * ms, call.spec.key, visits=3, n=9, stop="ci")
    return out


def whole(**more: Any) -> LatencyTable:
    """Return a table of the fake engine that prices the recipe."""
    where = json.loads(canonical_json(provenance(open_engine("fake"))))
    correction = Correction(0.01, 0.9, {"relu": 0.8}, relative_error=ERROR, interval=2 * ERROR, networks=6)
    return LatencyTable(where, dict(prices()), correction=correction, **more)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, no shipped tables, and darts-tiny as the only recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "profiles_dir", lambda: tmp_path / "shipped")
    monkeypatch.setattr(base, "_RECIPES", {RECIPE: base._RECIPES[RECIPE]})
    for verb in (tables, pricing):
        monkeypatch.setattr(verb, "trace_space", traced)
    return tmp_path


@pytest.fixture
def table(here: Path) -> Path:
    """A table of the fake engine that prices darts-tiny, in no run."""
    path = here / "table.json"
    whole().save(path)
    return path


def arch() -> Architecture:
    return sample(recipes.get(RECIPE).space, np.random.default_rng(1))


@pytest.fixture
def run(table: Path) -> Run:
    """A run with that table and a derived network of 4 channels."""
    made = Run(RECIPE)
    made.ask(recipe=RECIPE)
    made.commit()
    LatencyTable.load(table).save(made.folder / "table.json")
    scale = recipes.get(RECIPE).scales()[0]
    made.write_derived(Derived(arch(), scale, 1.0, 1.0, table="elsewhere"))
    return made


def changed(path: Path, change: Callable[[LatencyTable], object]) -> None:
    table = LatencyTable.load(path)
    change(table)
    table.save(path)


def engine_is(**new: Any) -> Callable[[LatencyTable], None]:
    def change(table: LatencyTable) -> None:
        table.where = {**table.where, "engine": {**table.where["engine"], **new}}

    return change


def device_is(name: str) -> Callable[[LatencyTable], None]:
    def change(table: LatencyTable) -> None:
        table.where = {**table.where, "device": {"kind": "model", "name": name}}

    return change


def row_is(key: str, **new: Any) -> Callable[[LatencyTable], None]:
    def change(table: LatencyTable) -> None:
        table.rows[key] = replace(table.rows[key], **new)

    return change


ADD = "add(after_conv=True)@1x11x6x8;1x11x6x8"


class TestShow:
    def test_a_table_by_path_by_run_and_by_shipped_name(self, run: Run, table: Path) -> None:
        whole().save(Path("shipped/box/fake-fp32-b1/tiny.json"))
        for name in ("table.json", RECIPE, "box/fake-fp32-b1/tiny"):
            out = done("table", "show", name).out
            assert re.search(r"^device.name +fake-roofline-1 *$", out, re.MULTILINE)
            assert re.search(r"^engine.options.launch_ms +0.005 *$", out, re.MULTILINE)
            assert re.search(rf"^rows +{len(prices())} ops, 0 networks", out, re.MULTILINE)
            assert "within 2.0%, with 95 % confidence" in out

    def test_the_dearest_rows_come_first_and_all_of_them_if_asked(self, table: Path) -> None:
        ranked = sorted(prices().values(), key=lambda r: -r.latency_ms)
        few, every = done("table", "show", table).out, done("table", "show", table, "--all").out
        assert [len(re.findall(r" ok$", out, re.MULTILINE)) for out in (few, every)] == [15, len(ranked)]
        shown = re.findall(r"^(\S+@\S+) ", every, re.MULTILINE)
        assert [prices()[key].latency_ms for key in shown] == [r.latency_ms for r in ranked]
        assert re.search(rf" {ranked[0].latency_ms:.4g} +{ranked[0].ci_ms[0]:.4g} to {ranked[0].ci_ms[1]:.4g} ", few)

    def test_rows_by_kind(self, table: Path) -> None:
        ms = [r.latency_ms for r in prices().values() if r.kind == "add"]
        changed(table, row_is(ADD, status="doubtful", reason="so it is"))
        line = rf"^add +{len(ms)} +{min(ms):.4g} +{max(ms):.4g} +0.900 +1 +0$"
        assert re.search(line, done("table", "show", table).out, re.MULTILINE)

    def test_rows_that_are_not_ok_with_the_reason(self, table: Path) -> None:
        changed(table, row_is(ADD, status="failed", latency_ms=0.0, ci_ms=(0.0, 0.0), reason="no kernel"))
        out = done("table", "show", table).out
        assert re.search(rf"^{re.escape(ADD)} +failed +no kernel$", out, re.MULTILINE)
        changed(table, row_is(ADD, status="ok", reason=""))
        assert "not ok" not in done("table", "show", table).out

    def test_networks_that_are_not_ok_and_what_was_not_reached(self, here: Path) -> None:
        net = NetRow("net/1", {ADD: 1}, 1.0, "fit", (0.9, 1.1), status="doubtful")
        whole(nets=(net,), report={"left_out": ["net/2"]}).save(Path("a.json"))
        out = done("table", "show", "a.json").out
        assert re.search(r"^net/1 +doubtful +it did not become precise enough *$", out, re.MULTILINE)
        assert re.search(r"^net/2 +skipped +time was up *$", out, re.MULTILINE)

    def test_a_table_without_networks_says_what_it_does_not_know(self, here: Path) -> None:
        LatencyTable(whole().where, {}).save(Path("empty.json"))
        out = done("table", "show", "empty.json").out
        assert "not known: no networks to test it on" in out
        assert "FLOPs" not in out

    def test_errors_and_conditions_of_its_report(self, here: Path) -> None:
        error = {"mape": 0.05, "bias": -0.01, "within_5": 0.5, "within_10": 1.0, "tau": 0.9, "n": 4}
        conditions = {"reference": ADD, "visits": 7, "slow_share": 0.25, "drift": -0.02}
        whole(report={"predictors": {"ours": error}, "conditions": conditions}).save(Path("a.json"))
        out = done("table", "show", "a.json").out
        assert re.search(r"^ops in context, corrected +5.0% +-1.0% +50% +100% +0.900 +4$", out, re.MULTILINE)
        assert re.search(r"^machine +slow 25% of the time, drift -2.0%$", out, re.MULTILINE)

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("nothing.json", r"cannot read a latency table at nothing.json: No such file"),
            ("darts-tny", "unknown latency table 'darts-tny'; did you mean 'darts-tiny'"),
            ("../table", "unknown latency table"),
            ("runs/darts-tiny/run.json", "a latency table of schema 4 was expected"),
        ],
    )
    def test_a_table_that_is_not_there(self, run: Run, name: str, match: str) -> None:
        for verb in ("show", "check"):
            refused("table", verb, name, match=match)
        refused("table", "diff", RECIPE, name, match=match)

    def test_a_run_without_a_table(self, run: Run) -> None:
        (run.folder / "table.json").unlink()
        refused("table", "show", RECIPE, match="table.json is not there yet; run first: hwnas profile darts-tiny")


class TestDiffVerb:
    def test_of_a_table_with_itself(self, table: Path) -> None:
        out = done("table", "diff", table, table).out
        assert re.search(r"^relu +\d+ +1.000 +0 +0 +\d+$", out, re.MULTILINE)
        assert "conditions that differ" not in out
        assert "warning" not in out
        assert "intervals do not overlap and the latencies differ by at least 1%; else it is ambiguous" in out

    def test_says_what_became_better_and_what_is_in_one_only(self, table: Path) -> None:
        def change(b: LatencyTable) -> None:
            del b.rows[ADD]
            for key, r in b.rows.items():
                if r.kind == "relu":
                    b.rows[key] = replace(r, latency_ms=r.latency_ms / 2, ci_ms=(r.ci_ms[0] / 2, r.ci_ms[1] / 2))

        whole().save(Path("b.json"))
        changed(Path("b.json"), change)
        relus = sum(r.kind == "relu" for r in prices().values())
        few, every = done("table", "diff", table, "b.json").out, done("table", "diff", table, "b.json", "--all").out
        for out in (few, every):
            assert re.search(rf"^relu +{relus} +0.500 +{relus} +0 +0$", out, re.MULTILINE)
        assert f"ops only in A  1, the first is {ADD}" in few
        assert "ops only in B  0" in few
        assert len(re.findall(r" 0.500 +better$", every, re.MULTILINE)) == relus
        assert not re.search(r" better$", few, re.MULTILINE)
        assert re.search(rf"^relu +{relus} +2.000 +0 +{relus} +0$", done("table", "diff", "b.json", table).out, re.M)

    def test_warns_of_other_devices_and_engines(self, table: Path) -> None:
        whole().save(Path("b.json"))
        changed(Path("b.json"), device_is("another-box"))
        changed(Path("b.json"), engine_is(name="other", version="2"))
        out = done("table", "diff", table, "b.json").out
        assert "warning: the tables are of different devices: fake-roofline-1 and another-box" in out
        assert "warning: the tables are of different engines: fake and other" in out
        assert re.search(r"^engine.version +1 +2 *$", out, re.MULTILINE)


class TestCheck:
    def test_a_table_of_here_and_now(self, run: Run) -> None:
        before = tree(Path())
        for name in (RECIPE, "table.json"):
            out = done("table", "check", name).out
            assert re.search(r"^state +fresh$", out, re.MULTILINE)
            assert re.search(r"^whole +yes, for darts-tiny$", out, re.MULTILINE)
            assert "next:" not in out
        assert tree(Path()) == before

    @pytest.mark.parametrize(
        ("change", "line", "state"),
        [
            (engine_is(version="0"), "engine.version: 0 -> 1", "stale: engine.version changed"),
            (engine_is(driver="550"), "engine.driver: 550 -> nothing", "stale: engine.driver changed"),
            (engine_is(options={}), "engine.options.launch_ms: nothing -> 0.005", "stale: engine.options.bytes"),
            (device_is("box"), "device.name: box -> fake-roofline-1", "foreign: this is fake-roofline-1"),
            (engine_is(name="no-such"), "", "foreign: its engine cannot be opened here: unknown engine 'no-such'"),
        ],
    )
    def test_what_makes_it_stale_or_foreign(
        self, table: Path, change: Callable[[LatencyTable], None], line: str, state: str
    ) -> None:
        changed(table, change)
        said = hwnas("table", "check", table)
        assert said.code == 1
        assert line in said.out
        assert re.search(rf"^state +{re.escape(state)}", said.out, re.MULTILINE)
        assert said.following == "hwnas profile RECIPE --run NAME  (a new name: it is measured anew)"

    def test_what_may_change(self, table: Path) -> None:
        changed(table, lambda t: setattr(t, "where", {**t.where, "os": "Linux 1.0", "python": "3.10.0"}))
        out = done("table", "check", table).out
        assert "os: Linux 1.0 -> " in out
        assert out.count("(does not count)") == 2

    @pytest.mark.parametrize("change", [lambda t: t.rows.pop(ADD), row_is(ADD, status="skipped", reason="time")])
    def test_a_recipe_it_does_not_price(self, table: Path, change: Callable[[LatencyTable], object]) -> None:
        changed(table, change)
        said = hwnas("table", "check", table)
        assert said.code == 1
        ops = len(prices())
        assert re.search(rf"^darts-tiny +{ops} +no: 1 missing, the first is {re.escape(ADD)} *$", said.out, re.M)
        assert re.search(r"^whole +no, not for any recipe$", said.out, re.MULTILINE)

    def test_a_table_of_a_run_must_price_the_recipe_of_the_run(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def wide() -> Recipe:
            return replace(recipes.get(RECIPE), name="wide", widths=(4, 12))

        monkeypatch.setitem(base._RECIPES, "wide", wide)
        assert "yes, for darts-tiny" in done("table", "check", "table.json").out
        (run.folder / "run.json").write_text('{"schema":1,"recipe":"wide"}\n')
        said = hwnas("table", "check", RECIPE)
        assert said.code == 1
        assert "no, not for wide" in said.out
        assert said.following.startswith("hwnas profile wide --run NAME")

    def test_doubtful_rows_are_named_and_do_not_count(self, table: Path) -> None:
        changed(table, row_is(ADD, status="doubtful", reason="restless"))
        assert f"doubtful rows  1, the first is {ADD}" in done("table", "check", table).out

    def test_measuring_again_what_has_not_moved(self, table: Path) -> None:
        before = tree(Path())
        out = done("table", "check", table, "--measure", "2").out
        assert re.search(r"^measured again +2 ops take (1.0[0-4]|0.9[5-9])\d of .*, no more than 5% apart$", out, re.M)
        assert tree(Path()) == before

    def test_measuring_again_what_has_moved(self, table: Path) -> None:
        def change(t: LatencyTable) -> None:
            t.rows = {k: replace(r, latency_ms=2 * r.latency_ms) for k, r in t.rows.items()}

        changed(table, change)
        said = hwnas("table", "check", table, "--measure", "1")
        assert said.code == 1
        assert re.search(r"^measured again +1 ops take 0.\d+ of what they did, more than 5% apart$", said.out, re.M)

    def test_what_cannot_be_measured_again(self, table: Path) -> None:
        refused("table", "check", table, "--measure", "-1", match="--measure takes a number of ops, got -1")
        changed(table, lambda t: t.rows.pop(ADD))
        refused("table", "check", table, "--measure", "1", match="it prices no recipe in full; leave out --measure")
        changed(table, device_is("box"))
        refused("table", "check", table, "--measure", "1", match="it is foreign: this is fake-roofline-1; leave out")


def priced(*args: str | Path) -> dict[str, Any]:
    """Return the JSON object that a price ends with."""
    last = done("price", *args, "--json").out.splitlines()[-1]
    found: dict[str, Any] = json.loads(last)
    return found


class TestPrice:
    def test_is_that_of_the_latency_model_and_of_its_ops(self) -> None:
        table, recipe = whole(), recipes.get(RECIPE)
        for scale in recipe.scales():
            network = replace(find_network("DARTS_V2", RECIPE), arch=arch(), scale=scale)
            found = price_network(network, table)
            space = recipe.space.at(scale)
            built = trace_space(space, network.arch)
            model = LatencyModel(built.terms(), table, space.problem)
            assert found.ms == pytest.approx(model.predict_ms(network.arch))
            assert found.interval_ms == pytest.approx(model.interval_ms(network.arch))
            assert found.ms == pytest.approx(found.base_ms + sum(i.total_ms for i in found.items))
            assert found.ms == pytest.approx(found.base_ms + sum(ms for _, ms in found.by_kind().values()))
            counts: Counter[str] = Counter()
            for item in found.items:
                counts[item.key] += item.count
            assert counts == Counter(c.spec.key for c in built.calls)

    def test_tells_what_the_search_decides_on_from_the_rest(self) -> None:
        table = whole()
        networks = [replace(find_network("DARTS_V2", RECIPE), arch=a) for a in (arch(), find_network_arch())]
        found = [price_network(n, table) for n in networks]
        fixed = [{(i.key, i.count) for i in f.items if not i.searched} for f in found]
        assert fixed[0] == fixed[1]
        assert 0 < found[0].searched_ms < found[0].ms
        kinds = {i.kind for f in found for i in f.items if i.searched}
        assert {"sep_conv", "max_pool"} <= kinds
        assert kinds.isdisjoint({"argmax", "classifier", "concat"})

    def test_modules_are_parts_of_the_network(self) -> None:
        found = price_network(find_network("DARTS_V1", RECIPE), whole())
        parts = {p for i in found.items for p in i.modules}
        assert {"stem0.0", "cells.0", "cells.1", "cells.2", "head"} <= parts
        assert all(re.fullmatch(r"[a-z_0-9]+(\.\d+)?", p) for p in parts)

    def test_of_a_run(self, run: Run) -> None:
        before = tree(Path())
        few, every = done("price", RECIPE).out, done("price", RECIPE, "--all").out
        found = priced(RECIPE)
        assert tree(Path()) == before
        low, high = found["interval_ms"]
        told = f"{found['predicted_ms']:.4g} ms ({found['fps']:.1f} fps), with 95 % confidence {low:.4g} to {high:.4g}"
        assert f"predicted     {told} ms" in few
        assert found["scale"] == {"channels": 4, "cells": 3, "size": [48, 64]}
        assert (low, high) == pytest.approx((found["predicted_ms"] / 1.02, found["predicted_ms"] / 0.98))
        relu = found["by_kind"]["relu"]
        share = relu["ms"] / found["predicted_ms"]
        assert re.search(rf"^relu +{relu['count']} +{relu['ms']:.4g} +{share:.1%}$", few, re.MULTILINE)
        assert "@" not in few
        assert {i["key"] for i in found["ops"]} == set(re.findall(r"^(\S+@\S+) ", every, re.MULTILINE))
        assert sum(sum(i["modules"].values()) for i in found["ops"]) == sum(
            k["count"] for k in found["by_kind"].values()
        )

    def test_of_files(self, run: Run, table: Path) -> None:
        own = priced(RECIPE)["predicted_ms"]
        assert priced("runs/darts-tiny/arch.json")["predicted_ms"] == own
        data = {"architecture": arch().to_json(), "scale": {"channels": 8, "cells": 3, "size": [48, 64]}}
        Path("a.json").write_text(json.dumps({**data, "recipe": RECIPE}))
        Path("b.json").write_text(json.dumps(data))
        wide = priced("a.json", "--table", table)["predicted_ms"]
        assert wide > own
        assert priced("b.json", "--table", RECIPE, "--recipe", RECIPE)["predicted_ms"] == wide
        assert priced("b.json", "--table", RECIPE, "--recipe", RECIPE, "--channels", "4")["predicted_ms"] == own
        del data["scale"]
        Path("c.json").write_text(json.dumps(data))
        assert priced("c.json", "--table", RECIPE, "--recipe", RECIPE)["predicted_ms"] == wide

    def test_of_a_published_genotype(self, table: Path) -> None:
        found = priced("DARTS_V2", "--recipe", RECIPE, "--channels", "4", "--table", table)
        assert found["architecture"] == published("DARTS_V2", recipes.get(RECIPE).space).to_json()
        assert found["scale"]["channels"] == 4

    def test_of_an_untested_table(self, here: Path) -> None:
        LatencyTable(whole().where, dict(prices())).save(Path("t.json"))
        args = ("price", "DARTS_V1", "--recipe", RECIPE, "--table", "t.json", "--compare", "DARTS_V2")
        out = done(*args).out
        assert "how far that may be off is not known" in out
        assert "cannot tell: the table has no networks it was tested on" in out
        assert priced(*args[1:])["interval_ms"] is None

    def test_of_another_device_is_refused_unless_asked_for(self, run: Run) -> None:
        path = run.folder / "table.json"
        changed(path, device_is("box"))
        refused("price", RECIPE, match="measured on box, this is fake-roofline-1; .*--foreign-table")
        done("price", RECIPE, "--foreign-table")
        changed(path, engine_is(name="no-such"))
        refused("price", RECIPE, match="cannot be opened here .*unknown engine 'no-such'.*say --foreign-table")
        done("price", RECIPE, "--foreign-table")

    def test_of_ops_the_table_lacks(self, run: Run) -> None:
        refused("price", RECIPE, "--channels", "6", match="has no row for .*; measure it with: hwnas profile")
        changed(run.folder / "table.json", row_is(ADD, status="failed", reason="no kernel"))
        refused("price", RECIPE, match=r"could not be measured for .*: no kernel")


def find_network_arch() -> Architecture:
    return find_network("DARTS_V2", RECIPE).arch


class TestCompare:
    @pytest.mark.parametrize("ratio", [0.5, 0.97, 0.98, 1.0, 1.02, 1.03, 2.0])
    def test_turned_round_it_says_the_opposite(self, ratio: float) -> None:
        opposite = {"faster": "slower", "slower": "faster", "cannot tell": "cannot tell"}
        assert order(3.0, 3.0 * ratio, ERROR) == opposite[order(3.0 * ratio, 3.0, ERROR)]

    def test_nothing_is_told_without_an_error(self) -> None:
        assert order(1.0, 100.0, None) == "cannot tell"

    def test_across_widths(self, run: Run, table: Path) -> None:
        wide = priced("DARTS_V2", "--recipe", RECIPE, "--channels", "8", "--table", table, "--compare", RECIPE)
        assert wide["compare"]["scale"]["channels"] == 4
        assert wide["compare"]["predicted_ms"] == priced(RECIPE)["predicted_ms"]
        assert wide["compare"]["verdict"] == order(wide["predicted_ms"], wide["compare"]["predicted_ms"], ERROR)

    def test_a_genotype_is_compared_at_the_scale_of_the_network(self, run: Run) -> None:
        found = priced(RECIPE, "--compare", "DARTS_V1")["compare"]
        assert (found["network"], found["scale"]["channels"]) == ("DARTS_V1", 4)

    def test_says_what_it_cannot_tell(self, run: Run) -> None:
        out = done("price", RECIPE, "--compare", RECIPE).out
        assert "(+0.0%): cannot tell, the table tells differences of 2.8% and more" in out

    def test_says_which_is_faster(self, run: Run) -> None:
        pair = [priced(RECIPE, *more)["predicted_ms"] for more in ((), ("--channels", "8"))]
        assert pair[0] < 0.9 * pair[1]
        for args, verdict in (((), "faster"), (("--channels", "8"), "slower")):
            scale = {"channels": 4 if args else 8, "cells": 3, "size": [48, 64]}
            Path("other.json").write_text(
                json.dumps({"architecture": arch().to_json(), "recipe": RECIPE, "scale": scale})
            )
            assert done("price", RECIPE, *args, "--compare", "other.json").out.rstrip().endswith(f": {verdict}")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("DARTS_V1",), "DARTS_V1 does not say which recipe it is of; name one with --recipe"),
        (("DARTS_V1", "--recipe", RECIPE), "DARTS_V1 is of no run that has a latency table; name one with --table"),
        (("DARTS_V1", "--recipe", "darts-tny"), "unknown recipe 'darts-tny'"),
        (("nothing",), "there is no run 'nothing' here"),
        (("nothing.json",), "cannot read an architecture at nothing.json"),
        (("empty.json",), "empty.json: an object with 'architecture'.* was expected"),
        (("no-recipe.json",), "no-recipe.json does not say which recipe it is of"),
        (("own.json", "--recipe", "other"), "own.json is of the recipe darts-tiny, not other; leave out --recipe"),
        (("scale.json",), "scale.json: 'scale' needs whole channels, cells and size"),
        (("fraction.json",), r"'scale' needs whole channels, cells and size .*, got .*8\.5"),
        ((RECIPE, "--recipe", "other"), "darts-tiny is of the recipe darts-tiny, not other; leave out --recipe"),
        ((RECIPE, "--channels", "0"), "a scale needs positive channels"),
        ((RECIPE, "--channels", "1"), "a network needs 2 channels or more, got 1"),
        ((RECIPE, "--table", "zzz"), "unknown latency table 'zzz'"),
        ((RECIPE, "--compare", "zzz"), "there is no run 'zzz' here"),
        (("open.json", "--recipe", RECIPE), "decisions are open, the first is"),
    ],
)
def test_what_cannot_be_priced(run: Run, args: tuple[str, ...], match: str) -> None:
    own = {"architecture": arch().to_json(), "recipe": RECIPE}
    files: dict[str, dict[str, Any]] = {
        "empty.json": {},
        "no-recipe.json": {"architecture": arch().to_json()},
        "own.json": own,
        "scale.json": {**own, "scale": {"channels": 4}},
        "fraction.json": {**own, "scale": {**Scale(8, 3, (48, 64)).to_json(), "channels": 8.5}},
        "open.json": {**own, "architecture": Architecture.of("chain", {}).to_json()},
    }
    folder = Path("files")
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    named = str(folder / args[0]) if args[0] in files else args[0]
    refused("price", named, *args[1:], match=match)


def test_a_run_that_was_not_searched(run: Run) -> None:
    (run.folder / "arch.json").unlink()
    refused("price", RECIPE, match="arch.json is not there yet; run first: hwnas search darts-tiny")


@pytest.mark.parametrize("verb", ["table show", "table diff", "table check", "price"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb.split(), "--help"])
    assert ended.value.code == 0
    assert f"Example: hwnas {verb} darts-quick" in capsys.readouterr().out


def test_errors_are_of_the_family() -> None:
    with pytest.raises(HwnasError, match="name one with --recipe"):
        find_network("DARTS_V1")


def test_a_file_that_was_changed_is_not_priced(finished: Path) -> None:
    path = finished / "arch.json"
    whole = path.read_text()
    try:
        path.write_text(whole.replace('"budget_ms":', '"budget_ms":1', 1))
        said = hwnas("price", path)
        assert said.code == 2
        assert "checksum does not fit" in said.err
    finally:
        path.write_text(whole)
