"""Measuring an exported file beside networks of the table it is held against."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hwnas import validate
from hwnas.data import Sample, Synthetic
from hwnas.data.base import IGNORE_LABEL
from hwnas.errors import HwnasError
from hwnas.export import ending
from hwnas.files import write_atomic
from hwnas.images import resize_labels
from hwnas.latency import LatencyModel, LatencyTable
from hwnas.metrics import ConfusionMatrix
from hwnas.ops import Trace
from hwnas.ops.onnx_graph import OpExporter
from hwnas.profile import Calibration, build_table, make_plan, plan_again
from hwnas.runtime.engines.fake import modelled_ms
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.measure import Samples, StopRule, summarise
from hwnas.runtime.measuring.plan import Plan, load_plan
from hwnas.runtime.measuring.results import Row
from hwnas.runtime.measuring.work import measure_plan
from hwnas.spaces import DARTS_V2, Scale, darts_space, trace_space
from tests.test_bundle import expected, make, photo

SPACE = darts_space(Scale(4, 3, (24, 32)), 5, head_channels=8)
ENGINE = {"name": "fake", "threads": 1, "precision": "fp32"}


def test_slow_networks_are_visited_less_often() -> None:
    rules = [validate.visits(ms, 5) for ms in (0.0, 1.0, 10.0, 100.0, 1e3, 1e4)]
    assert rules[0] == rules[1] == rules[2] == validate.STOP
    for faster, slower in itertools.pairwise(rules):
        assert slower.min_visits <= faster.min_visits
        assert slower.max_visits <= faster.max_visits
    assert rules[3].min_visits == validate.STOP.min_visits  # 30 times 4 seconds
    assert rules[-2].min_visits == rules[-1].min_visits == validate.LEAST_VISITS
    assert rules[-1].max_visits > rules[-1].min_visits


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_plan(SPACE, [SPACE.scale], folder, Calibration(fit=3, test=1))
    measure_plan(folder, "fake", stop=StopRule(min_visits=3, max_visits=12, min_s=0.0))
    return folder


@pytest.fixture
def table(plan: Path) -> LatencyTable:
    return build_table(plan, plan / "results.jsonl")


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Trace]:
    traced = trace_space(SPACE, DARTS_V2.architecture(SPACE))
    path = tmp_path / "deploy" / "model.onnx"
    write_atomic(path, OpExporter().network(traced).SerializeToString())
    return path, traced


def test_references_are_the_fastest_networks_of_the_table(plan: Path, table: LatencyTable, tmp_path: Path) -> None:
    found = validate.references(plan, table)
    assert [r.latency_ms for r in found] == sorted(n.latency_ms for n in table.nets)[: validate.REFERENCES]
    assert validate.references(tmp_path, table) == []


@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_networks_of_a_table_are_planned_again_to_the_byte(
    plan: Path, table: LatencyTable, tmp_path: Path, n: int
) -> None:
    calibration = Calibration(fit=3, test=1)
    assert plan_again(table, SPACE, [SPACE.scale], calibration, n, tmp_path) == min(n, 4)
    by_key = {e.key: e for e in load_plan(plan).entries}
    again = load_plan(tmp_path).entries
    assert [replace(e, role="net") for e in again] == [by_key[e.key] for e in again]
    assert validate.references(tmp_path, table) == validate.references(plan, table)[:n]


def test_networks_that_a_table_does_not_have_are_not_planned(table: LatencyTable, tmp_path: Path) -> None:
    wider = replace(SPACE.scale, channels=5)
    assert plan_again(table, SPACE, [wider], Calibration(fit=3, test=1), 2, tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_networks_of_another_size_or_precision_are_not_those_of_the_table(table: LatencyTable, tmp_path: Path) -> None:
    larger = replace(SPACE.scale, size=(48, 64))
    assert plan_again(table, SPACE, [larger], Calibration(fit=3, test=1), 2, tmp_path / "larger") == 2
    assert validate.references(tmp_path / "larger", table) == []
    half = replace(table, where=table.where | {"engine": table.where["engine"] | {"precision": "fp16"}})
    assert plan_again(half, SPACE, [SPACE.scale], Calibration(fit=3, test=1), 2, tmp_path / "half") == 2
    assert validate.references(tmp_path / "half", table) == []
    assert len(validate.references(tmp_path / "half", half)) == 2


def test_a_damaged_plan_is_not_taken_for_no_plan(plan: Path, table: LatencyTable, tmp_path: Path) -> None:
    write_atomic(tmp_path / "plan.json", (plan / "plan.json").read_bytes()[:-20])
    with pytest.raises(HwnasError, match=r"plan\.json"):
        validate.references(tmp_path, table)


def test_on_a_quiet_machine_it_is_measured_once(
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], runs: list[StopRule]
) -> None:
    where, found, slowdown = validate.measure_network(*model, "labels", ENGINE, validate.references(plan, table))
    assert where["engine"]["name"] == "fake"
    assert slowdown == pytest.approx(1.0, rel=0.002)
    assert list(found) == ["network", "with_copies", "application"]
    entries = load_plan(model[0].parent).entries
    assert [e.role for e in entries] == ["net", "copies", "application", "net", "net"]
    for entry, row in zip(entries, found.values(), strict=False):
        assert (len(runs), row.visits) == (1, validate.STOP.min_visits)
        assert row.latency_ms == pytest.approx(modelled_ms(entry), rel=0.003)
    assert found["network"].latency_ms < found["with_copies"].latency_ms
    assert found["network"].latency_ms < found["application"].latency_ms
    _, alone, nothing = validate.measure_network(*model, "labels", ENGINE)
    assert nothing is None
    assert alone == found


def test_the_precision_of_the_engine_is_that_of_the_plan(model: tuple[Path, Trace], runs: list[StopRule]) -> None:
    where, _, _ = validate.measure_network(*model, "labels", ENGINE | {"precision": "fp16"})
    assert where["engine"]["precision"] == load_plan(model[0].parent).precision == "fp16"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[StopRule]:
    """The rule of each measurement, which is done in this process by a clock that is not a model's."""
    found: list[StopRule] = []
    collect = validate.collect

    def here(folder: Path, engine: str, threads: int, stop: StopRule, results: Path, update: object) -> None:
        found.append(stop)
        measure_plan(folder, engine, threads, stop, results=results)

    def not_a_model(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        return {**where, "clock": "thread_cpu"}, rows

    monkeypatch.setattr(validate, "supervise", here)
    monkeypatch.setattr(validate, "collect", not_a_model)
    return found


def ticking(monkeypatch: pytest.MonkeyPatch, patience_s: float) -> None:
    """Let a second and a half go by whenever validation looks at the clock."""
    now_s = itertools.count(0.0, 1.5)
    monkeypatch.setattr(validate, "PATIENCE_S", patience_s)
    monkeypatch.setattr(validate, "time", SimpleNamespace(monotonic=lambda: next(now_s)))


@pytest.mark.parametrize(("patience_s", "tries"), [(0.0, 1), (2.5, 2), (4.0, 3)])
def test_a_machine_slower_than_the_table_is_waited_for_and_told(
    plan: Path,
    table: LatencyTable,
    model: tuple[Path, Trace],
    monkeypatch: pytest.MonkeyPatch,
    runs: list[StopRule],
    patience_s: float,
    tries: int,
) -> None:
    """The table says that its networks took two thirds of what they take now."""
    ticking(monkeypatch, patience_s)
    rows = [replace(r, latency_ms=r.latency_ms / 1.5) for r in validate.references(plan, table)]
    _, found, slowdown = validate.measure_network(*model, "labels", ENGINE, rows)
    row = found["network"]
    assert slowdown == pytest.approx(1.5, rel=0.002)
    assert len(runs) == tries
    assert row.visits == tries * validate.STOP.min_visits  # what was measured before still counts
    assert row.n == sum(
        len(r["latency_ms"])
        for r in read_journal(model[0].parent / "validate.jsonl")[1]
        if r["type"] == "sample" and r["key"] == "net/model.onnx"
    )


def test_a_slow_model_clock_is_not_waited_for(
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticking(monkeypatch, 1e9)
    rows = [replace(r, latency_ms=r.latency_ms / 2) for r in validate.references(plan, table)]
    _, found, slowdown = validate.measure_network(*model, "labels", ENGINE, rows)
    row = found["network"]
    assert slowdown == pytest.approx(2, rel=0.002)
    assert row.visits == validate.STOP.min_visits


@pytest.mark.parametrize("scope", ["net", "copies", "application"])
def test_a_doubtful_measurement_is_made_longer(
    model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch, runs: list[StopRule], scope: str
) -> None:
    ticking(monkeypatch, 2.5)
    collect = validate.collect

    def doubtful(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        found = ((r.key.startswith(f"{scope}/"), r.measurement) for r in rows)
        changed = [replace(m, doubtful=bad) for bad, m in found if m is not None]
        return where, [replace(r, measurement=m) for r, m in zip(rows, changed, strict=True)]

    monkeypatch.setattr(validate, "collect", doubtful)
    _, measured, slowdown = validate.measure_network(*model, "labels", ENGINE)
    assert slowdown is None
    assert {validate.SCOPES[name] for name, m in measured.items() if m.doubtful} == {scope}
    first, second = runs
    assert (second.min_visits, second.max_visits) == (2 * first.min_visits, first.min_visits + first.max_visits)


def test_measuring_again_is_of_now(model: tuple[Path, Trace], runs: list[StopRule]) -> None:
    for _ in range(2):
        _, found, _ = validate.measure_network(*model, "labels", ENGINE)
        assert {m.visits for m in found.values()} == {validate.STOP.min_visits}


@pytest.mark.parametrize("scope", ["net", "copies", "application"])
def test_a_network_the_engine_cannot_run(
    model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    collect = validate.collect

    def failed(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        return where, [Row(r.key, "failed", "for the test") if r.key.startswith(scope) else r for r in rows]

    monkeypatch.setattr(validate, "collect", failed)
    with pytest.raises(HwnasError, match=r"fake could not run .*model\.onnx: for the test"):
        validate.measure_network(*model, "labels", ENGINE)


class Given:
    """An application that gives what it is given, image by image."""

    def __init__(self, labels: np.ndarray, outputs: np.ndarray) -> None:
        self._labels, self._outputs = iter(labels), iter(outputs)

    def __enter__(self) -> Given:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def labels(self, image: np.ndarray) -> np.ndarray:
        return next(self._labels)

    def output(self, image: np.ndarray) -> np.ndarray:
        return next(self._outputs)


class Of(Given):
    """An application that gives what is given for an image."""

    def __init__(self, of: dict[bytes, tuple[torch.Tensor, np.ndarray]]) -> None:
        self._of = of

    def labels(self, image: np.ndarray) -> np.ndarray:
        return self._of[image.tobytes()][0].numpy().astype(np.uint8)

    def output(self, image: np.ndarray) -> np.ndarray:
        return self._of[image.tobytes()][1]


class Resized(list[Sample]):
    """A split whose labels have sizes of their own."""

    def __init__(self, data: Synthetic, sizes: tuple[tuple[int, int], ...]) -> None:
        super().__init__(s._replace(label=resize_labels(s.label, n)) for s, n in zip(data, sizes, strict=True))
        self.classes, self.sizes = data.classes, sizes


def interpolated(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


class TestScore:
    DATA = Synthetic("test", (48, 64), length=3)

    def score(self, folder: Path, labels: np.ndarray, scores: np.ndarray | None = None) -> ConfusionMatrix:
        given = Given(labels, np.zeros((3, 1, 11, 6, 8), np.float32) if scores is None else scores)
        return validate.score(given, "labels" if scores is None else "scores", self.DATA, folder / "p.png")

    @pytest.mark.parametrize("kind", ["scores", "logits", "labels"])
    def test_labels_of_another_size_are_met_by_scores_where_there_are_any(self, tmp_path: Path, kind: str) -> None:
        small, large = Resized(self.DATA, ((31, 90), (30, 40), (48, 64))), Resized(self.DATA, ((96, 128),) * 3)
        shape = (6, 8) if kind == "scores" else (48, 64)
        scores = np.random.default_rng(0).standard_normal((3, 1, 11, *shape)).astype(np.float32)
        full = interpolated(torch.from_numpy(scores[:, 0]), (48, 64))
        for data in (small, large):
            expected, told = ConfusionMatrix(11), ConfusionMatrix(11)
            for i, size in enumerate(data.sizes):
                if kind == "labels":
                    pred = resize_labels(full[i].argmax(0).numpy(), size)
                else:
                    pred = interpolated(full[i : i + 1], size)[0].argmax(0).numpy()
                expected.update(pred, data[i].label)
            given = Of({self.DATA[i].image.tobytes(): (full[i].argmax(0), scores[i]) for i in range(3)})
            found = validate.score(given, kind, data, tmp_path / "p.png", measures=(told,))
            np.testing.assert_array_equal(found.counts, expected.counts)
            np.testing.assert_array_equal(told.counts, expected.counts)
            with Image.open(tmp_path / "p.png") as picture:
                picture.verify()

    def truth(self) -> np.ndarray:
        labels = np.stack([self.DATA[i].label for i in range(3)])
        return np.where(labels == IGNORE_LABEL, 0, labels).astype(np.uint8)

    def test_the_application_is_held_against_the_labels(self, tmp_path: Path) -> None:
        assert self.score(tmp_path, self.truth()).miou() == 1.0
        wrong = self.truth()
        wrong[1] = 10 - wrong[1]
        confusion = ConfusionMatrix(11)
        for i in range(3):
            confusion.update(wrong[i], self.DATA[i].label)
        found = self.score(tmp_path, wrong, np.zeros((3, 1, 11, 6, 8), np.float32))
        np.testing.assert_array_equal(found.counts, confusion.counts)
        assert (tmp_path / "p.png").exists()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_scores_that_are_not_finite_are_refused(self, tmp_path: Path, bad: float) -> None:
        scores = np.zeros((3, 1, 11, 6, 8), np.float32)
        scores[1, 0, 2, 3:5, 1:3] = bad
        name = self.DATA[1].name
        with pytest.raises(HwnasError, match=rf"^4 of 528 scores for the image {name} are not finite; export it in"):
            self.score(tmp_path, self.truth(), scores)
        assert not (tmp_path / "p.png").exists()

    def test_labels_that_are_no_class_are_refused(self, tmp_path: Path) -> None:
        labels = self.truth()
        labels[2, 5, 5] = 11
        name = self.DATA[2].name
        with pytest.raises(HwnasError, match=f"label 11 came out for the image {name}, expected 0 to 10; do not use"):
            self.score(tmp_path, labels)
        assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize(("engine", "scored_with"), [("openvino", "openvino"), ("fake", "onnxruntime")])
def test_what_an_engine_computes_is_scored_with_it(tmp_path: Path, engine: str, scored_with: str) -> None:
    application, name = validate.application_of(make(tmp_path, engine=engine))
    assert name == scored_with
    with application:
        assert (application.labels(photo()) == expected("scores", photo())[1]).mean() > 0.999


@pytest.mark.parametrize(("kind", "left"), [("labels", []), ("logits", ["argmax"]), ("scores", ["resize", "argmax"])])
def test_what_a_file_leaves_out_is_not_predicted(table: LatencyTable, kind: str, left: list[str]) -> None:
    arch = DARTS_V2.architecture(SPACE)
    whole = trace_space(SPACE, arch)
    part = ending(trace_space(SPACE, arch, labels=kind == "labels"), kind)
    assert [c.spec.kind for c in whole.calls[len(part.calls) :]] == left
    both_ms = [LatencyModel(t.terms(), table, SPACE.problem).predict_ms(arch) for t in (whole, part)]
    assert validate.left_out_ms(whole, part, table) == pytest.approx(both_ms[0] - both_ms[1], abs=1e-12)


@pytest.mark.parametrize(("budget_ms", "met"), [(2.0, True), (1.999, False), (4.0, True)])
def test_verdict_by_hand(budget_ms: float, met: bool) -> None:
    """Twenty quiet visits and twenty slow ones, each with an outlier: the budget is held against the quiet level."""
    visits = [Samples(np.array([ms, ms, 9.0]), np.array([ms, ms, ms]) + 1) for ms in [2.0] * 20 + [3.0] * 20]
    measured = summarise(visits, "ci", "wall")
    slower = replace(measured, latency_ms=4.0, doubtful=True)
    where = {"clock": "wall", "engine": {"threads": 2}, "batch": 1}
    scopes = {"network": measured, "with_copies": measured, "application": slower}
    found = validate.verdict(scopes, where, 2.5, budget_ms, 1.01)
    assert (found["measured_ms"], found["wall_ms"], found["fps"]) == (2.0, 3.0, 500.0)
    times = np.concatenate([v.latency_ms for v in visits])
    assert [found[f"p{q}_ms"] for q in (50, 90, 99)] == pytest.approx(np.percentile(times, [50, 90, 99]).tolist())
    assert (found["p50_ms"], found["p99_ms"]) == (3.0, 9.0)  # of all samples, slow ones too
    assert found["error"] == pytest.approx(0.25)
    assert (found["met"], found["budget_fps"], found["slowdown"]) == (met, 1000 / budget_ms, 1.01)
    assert (found["doubtful"], found["threads"], found["clock"]) == (False, 2, "wall")
    assert found["scope"] == "network with upsampling and argmax"
    assert validate.verdict(scopes, where, 2.5, 2.0, None, "scores")["scope"] == "network without upsampling and argmax"
    times_ms = found["latencies"]
    assert list(times_ms) == ["network", "with_copies", "application"]
    assert [times_ms["network"][f"p{q}_ms"] for q in (50, 90, 99)] == [found[f"p{q}_ms"] for q in (50, 90, 99)]
    assert [(t["quiet_ms"], t["doubtful"]) for t in times_ms.values()] == [(2.0, False), (2.0, False), (4.0, True)]


def test_a_reference_that_fails_says_nothing_about_speed(
    plan: Path, table: LatencyTable, model: tuple[Path, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = validate.references(plan, table)
    collect = validate.collect

    def one_failed(results: Path, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
        where, rows = collect(results, plan)
        return where, [Row(r.key, "failed", "for the test") if r.key == bad.entry.key else r for r in rows]

    monkeypatch.setattr(validate, "collect", one_failed)
    _, _, slowdown = validate.measure_network(*model, "labels", ENGINE, [good, bad])
    assert slowdown == pytest.approx(1.0, rel=0.002)
