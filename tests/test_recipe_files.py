"""Recipes of files: ``hwnas search my_recipes.py:darts_longer``, each verb in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hwnas.errors import HwnasError, RecipeFileError
from hwnas.recipes import from_file
from hwnas.recipes.from_file import Source
from tests.test_extension import ROOT
from tests.verbs import CLI, Said, tree

RECIPES = '''"""Recipes of a user."""

from dataclasses import dataclass, replace

from hwnas import recipes
from hwnas.ops.mixed import candidate
from hwnas.recipes import Recipe
from hwnas.records import stored
from hwnas.search.relax import Softmax
from my_encoder import Stages


@stored("hesitant")
@dataclass(frozen=True)
class Hesitant(Softmax):
    """A softmax by another name."""


def my_own() -> Recipe:
    """Return the smallest recipe on an encoder and a relaxation of this file."""
    base = recipes.get("darts-tiny")
    encoder = Stages(base.space.encoder.scale, ops=("none", "skip_connect", "max_pool_3x3"), nodes=2)
    base = base.searching(steps=3, warmup=1, relaxation=Hesitant())
    calibration = replace(base.calibration, isolated=False, fit=3, test=1, derived=0)
    space = replace(base.space, encoder=encoder)
    return replace(base, space=space, widths=(4,), calibration=calibration)


def nothing():
    """Return no recipe."""


def raises():
    """Raise."""
    return 1 / 0
'''
ENCODER = '''"""An encoder of a user."""

from dataclasses import dataclass

from hwnas.spaces import Chain, encoder


@encoder("stages")
@dataclass(frozen=True)
class Stages(Chain):
    """A chain by another name."""
'''
RUN = "my-own"


def cli(*args: str, cwd: Path) -> Said:
    """Run a verb in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*CLI, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def refused(*args: str, cwd: Path, match: str) -> None:
    """Run a verb that must be refused in one line and change nothing."""
    before = {k: v for k, v in tree(cwd).items() if "__pycache__" not in k}
    said = cli(*args, cwd=cwd)
    assert said.code == 2, said
    assert re.fullmatch(r"hwnas: [^\n]+\n", said.err), said.err
    assert re.search(match, said.err), said.err
    assert {k: v for k, v in tree(cwd).items() if "__pycache__" not in k} == before


def files(folder: Path) -> Path:
    """Write the files of a user into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_encoder.py").write_text(ENCODER)
    (folder / "my_recipes.py").write_text(RECIPES)
    return folder


def test_it_goes_through_the_verbs_and_is_kept(tmp_path: Path) -> None:
    files(tmp_path / "own")
    said = cli("profile", "own/my_recipes.py:my_own", "--engine", "fake", "--set", "search.batch=3", cwd=tmp_path)
    assert said.code == 0, said
    assert said.following == "hwnas search own/my_recipes.py:my_own"
    stored = json.loads((tmp_path / "runs" / RUN / "run.json").read_text())
    assert stored["recipe"] == stored["recipe_settings"]["name"] == RUN
    assert stored["source"]["path"] == str(tmp_path / "own/my_recipes.py")
    assert stored["source"]["beside"] == "own/my_recipes.py"
    assert stored["parts"]["encoder/stages"] == str(tmp_path / "own/my_encoder.py")
    for verb in (said.following.split()[1:], ["derive", RUN, "--to", "derived"], ["train", "derived"]):
        said = cli(*verb, cwd=tmp_path)
        assert said.code == 0, said
        assert "warning" not in said.out
    assert json.loads((tmp_path / "runs/derived/run.json").read_text())["source"] == stored["source"]

    refused("search", "own/my_recipes.py:raises", "--run", RUN, cwd=tmp_path, match="made with recipe 'my-own', not 'r")
    shutil.copy(tmp_path / "own/my_recipes.py", tmp_path / "own/other.py")
    (tmp_path / "own/other.py").write_text(RECIPES + "\n")
    refused("search", "own/other.py:my_own", cwd=tmp_path, match="was made with .*my_recipes.py:my_own, not .*other.py")
    for named in (RUN, "own/my_recipes.py:my_own"):
        assert "nothing to do" in cli("search", named, cwd=tmp_path).out

    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("runs", "own"):
        shutil.move(tmp_path / name, moved / name)
    said = cli("export", "derived", cwd=moved)
    assert said.code == 0, said

    (moved / "own/my_recipes.py").write_text(RECIPES.replace("steps=3", "steps=4"))
    said = cli("search", RUN, cwd=moved)
    assert said.code == 0, said
    assert re.search(r"warning: \S+own/my_recipes.py has changed since the run my-own was made", said.out)
    assert "search.steps 3, now 4" in said.out

    (moved / "own/my_recipes.py").unlink()
    refused(
        "train", "derived", cwd=moved, match=r"runs/derived/run.json cannot be read: its recipe is from .*put it back"
    )
    said = cli("ls", cwd=moved)
    assert said.code == 0, said
    assert re.search(r"^my-own +\? +profiled, searched", said.out, re.MULTILINE)
    assert re.search(
        r"^warning: the run my-own: .*my_recipes.py:my_own, and the file is not there", said.out, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("named", "match"),
    [
        (
            "my_recipes.py:my_onw",
            "unknown function of my_recipes.py 'my_onw'; did you mean 'my_own'. known: my_own, noth",
        ),
        pytest.param("my_recipes.py:", "name the function too: my_recipes.py:FUNCTION", marks=pytest.mark.slow),
        pytest.param("my_recipes.py", "name the function too: my_recipes.py:FUNCTION", marks=pytest.mark.slow),
        pytest.param(
            "no_recipes.py:my_own", "cannot read recipes at .*no_recipes.py: No such file", marks=pytest.mark.slow
        ),
        pytest.param(
            "my_recipes.py:nothing",
            "my_recipes.py:nothing should return a Recipe, got a NoneType",
            marks=pytest.mark.slow,
        ),
        ("my_recipes.py:raises", r"my_recipes.py:35: ZeroDivisionError: division by zero"),
        pytest.param(
            "bad_import.py:a",
            r"bad_import.py:2: ModuleNotFoundError: No module named 'nowhere'",
            marks=pytest.mark.slow,
        ),
        ("bad_syntax.py:a", r"bad_syntax.py:1: SyntaxError: invalid syntax"),
        pytest.param("bad_exit.py:a", r"bad_exit.py:1: SystemExit: 3", marks=pytest.mark.slow),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(tmp_path: Path, named: str, match: str) -> None:
    files(tmp_path)
    (tmp_path / "bad_import.py").write_text("import json\nimport nowhere\n")
    (tmp_path / "bad_syntax.py").write_text("def\n")
    (tmp_path / "bad_exit.py").write_text("raise SystemExit(3)\n")
    refused("profile", named, cwd=tmp_path, match=match)


def test_a_run_whose_parts_nothing_imports_says_which_file_has_them(tmp_path: Path) -> None:
    files(tmp_path)
    code = """
import my_recipes
from hwnas.run import Run
run = Run("own")
run.ask(my_recipes.my_own())
run.commit()
"""
    subprocess.run(
        [*CLI[:1], "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}, check=True
    )
    refused(
        "train",
        "own",
        cwd=tmp_path,
        match=r"has a '(encoder/stages|hesitant)', which \S+/my_(encoder|recipes).py defines",
    )
    said = cli("ls", cwd=tmp_path)
    assert said.code == 0
    assert "warning: the run own: " in said.out


class TestSource:
    def test_it_is_where_the_runs_are_rather_than_where_it_was(self, tmp_path: Path) -> None:
        path = files(tmp_path / "here" / "own") / "my_recipes.py"
        source = Source.of(path, "my_own", tmp_path / "here")
        assert source.locate(tmp_path / "here") == path
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        assert source.locate(tmp_path / "there") == tmp_path / "there/own/my_recipes.py"
        (tmp_path / "there/own/my_recipes.py").write_text("")
        assert source.locate(tmp_path / "there") == path  # that one has not changed
        path.unlink()
        assert source.has_changed(source.locate(tmp_path / "there"))
        with pytest.raises(RecipeFileError, match="its recipe is from .*; put it back, or at .*elsewhere/own/my_rec"):
            source.locate(tmp_path / "elsewhere")

    def test_outside_of_the_folder_it_has_one_place(self, tmp_path: Path) -> None:
        path = files(tmp_path / "own") / "my_recipes.py"
        source = Source.of(path, "my_own", tmp_path / "runs-are-here")
        assert source.beside is None
        assert source.written(tmp_path / "runs-are-here") == f"{path}:my_own"

    def test_names_are_told_from_files(self) -> None:
        assert from_file.split("darts-tiny") is None
        assert from_file.split("a b/c.py:d") == (Path("a b/c.py"), "d")
        assert from_file.name_of("c.py:my_own_recipe") == "my-own-recipe"
        with pytest.raises(HwnasError, match="unknown recipe 'darts-tny'; did you mean 'darts-tiny'"):
            from_file.load("darts-tny")
