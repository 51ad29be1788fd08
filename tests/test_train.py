"""Training of a derived network: it learns, a kill changes nothing, and the best weights are the ones kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hwnas.data import IGNORE_LABEL, ClassList, Sample, SegmentationData, Synthetic
from hwnas.errors import DataError, HwnasError
from hwnas.images import normalise
from hwnas.learn.losses import class_weights
from hwnas.learn.training import TrainConfig, Training, evaluate, train
from hwnas.spaces import Scale, darts_space, sample
from hwnas.steplog import StepLog

SIZE = (32, 48)
SPACE = darts_space(Scale(4, 3, SIZE), 11, nodes=2, head_channels=8)
ARCH = sample(SPACE, np.random.default_rng(0))
CONFIG = TrainConfig(steps=25, batch=2, crop=(24, 32), evaluate_every=10)
SETTINGS = {"arch": ARCH.id}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=6)


@pytest.fixture(scope="module")
def val() -> SegmentationData:
    return Synthetic("val", SIZE, length=3)


@dataclass(frozen=True)
class Fixed:
    """Labels as given, and images whose red channel tells the label."""

    labels: tuple[np.ndarray, ...]
    n_classes: int
    name: str = "fixed/train"
    mean: tuple[float, float, float] = (0.5, 0.4, 0.3)
    std: tuple[float, float, float] = (0.2, 0.3, 0.4)

    @property
    def classes(self) -> ClassList:
        return ClassList(tuple(f"class {i}" for i in range(self.n_classes)), ((0, 0, 0),) * self.n_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        label = self.labels[index].astype(np.uint8)
        return Sample(np.stack([np.where(label == IGNORE_LABEL, 0, label)] * 3, axis=-1) * 20, label, str(index))


class TestClassWeights:
    def test_against_hand_computation(self) -> None:
        """Shares 3/4, 1/4 and 0 of the pixels that are not void: 1 / ln(1.02 + share), scaled to mean 1 over pixels."""
        first = np.array([[0, 0, 0], [1, IGNORE_LABEL, IGNORE_LABEL]])
        second = np.array([[0, 0], [0, 1]])
        raw = [1 / math.log(1.02 + share) for share in (0.75, 0.25, 0.0)]
        mean = 0.75 * raw[0] + 0.25 * raw[1]
        got = class_weights(Fixed((first, second), 3))
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx([w / mean for w in raw], rel=1e-6)

    def test_looks_at_no_more_images_than_asked_for_and_at_both_ends(self) -> None:
        seen: list[int] = []

        class Spy(Fixed):
            def __getitem__(self, index: int) -> Sample:
                seen.append(index)
                return super().__getitem__(index)

        class_weights(Spy((np.zeros((2, 2)),) * 100, 2), sample=5)
        assert seen == [0, 24, 49, 74, 99]

    def test_a_set_without_labels_is_refused(self) -> None:
        with pytest.raises(DataError, match="expected labels in fixed/train, got void pixels only"):
            class_weights(Fixed((np.full((2, 2), IGNORE_LABEL),), 2))


class TestEvaluate:
    LABELS = (np.arange(12).reshape(3, 4) % 5, np.full((5, 2), 3), np.array([[IGNORE_LABEL, 4, 0]]))
    DATA = Fixed(LABELS, 6)

    def perfect(self, image: torch.Tensor) -> torch.Tensor:
        red = (image[:, 0] * self.DATA.std[0] + self.DATA.mean[0]) * 255
        return (red / 20).round().to(torch.uint8)

    def test_a_perfect_network_of_labels_or_scores_has_miou_1(self) -> None:
        def scores(image: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(self.perfect(image).long(), 6).permute(0, 3, 1, 2).float()

        for network in (self.perfect, scores):
            confusion = evaluate(network, self.DATA)
            assert confusion.miou() == confusion.pixel_accuracy() == 1.0
            assert confusion.counts.sum() == 12 + 10 + 2  # void does not count

    def test_a_constant_network_is_right_by_chance_only(self) -> None:
        confusion = evaluate(lambda image: torch.full(image.shape[2:], 3)[None], self.DATA)
        assert confusion.pixel_accuracy() == pytest.approx(12 / 24)
        assert confusion.miou() == pytest.approx((12 / 24) / 5)

    def test_images_come_normalised_one_by_one_at_their_own_size(self) -> None:
        shapes, done = [], []

        def network(image: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(image.shape))
            i = len(shapes) - 1
            expected = normalise(self.DATA[i].image, self.DATA.mean, self.DATA.std)
            np.testing.assert_array_equal(image[0].numpy(), expected)
            assert not torch.is_grad_enabled()
            return self.perfect(image)

        evaluate(network, self.DATA, lambda n, note="", total=None: done.append(n))
        assert shapes == [(1, 3, 3, 4), (1, 3, 5, 2), (1, 3, 1, 3)]
        assert done == [1, 2, 3]


class TestTraining:
    def test_a_small_network_learns_a_few_images(self) -> None:
        """Dark and light blocks, class 0 and class 10."""
        rng = np.random.default_rng(0)
        blocks = [10 * np.kron(rng.integers(0, 2, (2, 3)), np.ones((16, 16))) for _ in range(4)]
        easy = Fixed(tuple(blocks), 11)
        t = Training(SPACE, ARCH, replace(CONFIG, steps=60, batch=4, lr=1e-2), easy)
        t.net.eval()
        assert evaluate(t.net, easy).miou() < 0.3
        losses = [float(t.advance()["loss"]) for _ in range(60)]
        assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
        t.net.eval()
        assert evaluate(t.net, easy).miou() > 0.8

    def test_learning_rate_warms_up_then_falls_as_a_cosine(self, data: SegmentationData) -> None:
        config = replace(CONFIG, steps=40, batch=1)
        t = Training(SPACE, ARCH, config, data)
        rates = []
        for _ in range(config.steps):
            t.advance()
            assert len({group["lr"] for group in t.optimizer.param_groups}) == 1
            rates.append(t.optimizer.param_groups[0]["lr"] / config.lr)
        assert rates[:2] == pytest.approx([0.5, (1 + math.cos(math.pi / 40)) / 2])
        assert rates[1:] == sorted(rates[1:], reverse=True)
        assert rates[20] == pytest.approx(0.5)
        assert 0 < rates[-1] < 0.01

    def test_decay_is_on_kernels_only(self, data: SegmentationData) -> None:
        t = Training(SPACE, ARCH, CONFIG, data)
        decay = {p: g["weight_decay"] for g in t.optimizer.param_groups for p in g["params"]}
        assert decay.keys() == set(t.net.parameters())
        for name, p in t.net.named_parameters():
            free = ".bn" in name or name.endswith("bias")
            assert decay[p] == (0.0 if free else CONFIG.decay), name

    def test_seeds_decide_and_the_global_generator_is_left_alone(self, data: SegmentationData) -> None:
        before = torch.random.get_rng_state()
        trainings = (Training(SPACE, ARCH, replace(CONFIG, seed=s), data) for s in (1, 1, 2))
        one, same, other = (float(t.advance()["loss"]) for t in trainings)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert one == same != other

    def test_a_training_that_diverges_says_so(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path
    ) -> None:
        t, log = Training(SPACE, ARCH, replace(CONFIG, lr=1e30), data), StepLog(tmp_path / "train.jsonl")
        with pytest.raises(HwnasError, match="the training diverged: loss (nan|inf) at step 2; lower its learning"):
            train(t, val, tmp_path, SETTINGS, log)
        assert [line["step"] for line in log.read()] == [0]


class Interrupted(Exception):
    pass


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Return what a log says, but for how long it took."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in StepLog(folder / "train.jsonl").read()]


class TestResume:
    def run(
        self, data: SegmentationData, val: SegmentationData, folder: Path, stop_at: int | None = None
    ) -> tuple[Training, float]:
        t = Training(SPACE, ARCH, CONFIG, data)

        def update(done: int, note: str = "", total: int | None = None) -> None:
            if done == stop_at:
                raise Interrupted

        return t, train(t, val, folder, SETTINGS, StepLog(folder / "train.jsonl"), update)

    def test_an_interrupted_training_ends_with_the_same_bits(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path
    ) -> None:
        whole, best = self.run(data, val, tmp_path / "whole")
        log = steps_of(tmp_path / "whole")
        assert [line["step"] for line in log] == list(range(CONFIG.steps))
        assert [line["step"] for line in log if "val_miou" in line] == [9, 19, 24]
        # Before the first checkpoint, right on one (before it was written), after an evaluation.
        for stop_at in (5, 10, 22):
            folder = tmp_path / str(stop_at)
            with pytest.raises(Interrupted):
                self.run(data, val, folder, stop_at)
            assert not (folder / "model.safetensors").exists()
            again, again_best = self.run(data, val, folder)
            assert again_best == best
            left, right = again.net.state_dict(), whole.net.state_dict()
            assert [k for k in right if not torch.equal(left[k], right[k])] == []
            assert steps_of(folder) == log
            weights = (folder / "model.safetensors").read_bytes()
            assert weights == (tmp_path / "whole" / "model.safetensors").read_bytes()

    def test_the_weights_of_the_best_evaluation_are_kept(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        t = Training(SPACE, ARCH, CONFIG, data)
        seen: list[tuple[float, dict[str, torch.Tensor]]] = []
        judge = Training.judge

        def spy(self: Training, images: SegmentationData) -> float:
            miou = judge(self, images)
            seen.append((miou, {k: v.clone() for k, v in self.net.state_dict().items()}))
            return miou

        monkeypatch.setattr(Training, "judge", spy)
        # The middle evaluation is made the best one, so that keeping the first or the last would show.
        scores = iter([0.2, 0.5, 0.5])

        class Scored:
            def miou(self) -> float:
                return next(scores)

        monkeypatch.setattr("hwnas.learn.training.evaluate", lambda network, images, device: Scored())
        best = train(t, val, tmp_path, SETTINGS, StepLog(tmp_path / "train.jsonl"))
        assert [m for m, _ in seen] == [0.2, 0.5, 0.5]
        assert best == 0.5
        kept = load_file(tmp_path / "model.safetensors")
        assert kept.keys() == t.net.state_dict().keys()
        same = [all(torch.equal(kept[k], v) for k, v in weights.items()) for _, weights in seen]
        assert same == [False, True, False]  # of equals, the first

    def test_what_is_in_the_file_has_the_miou_that_is_reported(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path
    ) -> None:
        _, best = self.run(data, val, tmp_path)
        network = SPACE.build(ARCH, form="deploy")
        network.load_state_dict(load_file(tmp_path / "model.safetensors"))
        log = StepLog(tmp_path / "train.jsonl").read()
        assert best == max(line["val_miou"] for line in log if "val_miou" in line)
        assert evaluate(network.eval(), val).miou() == pytest.approx(best, abs=1e-3)

    def test_a_finished_training_is_not_run_again_but_writes_its_file(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, best = self.run(data, val, tmp_path)
        weights = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").unlink()
        monkeypatch.setattr(Training, "advance", lambda self: pytest.fail("went on after the end"))
        assert self.run(data, val, tmp_path)[1] == best
        assert (tmp_path / "model.safetensors").read_bytes() == weights

    def test_a_checkpoint_of_other_settings_or_damaged_is_refused(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path
    ) -> None:
        with pytest.raises(Interrupted):
            self.run(data, val, tmp_path, 12)
        log = StepLog(tmp_path / "train.jsonl")
        other = Training(SPACE, ARCH, replace(CONFIG, lr=1e-3), data)
        for t, settings in ((other, SETTINGS), (Training(SPACE, ARCH, CONFIG, data), {"arch": "another"})):
            with pytest.raises(HwnasError, match=r"checkpoint\.pt was made with other settings"):
                train(t, val, tmp_path, settings, log)
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(HwnasError, match=r"checkpoint\.pt is not a whole checkpoint"):
            self.run(data, val, tmp_path)
