"""`hwnas train` beyond the plain call: settings, more steps, weights to start from, teachers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwnas.errors import HwnasError
from hwnas.jobs.teaching import open_teacher
from hwnas.jobs.training import TrainSettings
from hwnas.learn.weights import read_weights, write_weights
from hwnas.run import Run
from tests.test_verb_errors import refused
from tests.verbs import RECIPE, done, losses, untrain

MODEL = Path("train/model.safetensors")
SIZE = (48, 64)  # that the recipe's networks are exported at
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def untrained(finished: Path) -> Path:
    """A run that is searched but not trained, beside the run ``teacher``, which is."""
    return untrain(finished, "teacher")


def test_settings_after_the_search_are_the_run_s(untrained: Path) -> None:
    said = done("train", RECIPE, "--set", "train.loss=ohem", "--set", "train.steps=4")
    assert "of 4\n" in said.out
    own = Run(RECIPE).settings
    assert own.overrides == {"train.loss": "ohem", "train.steps": "4"}
    assert (own.recipe_settings.train.loss, own.recipe_settings.train.steps) == ("ohem", 4)
    assert len(losses(untrained)) == 4
    assert losses(untrained) != losses(untrained.with_name("teacher"))[:4]
    assert "complete" in done("train", RECIPE, "--set", "train.loss=ohem").out
    refused("train", RECIPE, "--set", "train.loss=focal", match='has a training with train.loss "ohem", not "focal"')
    shutil.rmtree(untrained / "train")
    done("train", RECIPE, "--set", "train.loss=focal")
    assert Run(RECIPE).recipe.train.loss == "focal"


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("search.steps=3", r"takes settings of its own, train\.NAME, got search\.steps"),
        ("train.loss=hinge", "unknown train.loss 'hinge'"),
        ("train.distill=darts-tiny", "'darts-tiny' cannot be its own teacher"),
        ("train.distill=nobody", "there is no run 'nobody' here"),
        ("train.distill=no.onnx", "cannot read the teacher at no.onnx"),
        ("train.distill=runs/teacher/deploy/model.onnx", r"needs one input \(N, 3, 32, 48\), the crop of the training"),
        ("train.class_weights=1,2", "needs class_weights for 11 classes, got 2"),
    ],
)
def test_settings_that_cannot_be(untrained: Path, setting: str, why: str) -> None:
    refused("train", RECIPE, "--set", setting, match=why)


def test_a_finished_training_goes_on_to_more_steps(finished: Path) -> None:
    before, old = losses(finished), read_weights(finished / MODEL)
    said = done("train", RECIPE, "--steps", "9")
    assert "of 9\n" in said.out
    assert said.following == f"hwnas export {RECIPE}"
    after = losses(finished)
    assert len(after) == 9
    assert after[:6] == before
    assert read_weights(finished / MODEL).keys() == old.keys()
    assert "of 9\n" in done("train", RECIPE, "--steps", "9").out
    assert "complete" in done("train", RECIPE).out
    refused("train", RECIPE, "--steps", "7", match="got 7 after 9; ask for more")
    refused("train", RECIPE, "--steps", "0", match="needs steps of 1 or more, got 0")
    (finished / "train" / "checkpoint.pt").unlink()
    refused("train", RECIPE, "--steps", "12", match=r"has no checkpoint\.pt to go on from; leave out --steps")


def test_weights_to_start_from(untrained: Path) -> None:
    """At a learning rate of nearly 0 they are those that are written."""
    start = Path("start.safetensors")
    given = read_weights(untrained.with_name("teacher") / MODEL)
    given = {k: v + 0.25 if v.is_floating_point() else v for k, v in given.items()}
    write_weights(start, given)
    done("train", RECIPE, "--weights", start, "--set", "train.lr=1e-30", "--set", "train.decay=0")
    got = read_weights(untrained / MODEL)
    trained = {k for k in given if "running_" not in k and "num_batches" not in k}
    assert trained
    assert all(torch.allclose(got[k], given[k], atol=1e-6) for k in trained)
    # A checkpoint is of the weights it began with.
    (untrained / MODEL).unlink()
    write_weights(start, {k: v * 2 for k, v in given.items()})
    refused("train", RECIPE, "--weights", start, match=r"checkpoint\.pt was made with other settings")


def test_weights_that_cannot_be(untrained: Path) -> None:
    start = Path("start.safetensors")
    refused("train", RECIPE, "--weights", start, match=r"cannot read weights at start\.safetensors")
    write_weights(start, {"stem": torch.ones(3)})
    refused("train", RECIPE, "--weights", start, match="does not hold weights of this network")
    start.write_bytes((untrained.with_name("teacher") / MODEL).read_bytes()[:-4] + b"\0\0\1\0")
    refused("train", RECIPE, "--weights", start, match="was damaged: its checksum does not fit")


def test_a_teacher(untrained: Path) -> None:
    done("train", RECIPE, "--set", "train.distill=teacher", "--set", "train.distill_weight=0.5")
    taught, plain = losses(untrained), losses(untrained.with_name("teacher"))
    assert taught[0] > plain[0]  # the same network, with a loss more
    # The teacher is part of what a checkpoint is of.
    (untrained / MODEL).unlink()
    model = untrained.with_name("teacher") / MODEL
    write_weights(model, {k: v * 2 for k, v in read_weights(model).items()})
    refused("train", RECIPE, match=r"checkpoint\.pt was made with other settings")


def test_a_teacher_that_is_a_file(untrained: Path) -> None:
    name, settings = "runs/teacher/deploy/model.onnx", ("--set", "train.crop=48x64", "--set", "train.steps=2")
    command = ("train", RECIPE, *settings, "--set", f"train.distill={name}")
    refused(*command, match="needs one output of scores of 11 classes; it has .*; export it with --logits or --scores")
    shutil.rmtree(untrained.with_name("teacher") / "deploy")
    done("export", "teacher", "--logits")
    done(*command)
    assert len(losses(untrained)) == 2


def test_both_kinds_of_teacher_give_the_same_loss(untrained: Path) -> None:
    shutil.rmtree(untrained.with_name("teacher") / "deploy")
    done("export", "teacher", "--logits")
    run, data = Run(RECIPE), Run(RECIPE).data("train")
    images, scores = torch.randn(2, 3, *SIZE), torch.randn(2, 11, *SIZE)
    values = []
    for name in ("teacher", "runs/teacher/deploy/model.onnx"):
        config = replace(run.recipe.train, distill=name, crop=SIZE)
        with open_teacher(run, config, data, torch.device("cpu")) as (teacher, digest):
            assert teacher is not None
            assert digest is not None
            values.append(float(teacher(images, scores)))
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_a_teacher_of_other_classes(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwnas.data import Shapes

    run, data = Run(RECIPE), Run(RECIPE).data("train")
    run.ask(overrides={"train.distill": "teacher"}, late=("train",))
    monkeypatch.setattr(Run, "data", lambda self, split: Shapes(split, (32, 32), length=4))
    with (
        pytest.raises(HwnasError, match=r"the teacher 'teacher' has other classes: 10 .* are 11 "),
        open_teacher(run, run.recipe.train, data, torch.device("cpu")),
    ):
        pytest.fail("it was opened")


def test_settings_of_the_job_are_checked() -> None:
    with pytest.raises(HwnasError, match="a training needs steps of 1 or more, got -1"):
        TrainSettings(steps=-1)
