"""The verbs of the command line, as a user meets them: the whole job, again, and what each leaves behind."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from PIL import Image

from hwnas import recipes, validate
from hwnas.cli import VERBS, main
from hwnas.files import read_json, sha256
from hwnas.jobs import validation
from hwnas.latency import LatencyTable
from hwnas.problem import Architecture, NoTwins
from hwnas.recipes import Recipe, base
from hwnas.records import encode
from hwnas.run import Run
from hwnas.runtime.deploy.bundle import Bundle
from hwnas.runtime.engines import open_engine
from hwnas.runtime.measuring.device import provenance
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.measure import StopRule
from hwnas.runtime.measuring.plan import load_plan
from hwnas.steplog import StepLog
from tests.conftest import ROOT
from tests.verbs import CLI, RECIPE, STAGES, camvid_folder, do_job, done, edit, hwnas, job, tree

MADE = [
    "run.json",
    "plan/plan.json",
    "plan/assembly.json",
    "results.jsonl",
    "table.json",
    "alphas.json",
    "search.jsonl",
    "search.pt",
    "search.svg",
    "arch.json",
    "arch.dot",
    "arch.svg",
    "train.jsonl",
    "train/checkpoint.pt",
    "train/model.safetensors",
    "deploy/model.onnx",
    "deploy/engine.json",
    "deploy/plan.json",
    "deploy/reference-0.onnx",
    "deploy/reference-1.onnx",
    "deploy/validate.jsonl",
    "predictions.png",
    "report.json",
]
VERDICT = re.compile(
    r"^predicted (\S+) ms, measured (\S+) ms, fps (\S+), budget (\S+) ms \((\S+) fps\): (met|missed)$", re.MULTILINE
)


def check_job(folder: Path, name: str) -> None:
    """Hold everything a finished run consists of against what it says."""
    recipe, run = recipes.get(RECIPE), folder / "runs" / name
    everything = {p for p in tree(run) if (run / p).is_file()}
    planned = {p for p in everything if re.fullmatch(r"(plan|derived/\w{12})/(ops|nets)/\w{16}\.onnx", p)}
    derived = {p for p in everything - planned if p.startswith("derived/")}
    assert everything - planned - derived == {*MADE, ".lock"}  # and no temporary file
    assert {p.split("/")[2] for p in derived} == {"plan.json", "assembly.json", "results.jsonl"}
    assert len({p.split("/")[1] for p in derived}) == 1
    for file in run.rglob("*.json"):
        read_json(file, "an output")  # strict: no NaN
    plan, table = load_plan(run / "plan"), LatencyTable.load(run / "table.json")
    header, _ = read_journal(run / "results.jsonl")
    assert header["plan"] == plan.id
    assert set(table.rows) == {e.key for e in plan.entries if e.role == "op"}
    uses = Counter(net.use for net in table.nets)
    wanted = recipe.calibration
    assert wanted.fit <= uses["fit"] <= wanted.fit + wanted.refit
    assert table.correction.networks == uses["fit"]
    assert uses["test"] == table.report["held_out"] == wanted.test
    assert 1 <= uses["derived"] <= wanted.derived  # fewer if some come out the same
    assert table.report["derived"]["n"] == uses["derived"]
    if table.where["clock"] == "model":
        assert table.unsettled == []
    assert [r["step"] for r in StepLog(run / "search.jsonl").read()] == list(range(recipe.search.steps))
    assert [r["step"] for r in StepLog(run / "train.jsonl").read()] == list(range(recipe.train.steps))
    model = onnx.load(run / "deploy" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if not o.domain] == [17]
    with Image.open(run / "predictions.png") as picture:
        assert picture.format == "PNG"
        picture.verify()
    report, arch = (json.loads((run / f"{n}.json").read_text()) for n in ("report", "arch"))
    assert (report["predicted_ms"], report["budget_ms"]) == (arch["predicted_ms"], arch["budget_ms"])
    assert arch["predicted_ms"] <= arch["budget_ms"]
    assert NoTwins(recipe.space.twins()).holds(Architecture.from_json(arch["architecture"]))
    assert report["fps"] == pytest.approx(1000 / report["measured_ms"])
    assert report["met"] == (report["measured_ms"] <= report["budget_ms"])
    assert report["where"]["engine"]["name"] == table.where["engine"]["name"]
    bundle = Bundle.load(run / "deploy")
    assert (bundle.engine, bundle.precision) == (table.where["engine"]["name"], table.where["engine"]["precision"])
    assert (bundle.predicted_ms, bundle.budget_ms) == (arch["predicted_ms"], arch["budget_ms"])
    assert (bundle.output.kind, bundle.input.size) == ("labels", recipe.space.scale.size)
    assert [o.name for o in model.graph.output] == [bundle.output.name]
    assert list(report["latencies"]) == ["network", "with_copies", "application"]
    for times in report["latencies"].values():
        assert 0 < times["quiet_ms"] <= times["p50_ms"] <= times["p90_ms"] <= times["p99_ms"]
    assert report["latencies"]["network"]["quiet_ms"] == report["measured_ms"]
    assert report["latencies"]["application"]["quiet_ms"] > report["measured_ms"]
    assert report["accepted"]
    assert report["test_miou"] == pytest.approx(report["torch_miou"], abs=0.005)
    shown_ms = [f"{report['latencies'][scope]['p90_ms']:.4g}" for scope in report["latencies"]]
    screen = (folder / "validate.txt").read_text()
    assert re.findall(r"^(?:network|with copies|application) +\S+ +\S+ +(\S+) +\S+$", screen, re.MULTILINE) == shown_ms
    said = VERDICT.search(screen)
    assert said is not None
    shown = [report["predicted_ms"], report["measured_ms"], report["fps"], report["budget_ms"], report["budget_fps"]]
    assert [float(x) for x in said.groups()[:5]] == pytest.approx(shown, rel=1e-3)
    assert said[6] == ("met" if report["met"] else "missed")


def check_next(folder: Path, commands: list[tuple[str, ...]]) -> None:
    """Every verb named the command that was run next."""
    for command, following in pairwise(commands):
        assert f"\nnext: hwnas {' '.join(following)}\n" in (folder / f"{command[0]}.txt").read_text()


def test_the_whole_job_on_the_fake_engine(jobs: Path) -> None:
    check_job(jobs / "finished", RECIPE)
    check_next(jobs / "finished", job(RECIPE, "--engine", "fake"))


@pytest.mark.slow
def test_the_whole_job_on_onnxruntime(tmp_path: Path) -> None:
    commands = job("box.1")
    do_job(tmp_path, commands)
    check_job(tmp_path, "box.1")
    check_next(tmp_path, commands)
    where = dict(LatencyTable.load(tmp_path / "runs/box.1/table.json").where)
    assert where.pop("cpus")["allowed"] >= 1
    assert where == json.loads(json.dumps(provenance(open_engine("onnxruntime"))))


@pytest.mark.parametrize("command", job(RECIPE, "--engine", "fake"), ids=STAGES)
def test_a_verb_repeated_says_so_and_changes_nothing(finished: Path, jobs: Path, command: tuple[str, ...]) -> None:
    before = tree(finished)
    said = done(*command)
    assert "nothing to do" in said.out
    assert tree(finished) == before
    following = re.findall(r"^next: .*", (jobs / "finished" / f"{command[0]}.txt").read_text(), re.MULTILINE)
    assert re.findall(r"^next: .*", said.out, re.MULTILINE) == following


def test_profile_repeated_without_options_keeps_the_engine_of_the_run(profiled: Path) -> None:
    table = (profiled / "table.json").read_bytes()
    assert "nothing to do" in done("profile", RECIPE).out
    (profiled / "table.json").unlink()
    done("profile", RECIPE)
    assert (profiled / "table.json").read_bytes() == table


def test_a_later_profile_goes_on_where_time_was_up(profiled: Path) -> None:
    whole = LatencyTable.load(profiled / "table.json")
    lines = (profiled / "results.jsonl").read_text().splitlines(keepends=True)
    half_a_round = len(load_plan(profiled / "plan").entries)  # each visit has two lines
    (profiled / "results.jsonl").write_text("".join(lines[:half_a_round]))
    (profiled / "table.json").unlink()
    shutil.rmtree(profiled / "derived")
    said = done("profile", RECIPE, "--minutes", "1e-9")
    assert "at most 1e-09 min in all: what matters most comes first" in said.out
    partial = LatencyTable.load(profiled / "table.json")
    assert {"skipped"} < {r.status for r in partial.rows.values()} <= {"ok", "doubtful", "skipped"}
    assert not (profiled / "derived").exists()
    refused = hwnas("search", RECIPE)
    assert refused.code == 2
    assert "was not reached when" in refused.err
    said = done("profile", RECIPE)
    assert f"{len(partial.unsettled)} rows are doubtful or were left out; measuring these again" in said.out
    again = LatencyTable.load(profiled / "table.json")
    assert again.unsettled == []
    assert again.rows == whole.rows  # the fake engine measures the same every time
    assert again.correction == whole.correction
    assert again.report["derived"]["n"] >= 1
    assert "nothing to do" in done("profile", RECIPE).out


def test_a_table_that_lacks_only_networks_is_gone_on_with(profiled: Path) -> None:
    """Ops come first in a plan: a bound on the time leaves out networks before it leaves out ops."""
    whole = LatencyTable.load(profiled / "table.json")
    networks = {e.key for e in load_plan(profiled / "plan").entries if e.role == "net"}
    path = profiled / "results.jsonl"
    lines = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line).get("key") not in networks]
    path.write_text("".join(lines))
    (profiled / "table.json").unlink()
    done("profile", RECIPE, "--minutes", "1e-9")
    partial = LatencyTable.load(profiled / "table.json")
    assert {r.status for r in partial.rows.values()} == {"ok"}
    assert partial.nets == []
    assert set(partial.unsettled) == networks
    refused = hwnas("profile", RECIPE, "--minutes", "1e-9", "--require-mape", "5")
    assert refused.code == 2
    assert "has no held-out networks, so --require-mape cannot be answered; profile again" in refused.err
    assert "measuring these again" in done("profile", RECIPE).out
    again = LatencyTable.load(profiled / "table.json")
    assert again.unsettled == []
    assert (again.nets, again.correction) == (whole.nets, whole.correction)


def test_when_nothing_was_reached_it_says_so(profiled: Path) -> None:
    for made in ("table.json", "results.jsonl"):
        (profiled / made).unlink()
    said = hwnas("profile", RECIPE, "--minutes", "1e-9")
    assert said.code == 2
    assert "time was up before any op of runs/darts-tiny/results.jsonl was measured; go on with the same" in said.err
    assert not (profiled / "table.json").exists()
    assert done("profile", RECIPE).following == f"hwnas search {RECIPE}"


def test_doubtful_rows_are_measured_again_until_the_run_was_searched(
    profiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(recipes.get(RECIPE), stop=StopRule(3, 3, 0.0, relative_ci=1e-9, net_relative_ci=1e-9))
    monkeypatch.setattr(base, "_RECIPES", {RECIPE: lambda: strict})
    edit(profiled / "run.json", recipe_settings=encode(strict, Recipe))
    (profiled / "table.json").unlink()
    shutil.rmtree(profiled / "derived")
    done("profile", RECIPE)
    doubtful = LatencyTable.load(profiled / "table.json")
    assert {r.status for r in doubtful.rows.values()} == {n.status for n in doubtful.nets} == {"doubtful"}
    assert len(doubtful.unsettled) == len(doubtful.rows) + len(doubtful.nets)
    before = (profiled / "table.json").read_bytes()
    (profiled / "search.pt").touch()
    assert "nothing to do" in done("profile", RECIPE).out  # a search goes by this very table
    assert (profiled / "table.json").read_bytes() == before
    (profiled / "search.pt").unlink()
    assert f"{len(doubtful.unsettled)} rows are doubtful" in done("profile", RECIPE).out
    again = LatencyTable.load(profiled / "table.json")
    assert max(r.visits for r in again.rows.values()) == 6
    assert {r.stop for r in again.rows.values()} <= {"ci", "stable"}  # "ci" where the quietest visits are equal
    assert again.unsettled == []
    assert "nothing to do" in done("profile", RECIPE).out


def test_an_error_of_the_table_that_is_too_large(profiled: Path) -> None:
    error = 100 * LatencyTable.load(profiled / "table.json").report["predictors"]["ours"]["mape"]
    before = tree(profiled)
    for percent, code in ((f"{error + 0.01}", 0), (f"{error - 0.01}", 1)):
        said = hwnas("profile", RECIPE, "--require-mape", percent)
        assert (said.code, said.err) == (code, "")
        shown = f"the table's error is {error:.2f} %, more than the {float(percent):g} % asked for"
        assert (shown in " ".join(said.out.split())) == bool(code)
    refused = hwnas("profile", RECIPE, "--require-mape", "nan")
    assert (refused.code, "got nan" in refused.err) == (2, True)
    assert tree(profiled) == before


def test_derive_another_budget_into_another_run(finished: Path) -> None:
    before = tree(finished)
    said = done("derive", RECIPE, "--fps", "3000", "--to", "slow.3000")
    assert tree(finished) == before
    assert said.following == "hwnas train slow.3000"
    old, new = Run(RECIPE).derived(), Run("slow.3000").derived()
    assert (new.budget_ms, new.predicted_ms <= new.budget_ms) == (1000 / 3000, True)
    assert new.predicted_ms > old.predicted_ms
    derived = tree(finished.parent)
    assert "nothing to do" in done("derive", RECIPE, "--fps", "3000", "--to", "slow.3000").out
    assert tree(finished.parent) == derived
    assert done("train", "slow.3000").following == "hwnas export slow.3000"
    listed = done("ls").out
    for name, stages in (("slow.3000", STAGES[:3]), (RECIPE, STAGES)):
        so_far = ", ".join({"search": "searched"}.get(s, s.removesuffix("e") + "ed") for s in stages)
        assert re.search(rf"^{name} +{RECIPE} +{so_far} +fake-roofline-1/fake-fp32-b1 *$", listed, re.MULTILINE)


def test_derive_is_named_after_its_budget_and_the_search_is_repeated_by_its_own(finished: Path) -> None:
    assert done("derive", RECIPE, "--fps", "3000.4").following == f"hwnas train {RECIPE}-3000fps"
    done("derive", RECIPE, "--to", "again")
    again, own = Run("again").derived(), Run(RECIPE).derived()
    assert replace(again, discretisation_gap=own.discretisation_gap) == own  # that is judged on fewer images here


def test_a_search_with_a_table_from_elsewhere_takes_it_into_the_run(profiled: Path) -> None:
    shutil.move(profiled / "table.json", "elsewhere.json")
    shutil.rmtree(profiled)
    done("search", RECIPE, "--run", "guest", "--table", "elsewhere.json", "--fps", "3000")
    assert Path("runs/guest/table.json").read_bytes() == Path("elsewhere.json").read_bytes()


def test_a_search_with_two_tables_holds_its_network_to_both(profiled: Path) -> None:
    shutil.copy(profiled / "table.json", "b.json")
    tables = ("--table", str(profiled / "table.json"), "--table", "b.json")
    refused = hwnas("search", RECIPE, "--run", "both", *tables)
    assert "2 --table need a budget: give --fps once for all of them, or once for each" in refused.err
    impossible = hwnas("search", RECIPE, "--run", "both", *tables, "--fps", "3000", "--fps", "1e9")
    assert re.search(r"1000000000\.0 fps by b\.json", impossible.err)
    assert not Path("runs/both").exists()
    done("search", RECIPE, "--run", "both", *tables, "--fps", "2900", "--fps", "3600")
    derived = Run("both").derived()
    assert derived.budget_ms == 1000 / 2900
    assert derived.predicted_ms < 1000 / 3600  # the stricter of two equal tables
    log = StepLog(Path("runs/both/search.jsonl")).read()
    assert log[-1]["derived_ms_2"] == log[-1]["derived_ms"]
    assert "was made with how" in hwnas("search", RECIPE, "--run", "both", *tables, "--fps", "2900").err


def test_the_budget_and_its_verdict(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["met"] is True
    assert done("validate", RECIPE, "--require-budget").code == 0
    edit(finished / "report.json", met=False)
    assert hwnas("validate", RECIPE).code == 0
    assert hwnas("validate", RECIPE, "--require-budget").code == 1


def test_measuring_again_keeps_the_report_before(finished: Path) -> None:
    old = (finished / "report.json").read_bytes()
    done("validate", RECIPE, "--again")
    assert (finished / "report-1.json").read_bytes() == old
    new = json.loads((finished / "report.json").read_text())
    assert new == json.loads(old)  # the fake engine measures the same every time


def test_a_table_without_its_plan_still_tells_how_fast_the_machine_is(finished: Path) -> None:
    before = json.loads((finished / "report.json").read_text())
    shutil.rmtree(finished / "plan")
    done("validate", RECIPE, "--again")
    after = json.loads((finished / "report.json").read_text())
    assert after == before  # the same networks to the byte, so the same times
    again = tree(finished / "references")
    done("validate", RECIPE, "--again")
    assert tree(finished / "references") == again


def test_a_search_on_a_folder_with_images(profiled: Path) -> None:
    data = camvid_folder(Path("pictures"))
    done("search", RECIPE, "--run", "own", "--data", data, "--table", profiled / "table.json")
    done("train", "own")
    assert json.loads(Path("runs/own/run.json").read_text())["data"] == str(data.resolve())
    assert [r["step"] for r in StepLog(Path("runs/own/train.jsonl")).read()] == list(range(6))


@pytest.mark.parametrize(
    ("kind", "shape", "scope"),
    [
        ("logits", [1, 11, 48, 64], "network with upsampling, without argmax"),
        ("scores", [1, 11, 6, 8], "network without upsampling and argmax"),
    ],
)
def test_scores_instead_of_labels(finished: Path, kind: str, shape: list[int], scope: str) -> None:
    before = json.loads((finished / "report.json").read_text())
    shutil.rmtree(finished / "deploy")
    said = done("export", RECIPE, f"--{kind}")
    assert done("export", RECIPE, f"--{kind}").following == said.following == f"hwnas validate {RECIPE}"
    output = onnx.load(finished / "deploy" / "model.onnx").graph.output[0]
    assert (output.name, [d.dim_value for d in output.type.tensor_type.shape.dim]) == (kind, shape)
    assert VERDICT.search(done("validate", RECIPE).out)
    report = json.loads((finished / "report.json").read_text())
    assert report["scope"] == scope
    assert report["test_miou"] == pytest.approx(before["test_miou"], abs=1e-4)
    assert report["torch_miou"] == before["torch_miou"]
    assert report["predicted_ms"] < before["predicted_ms"]  # what is not in the file is not predicted
    assert report["error"] == pytest.approx(before["error"], abs=0.02)
    assert json.loads((finished / "report-1.json").read_text()) == before


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validation measure a real engine for a moment, however restless the machine is."""
    monkeypatch.setattr(validate, "STOP", StopRule(3, 6, 0.0))
    monkeypatch.setattr(validate, "PATIENCE_S", 0.0)


@pytest.mark.usefixtures("briefly")
def test_an_export_for_another_engine_and_precision(finished: Path) -> None:
    shutil.rmtree(finished / "deploy")
    said = done("export", RECIPE, "--precision", "fp16")
    assert "of the labels differ from the network's" in said.out
    bundle = Bundle.load(finished / "deploy")
    assert (bundle.engine, bundle.precision, bundle.parity["label_difference"] <= 0.01) == ("fake", "fp16", True)
    done("validate", RECIPE)
    report = json.loads((finished / "report.json").read_text())
    assert (report["where"]["engine"]["precision"], report["scored_with"]) == ("fp16", "onnxruntime")
    assert report["slowdown"] is None  # networks of a table in float32 say nothing
    shutil.rmtree(finished / "deploy")
    done("export", RECIPE, "--engine", "openvino")
    bundle = Bundle.load(finished / "deploy")
    assert (bundle.engine, bundle.precision, bundle.threads) == ("openvino", "fp32", 1)
    assert bundle.device == json.loads(json.dumps(provenance(open_engine("openvino"))))
    assert bundle.versions["engine"] == bundle.device["engine"]["version"]
    why = "no reference networks: the table is of another engine, or of networks that the recipe does not draw"
    assert why in done("validate", RECIPE).out
    report = json.loads((finished / "report.json").read_text())
    assert (report["where"]["engine"]["name"], report["scored_with"]) == ("openvino", "openvino")
    assert report["table"].endswith("fake-fp32-b1")
    assert report["accepted"]


@pytest.mark.usefixtures("briefly")
def test_the_same_file_for_another_engine_is_measured_anew(finished: Path) -> None:
    """In float32 the ONNX file is the same to the byte."""
    before = json.loads((finished / "report.json").read_text())
    shutil.rmtree(finished / "deploy")
    done("export", RECIPE, "--engine", "torch")
    assert "nothing to do" not in done("validate", RECIPE).out
    after = json.loads((finished / "report.json").read_text())
    assert after["model_sha256"] == before["model_sha256"]
    assert after["where"]["engine"]["name"] == "torch"


def test_an_engine_that_builds_ships_what_it_built(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the process that measures
    shutil.rmtree(finished / "deploy")
    done("export", RECIPE, "--engine", "tests.test_bundle:Building")
    bundle = Bundle.load(finished / "deploy")
    assert bundle.built is not None
    assert bundle.built["sha256"] == sha256((finished / "deploy" / str(bundle.built["file"])).read_bytes())
    # Its application says that all is of one class, and so may the network after six steps of training.
    monkeypatch.setattr(validation, "evaluate", lambda *args: SimpleNamespace(miou=lambda: 0.5))
    refused = hwnas("validate", RECIPE)
    assert refused.code == 2
    report = json.loads((finished / "report.json").read_text())
    assert report["scored_with"] == "tests.test_bundle:Building"
    assert report["accepted"] is False
    assert f"test mIoU is {report['test_miou']:.2%}, its network's {report['torch_miou']:.2%}: more" in refused.err


def test_a_file_that_is_worse_than_its_network_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miou = json.loads((finished / "report.json").read_text())["torch_miou"]
    for lost, accepted in ((0.004, True), (0.006, False)):
        monkeypatch.setattr(validation, "evaluate", lambda *args, lost=lost: SimpleNamespace(miou=lambda: miou + lost))
        said = hwnas("validate", RECIPE, "--again")
        assert said.code == (0 if accepted else 2)
        report = json.loads((finished / "report.json").read_text())
        assert (report["accepted"], report["torch_miou"]) == (accepted, miou + lost)
    assert "more than 0.5 points lower; do not use it, export it in fp32 or for another engine" in said.err
    again = hwnas("validate", RECIPE)
    assert "nothing to do" in again.out
    assert (again.code, again.err) == (said.code, said.err)


def test_ls_of_nothing_names_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = done("ls")
    assert all(name in said.out for name in recipes.names())
    assert not tree(tmp_path)


def test_doctor_says_what_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = done("doctor")
    for name in ("onnxruntime", "fake", "torch"):
        assert re.search(rf"^{name} +yes +\S", said.out, re.MULTILINE)
    assert "overwrite each other" not in said.out
    assert not tree(tmp_path)


def test_doctor_names_the_two_onnxruntimes_as_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "1.0" if n.startswith("onnxruntime") else real(n))
    out = done("doctor").out
    assert re.search("warning: onnxruntime and onnxruntime-gpu are both installed.*uninstall both", out)


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    for name in [n for n in sys.modules if n.partition(".")[0] == "scipy"] + ["scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert re.search(r"^scipy +missing +pip install 'hwnas\[search\]'$", done("doctor").out, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"Example: hwnas {verb}" in capsys.readouterr().out


def test_the_program_ends_with_the_code_of_its_verb(tmp_path: Path) -> None:
    ended = subprocess.run([*CLI, "train", "nothing"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert re.fullmatch(r"hwnas: there is no run 'nothing' here \(runs: none\); .*\n", ended.stderr)
    assert not ended.stdout
