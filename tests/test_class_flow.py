"""From data to classes, names and colours; data that moved; and splits that are looked at before the first step."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hwnas import cli
from hwnas.cli import at_home
from hwnas.data import open_dataset, split_halves
from hwnas.errors import HwnasError
from hwnas.jobs.looking import look_at
from hwnas.progress import Silent
from hwnas.run import Run
from tests.five import FIVE, five_classes, five_folder, make_void, write_label
from tests.test_verb_errors import refused
from tests.verbs import RECIPE, camvid_folder, do_job, done, edit, hwnas, job

NAME = "hall"


@pytest.fixture(scope="module")
def five_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of five classes, and a whole job on them: ``finished/`` and ``profiled/``."""
    base = tmp_path_factory.mktemp("five")
    five_folder(base / NAME)
    with five_classes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("hwnas.search.rerank.IMAGES", 8)
        do_job(base / "finished", job(RECIPE, "--engine", "fake", "--data", str(base / NAME)), base / "profiled")
    return base


def own(five_job: Path, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy runs and data; the run says that its data are those of the copy."""
    shutil.copytree(five_job / state / "runs", tmp_path / "runs")
    shutil.copytree(five_job / NAME, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hwnas.search.rerank.IMAGES", 8)
    edit(tmp_path / "runs" / RECIPE / "run.json", data=str(tmp_path / NAME))
    return tmp_path / "runs" / RECIPE


@pytest.fixture
def profiled(five_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run after profiling, ours to change, below the current directory."""
    with five_classes():
        yield own(five_job, "profiled", tmp_path, monkeypatch)


@pytest.fixture
def finished(five_job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run after all verbs, ours to change, below the current directory."""
    with five_classes():
        yield own(five_job, "finished", tmp_path, monkeypatch)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The data alone, in the current directory."""
    monkeypatch.chdir(tmp_path)
    with five_classes():
        yield five_folder(Path(NAME))


class TestClasses:
    def test_flow_into_the_run(self, profiled: Path) -> None:
        run = Run(RECIPE)
        assert run.recipe.space.classes == 5
        assert run.settings.overrides == {"space.classes": "5"}
        assert run.changes() == ()
        assert re.search(rf"{RECIPE} .*profiled .*space\.classes=5", done("ls").out)

    def test_the_same_command_again_is_complete(self, profiled: Path) -> None:
        for data in ((), ("--data", NAME)):
            assert "nothing to do" in done("profile", RECIPE, *data).out

    def test_reach_the_bundle_the_report_and_the_pictures(self, finished: Path) -> None:
        bundle = json.loads((finished / "deploy" / "engine.json").read_text())
        assert bundle["classes"] == list(FIVE.names)
        assert bundle["palette"] == [list(c) for c in FIVE.palette]
        report = json.loads((finished / "report.json").read_text())
        assert list(report["iou"]) == list(FIVE.names)
        with Image.open(finished / "predictions.png") as picture:
            colours = {c for _, c in picture.convert("RGB").getcolors(1 << 24) or ()}
        assert set(FIVE.palette) <= colours

    def test_of_the_recipes_own_number_change_nothing(self, empty: Path) -> None:
        camvid_folder(Path("streets"))
        run = Run(RECIPE)
        run.ask(RECIPE, data=str(Path("streets").resolve()))
        run.adopt_classes()
        assert run.settings.overrides is None

    def test_that_were_set_by_name_stay_and_must_be_those_of_the_data(self, empty: Path) -> None:
        args = ("profile", RECIPE, "--data", NAME, "--set")
        refused(
            *args, "space.classes=7", match="is for segmentation into 7 classes, hall/train for segmentation into 5"
        )
        run = Run(RECIPE)
        run.ask(RECIPE, {"space.classes": "5"}, data=str(Path(NAME).resolve()))
        run.adopt_classes()
        assert len(run.data("train").classes) == 5

    def test_of_another_number_are_refused_later(self, profiled: Path) -> None:
        edit(profiled / "run.json", data=None, identity=None)
        camvid_folder(Path("streets"))
        match = "is for segmentation into 5 classes, streets/train for segmentation into 11; .* a run with --run NAME"
        refused("search", RECIPE, "--data", "streets", match=match)

    def test_of_another_task_are_refused(self, empty: Path) -> None:
        match = "is for segmentation into 11 classes, synthetic-shapes/train for classification into 10; take another"
        refused("profile", RECIPE, "--data", "synthetic-shapes", match=match)
        assert not Path("runs").exists() or not list(Path("runs").iterdir())

    def test_a_table_for_another_number_names_the_command(self, empty: Path, jobs: Path) -> None:
        table = jobs / "profiled" / "runs" / RECIPE / "table.json"
        error = refused("search", RECIPE, "--table", table, "--data", NAME, match="has no row for", leaves="runs")
        folder = shlex.quote(str(empty.resolve()))
        assert f"here that is: hwnas profile {RECIPE} --data {folder} (its networks are for 5 classes" in error

    def test_a_search_without_a_table_names_the_whole_command(self, empty: Path) -> None:
        folder = re.escape(str(empty.resolve()))
        match = f"run first: hwnas profile {RECIPE} --data {folder} --set search.steps=7$"
        refused("search", RECIPE, "--data", NAME, "--set", "search.steps=7", match=match, leaves="runs")

    def test_a_table_of_the_data_serves_another_run(self, profiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hwnas.jobs.searching.run_search", begun)
        hwnas("search", RECIPE, "--run", "second", "--data", NAME, "--table", profiled / "table.json")
        assert Run("second").recipe.space.classes == 5

    def test_flow_into_a_plan_for_another_box(self, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        planned = []
        monkeypatch.setattr("hwnas.jobs.plan", lambda recipe, *_: planned.append(recipe.space.classes), raising=False)
        monkeypatch.setattr("hwnas.show.planned", lambda *_: None, raising=False)
        done("profile", RECIPE, "--data", NAME, "--plan-only", "plan")
        assert planned == [5]


def begun(*_: object) -> None:
    """Stand for the steps of a search."""
    raise HwnasError("here is the first step")


def move(name: str = "elsewhere") -> Path:
    """Move the data; return where they are."""
    shutil.move(NAME, name)
    return Path(name).resolve()


# A verb that reads data, and what it made, without which it has something to do.
READERS = [
    ("search", ("arch.json", "alphas.json", "search.pt", "search.jsonl")),
    ("train", ("train", "train.jsonl")),
    ("export", ("deploy",)),
    ("validate", ("report.json",)),
]


def undo(run: Path, names: tuple[str, ...]) -> None:
    for path in (run / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.slow
class TestMoved:
    def test_the_run_knows_its_data(self, profiled: Path) -> None:
        identity = Run(RECIPE).settings.identity
        assert identity is not None
        assert identity.name == NAME
        assert set(identity.splits) == {"train", "val", "test"}

    @pytest.mark.parametrize(("verb", "made"), READERS)
    def test_a_verb_says_so_and_takes_the_new_place(self, finished: Path, verb: str, made: tuple[str, ...]) -> None:
        undo(finished, made)
        place = move()
        match = f"the data of the run '{RECIPE}' are not at .*{NAME} any more; moved\\? name the new place with --data"
        refused(verb, RECIPE, match=match)
        done(verb, RECIPE, "--data", "elsewhere")
        assert Run(RECIPE).settings.data == str(place)
        assert Run(RECIPE).settings.identity is not None

    def test_derive_takes_the_new_place_for_both_runs(self, finished: Path) -> None:
        place = move()
        done("derive", RECIPE, "--fps", "2900", "--to", "other", "--data", "elsewhere")
        assert {Run(n).settings.data for n in (RECIPE, "other")} == {str(place)}
        assert Run("other").settings.identity == Run(RECIPE).settings.identity

    @pytest.mark.parametrize("verb", ["search", "train", "export", "validate"])
    def test_a_verb_with_nothing_to_do_keeps_the_new_place(self, finished: Path, verb: str) -> None:
        place = move()
        done(verb, RECIPE, "--data", "elsewhere")
        assert Run(RECIPE).settings.data == str(place)

    def test_a_training_goes_on_although_the_folder_has_another_name(self, finished: Path) -> None:
        before = (finished / "train" / "model.safetensors").read_bytes()
        (finished / "train" / "model.safetensors").unlink()
        move("renamed")
        done("train", RECIPE, "--data", "renamed")
        assert (finished / "train" / "model.safetensors").read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda f: (f / "val.txt").write_text("val-0\nval-1"), "its val has 2 samples, not 4"),
            (lambda f: (f / "test.txt").unlink(), "it has no test that can be used"),
            (lambda f: make_void(f, "train"), "other samples or labels are in its train"),
        ],
    )
    def test_other_data_are_refused(self, finished: Path, change: Callable[[Path], object], why: str) -> None:
        place = move()
        change(place)
        for verb in ("search", "train", "export", "validate"):
            refused(verb, RECIPE, "--data", "elsewhere", match=f"elsewhere holds others: {why}; name the place")

    def test_drawn_data_stay_what_they_are(self, finished: Path) -> None:
        refused("train", RECIPE, "--data", "synthetic", match="was made with data '.*hall', not 'synthetic'")

    @pytest.mark.parametrize(("verb", "made"), READERS[1:])
    def test_an_older_run_learns_what_its_data_are(self, finished: Path, verb: str, made: tuple[str, ...]) -> None:
        identity = Run(RECIPE).settings.identity
        undo(finished, made)
        edit(finished / "run.json", identity=None)
        assert Run(RECIPE).settings.identity is None
        done(verb, RECIPE)
        assert Run(RECIPE).settings.identity == identity

    def test_an_older_run_whose_data_moved_says_that_nothing_proves_it(self, finished: Path) -> None:
        edit(finished / "run.json", identity=None)
        move()
        said = done("validate", RECIPE, "--again", "--data", "elsewhere")
        assert re.search("warning: the run .* was made before it kept what tells its data from others", said.out)
        assert Run(RECIPE).settings.identity is not None
        assert "warning" not in done("validate", RECIPE, "--again").out

    def test_an_older_run_whose_data_were_copied_is_compared(self, finished: Path) -> None:
        edit(finished / "run.json", identity=None)
        shutil.copytree(NAME, "copy")
        make_void(Path("copy"), "val")
        refused("train", RECIPE, "--data", "copy", match="copy holds others: other samples or labels are in its val")


class TestHome:
    def test_stands_for_a_folder_also_behind_an_equals_sign(self, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(Path.cwd()))
        monkeypatch.setattr("hwnas.sheet.GRID_WIDTH", 320)
        run = cli._begin(RECIPE, None, at_home(cli.Search(RECIPE, data=Path("~/hall"))).data, ())
        assert run.settings.data == str(Path(NAME).resolve())
        done("data", "~/hall", "--out=~/seen.png")
        assert Path("seen.png").exists()

    @pytest.mark.parametrize("verb", cli.VERBS)
    def test_is_meant_in_every_path_of_every_verb(self, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/me")
        kind = cli.VERBS[verb]
        paths = [f.name for f in fields(kind) if "Path" in str(f.type) or f.name in ("data", "table", "out")]
        blank: Any = object.__new__(kind)
        for f in fields(kind):
            value: Any = Path("~/x") if f.name in paths else "word"
            object.__setattr__(blank, f.name, (value,) if "Tables" in str(f.type) else value)
        after = at_home(blank)
        for name in paths:
            value = getattr(after, name)
            assert value in (Path("/home/me/x"), (Path("/home/me/x"),))
        assert all(getattr(after, f.name) == "word" for f in fields(kind) if f.name not in paths)

    @pytest.mark.parametrize("value", ["a~b", "search.steps=6", "x/~", ""])
    def test_is_meant_at_the_beginning_alone(self, value: str) -> None:
        assert at_home(cli.Price(value)).network == value

    def test_of_nobody(self) -> None:
        with pytest.raises(HwnasError, match="in the home of a user whom this machine does not know"):
            at_home(cli.Price("~nobody-of-this-name/table.json"))


class Notes(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str, warning: bool = False) -> None:
        assert warning
        self.lines.append(text)


def one_class(folder: Path) -> None:
    for path in (folder / "test" / "labels").glob("*.png"):
        write_label(path, np.full((48, 64), 2))


def equal(folder: Path) -> None:
    for i in range(4):
        shutil.copy(folder / f"train/images/train-{i}.png", folder / f"val/images/val-{i}.png")


NO_TEST = "warning: no test: .* has no test.txt; list names there; hwnas validate scores the exported file on it$"
VOID_TEST = "warning: no label of hall/test has a class, all of its pixels are void: hwnas validate scores"
WARNED = [
    (lambda f: (f / "test.txt").unlink(), NO_TEST),
    (lambda f: make_void(f, "test"), VOID_TEST),
    (one_class, "warning: all labels of hall/test are crate: a score on it says nothing of the 4 other classes$"),
    (equal, r"warning: equal images in two splits: 4 in train and val \(train-0 = val-0, .*, and 1 more\): scores on"),
]


def half_void(folder: Path) -> None:
    make_void(folder, "train", *split_halves(4, Run(RECIPE).seeded_recipe.search.seed)[1])


class TestLooked:
    @pytest.mark.parametrize(("change", "said"), WARNED)
    @pytest.mark.parametrize("opened", [("train",), ("train", "val")])
    def test_what_search_and_training_warn_of(
        self, profiled: Path, change: Callable[[Path], object], said: str, opened: tuple[str, ...]
    ) -> None:
        change(Path(NAME))
        run, notes = Run(RECIPE), Notes()
        also = [s for s in ("val", "test") if s not in opened]
        look_at(run, {s: run.data(s) for s in opened}, notes, also)
        assert len(notes.lines) == 1
        assert re.search(said, notes.lines[0])

    def test_data_in_order_give_no_line(self, profiled: Path) -> None:
        run, notes = Run(RECIPE), Notes()
        look_at(run, {"train": run.data("train")}, notes, ("val", "test"), halves=(0, 1, 2))
        assert notes.lines == []

    def test_drawn_data_are_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = open_dataset("synthetic", "train", (32, 32))
        monkeypatch.setattr(type(data), "draw", lambda *_: pytest.fail("it was read"))
        look_at(Run("none"), {"train": data}, Notes(), halves=(0,))

    def test_a_search_says_it_before_its_first_step(self, profiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hwnas.jobs.searching.run_search", begun)
        make_void(Path(NAME), "test")
        make_void(Path(NAME), "val")
        said = hwnas("search", RECIPE)
        assert "the first step" in said.err
        out = said.out
        lines = [n for n in out.splitlines() if n.startswith("warning:")]
        assert len(lines) == 2
        assert "hall/val" in lines[0]
        assert "hall/test" in lines[1]
        assert out.index(lines[1]) < out.index("budget ")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                lambda f: make_void(f, "train"),
                "no label of hall/train has a class, .*; give it labels, see .* hwnas data",
            ),
            (half_void, "none of the 2 samples of hall/train that the alphas would learn on has a label; .*--seed"),
        ],
    )
    def test_a_search_that_would_learn_nothing_is_refused(
        self, profiled: Path, change: Callable[[Path], object], said: str
    ) -> None:
        change(Path(NAME))
        edit(profiled / "run.json", identity=None)
        refused("search", RECIPE, match=said)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_training_without_labels_is_refused(self, finished: Path, split: str) -> None:
        undo(finished, ("train", "train.jsonl"))
        make_void(Path(NAME), split)
        refused("train", RECIPE, match=f"no label of hall/{split} has a class")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda f: make_void(f, "test"), "no label of hall/test has a class, .*; give it labels"),
            (lambda f: (f / "test.txt").unlink(), "no test.txt; .*; without a test split there is no score"),
        ],
    )
    def test_nothing_is_measured_without_a_test_split(
        self, finished: Path, change: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        change(Path(NAME))
        monkeypatch.setattr("hwnas.jobs.validation.measure_network", lambda *_, **__: pytest.fail("it was measured"))
        refused("validate", RECIPE, "--again", match=said)
