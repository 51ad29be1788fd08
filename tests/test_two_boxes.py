"""A table of another box: the plan is carried there, measured without torch, and its results are carried back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwnas.data import Synthetic
from hwnas.latency import LatencyTable
from hwnas.profile import build_table
from hwnas.run import Run
from hwnas.runtime.deploy.bundle import Bundle, open_application
from hwnas.runtime.measuring.journal import read_journal
from hwnas.runtime.measuring.plan import load_plan
from tests.conftest import run
from tests.test_verb_errors import refused
from tests.test_verbs import VERDICT
from tests.verbs import RECIPE, done, edit, tree

QUICK = ("--visits", "3", "--max-visits", "12", "--spread", "0")  # the recipe's rule
BRIEF = ("--visits", "3", "--max-visits", "3", "--spread", "0")  # for what takes real time


@pytest.fixture(scope="module")
def plan(jobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of darts-tiny as ``--plan-only`` writes it."""
    folder = tmp_path_factory.mktemp("carried") / "plan"
    said = done("profile", RECIPE, "--plan-only", folder)
    assert said.following.startswith("on the device: python -m hwnas.runtime measure plan")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of the search box."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def measured(python: Path, plan: Path, box: Path, *options: str) -> Path:
    """Carry a plan to a box and measure it there; return the results, carried back alone."""
    box.mkdir()
    shutil.copytree(plan, box / "plan")
    run(python, "-c", "import importlib.util as u; assert u.find_spec('torch') is u.find_spec('onnx') is None", cwd=box)
    said = run(python, "-m", "hwnas.runtime", "measure", "plan", *options, cwd=box)
    assert re.search("^next: hwnas profile RECIPE --results plan/results.jsonl$", said, re.MULTILINE)
    return Path(shutil.copy(box / "plan" / "results.jsonl", "carried.jsonl"))


def test_the_plan_is_the_one_a_local_profile_measures(plan: Path, jobs: Path) -> None:
    assert tree(plan) == tree(jobs / "profiled" / "runs" / RECIPE / "plan")


def test_two_boxes_make_the_table_of_one(plan: Path, here: Path, jobs: Path, tmp_path: Path, bare_venv: Path) -> None:
    results = measured(bare_venv, plan, tmp_path / "box", "--engine", "fake", *QUICK)
    shutil.copytree(plan, "runs/far/plan")  # as it would write it, and sooner
    assert done("profile", RECIPE, "--run", "far", "--results", results).following == f"hwnas search {RECIPE} --run far"
    far = LatencyTable.load(Path("runs/far/table.json"))
    near = LatencyTable.load(jobs / "profiled" / "runs" / RECIPE / "table.json")
    assert far.rows == near.rows
    # Networks that are derived take a finished table where the device is; the rest is the same.
    measured_there = jobs / "profiled" / "runs" / RECIPE
    same = build_table(measured_there / "plan", measured_there / "results.jsonl")
    assert (far.nets, far.correction, far.report) == (same.nets, same.correction, same.report)
    assert {n.key for n in far.nets} < {n.key for n in near.nets}  # these have derived ones
    assert {**far.where, "python": "", "os": ""} == {**near.where, "python": "", "os": ""}
    before = tree(here)
    assert "nothing to do" in done("profile", RECIPE, "--run", "far", "--results", results).out
    assert tree(here) == before


def test_a_box_with_onnxruntime_and_the_whole_job_after_it(
    plan: Path, here: Path, jobs: Path, tmp_path: Path, onnxruntime_venv: Path
) -> None:
    results = measured(onnxruntime_venv, plan, tmp_path / "box", *BRIEF)
    done("profile", RECIPE, "--results", results)
    table = LatencyTable.load(Path(f"runs/{RECIPE}/table.json"))
    assert table.where == json.loads(json.dumps(read_journal(results)[0]["where"]))
    assert table.where["engine"]["name"] == "onnxruntime"
    near = LatencyTable.load(jobs / "profiled" / "runs" / RECIPE / "table.json")
    assert table.rows.keys() == near.rows.keys()
    assert [(n.key, n.ops, n.use) for n in table.nets] == [(n.key, n.ops, n.use) for n in near.nets[: len(table.nets)]]

    # The same results make the same table, whichever copy of the plan they are held against.
    for folder, name in ((Path(f"runs/{RECIPE}/plan"), "a.json"), (tmp_path / "box" / "plan", "b.json")):
        build_table(folder, results).save(Path(name))
    assert table.path is not None
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes() == table.path.read_bytes()

    for verb in ("search", "train", "export"):
        done(verb, RECIPE)
    verdict = VERDICT.search(done("validate", RECIPE).out)
    assert verdict is not None
    report = json.loads(Path(f"runs/{RECIPE}/report.json").read_text())
    assert report["where"]["engine"] == table.where["engine"]
    assert report["predicted_ms"] == Run(RECIPE).derived().predicted_ms

    # The bundle alone is carried to the box and looks at a picture there.
    box = tmp_path / "box"
    (box / "deploy").mkdir()
    for name in ("engine.json", "model.onnx"):
        shutil.copy(Path(f"runs/{RECIPE}/deploy") / name, box / "deploy" / name)
    bundle = Bundle.load(box / "deploy")
    test = Synthetic("test", bundle.input.size, length=1)
    Image.fromarray(test[0].image).save(box / "street.png")
    said = run(onnxruntime_venv, "-m", "hwnas.runtime", "run", "deploy", "street.png", cwd=box)
    assert "ms from picture in memory to labels" in said
    with Image.open(box / "street-labels.png") as drawn, open_application(bundle) as application:
        colours = np.asarray(drawn)[:, -bundle.input.size[1] :]
        expected = np.asarray(bundle.palette, np.uint8)[application.labels(test[0].image)]
        assert (colours == expected).all(axis=2).mean() > 0.999


def test_a_box_without_the_packages_says_what_to_install(finished: Path, bare_venv: Path) -> None:
    command = [bare_venv, "-m", "hwnas.runtime", "run", "deploy", "street.png"]
    ended = subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "PIL.Image is not installed; run: pip install 'hwnas[image]'" in ended.stderr


def test_results_of_another_plan_are_refused(finished: Path) -> None:
    other = finished / "deploy" / "validate.jsonl"  # of the plan that validation makes
    shutil.copytree(finished / "plan", "runs/far/plan")
    refused(
        *("profile", RECIPE, "--run", "far", "--results", other),
        match=r"validate\.jsonl holds results of another plan; measure this one, or name its own results",
        leaves="runs/far/.lock",
    )


def test_results_with_no_op_in_them_are_refused(finished: Path) -> None:
    lines = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    Path("some.jsonl").write_text("".join(lines[:5]))
    shutil.copytree(finished / "plan", "runs/far/plan")
    refused(
        *("profile", RECIPE, "--run", "far", "--results", "some.jsonl"),
        match="time was up before any op of some.jsonl was measured; go on with the same command",
        leaves="runs/far/.lock",
    )


def test_results_that_are_not_finished_make_a_table_that_says_so(finished: Path) -> None:
    lines = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    visited = [i for i, line in enumerate(lines) if '"type":"sample"' in line]
    entries = load_plan(finished / "plan").entries
    Path("some.jsonl").write_text("".join(lines[: visited[len(entries) - 3]]))  # in the first round
    shutil.copytree(finished / "plan", "runs/far/plan")
    done("profile", RECIPE, "--run", "far", "--results", "some.jsonl")
    table = LatencyTable.load(Path("runs/far/table.json"))
    assert table.unsettled
    assert all(row.status != "ok" for row in table.rows.values())  # one visit settles nothing


def test_results_for_a_run_on_another_engine_are_refused(finished: Path, tmp_path: Path) -> None:
    (finished / "table.json").unlink()
    edit(finished / "run.json", engine="onnxruntime")
    shutil.copy(finished / "results.jsonl", "carried.jsonl")
    refused("profile", RECIPE, "--results", "carried.jsonl", match="was made with engine 'onnxruntime', not 'fake'")
