"""What a user adds is one file each and no change inside: it goes through the whole job and holds the contracts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "extension"


def python(*args: str, cwd: Path) -> str:
    """Run Python with the tests importable; return what it printed."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("recipe", "engine"),
    [
        pytest.param("with-encoder", "fake", marks=pytest.mark.slow),
        pytest.param("with-head", "fake", marks=pytest.mark.slow),
        pytest.param("with-random", "fake", marks=pytest.mark.slow),
        ("with-stages", "fake"),
        ("with-all", "tests.extension.engine:Tortoise"),
    ],
)
def test_it_goes_from_profile_to_validate(recipe: str, engine: str, tmp_path: Path) -> None:
    out = python("-m", "tests.extension.job", recipe, engine, cwd=tmp_path)
    report = json.loads((tmp_path / "runs" / recipe / "report.json").read_text())
    assert report["met"]
    assert report["measured_ms"] == pytest.approx(report["predicted_ms"], rel=0.1)
    assert report["where"]["engine"]["name"] == engine
    assert re.search(r"predicted [\d.]+ ms, measured [\d.]+ ms", out)
    arch = json.loads((tmp_path / "runs" / recipe / "arch.json").read_text())["architecture"]["answers"]
    if recipe not in ("with-head", "with-stages"):
        stages = [op for decision, op in arch.items() if decision.startswith("stage/")]
        assert stages.count("sep_conv_3x3") >= (1 if recipe == "with-encoder" else 2)  # the rule
    if recipe in ("with-stages", "with-all"):
        first = json.loads((tmp_path / "runs" / recipe / "alphas-encoder.json").read_text())
        decided = first["decided"]["answers"]
        assert decided
        assert decided.items() < arch.items()  # and the head's, which the second stage decides
        assert len(first["groups"]) == (2 if recipe == "with-stages" else 0)
        assert len(first.get("trials", ())) == (0 if recipe == "with-stages" else 20)


def test_they_hold_the_contracts(tmp_path: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", "--rootdir", str(ROOT))
    out = python("-m", "pytest", *options, "-c", str(ROOT / "pyproject.toml"), str(FOLDER / "laws.py"), cwd=tmp_path)
    assert re.search(r"\d+ passed", out)
    assert "failed" not in out


def test_each_is_one_file_of_one_title() -> None:
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) < 110, path.name
