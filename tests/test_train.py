"""Training of a derived network: it learns, a kill changes nothing, and the best weights are the ones kept."""

from __future__ import annotations

import math
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim import swa_utils

from hwnas import checkpoint, records
from hwnas.data import IGNORE_LABEL, Sample, SegmentationData, Synthetic
from hwnas.errors import DataError, HwnasError
from hwnas.images import normalise
from hwnas.learn.average import decay_of
from hwnas.learn.board import BoardLog
from hwnas.learn.distill import Distillation, OnnxTeacher
from hwnas.learn.evaluation import evaluate
from hwnas.learn.losses import class_weights, tensors
from hwnas.learn.scaling import LossScaler
from hwnas.learn.schedule import learning_rate
from hwnas.learn.settings import TrainConfig
from hwnas.learn.training import Training, train
from hwnas.learn.weights import check_weights, digest, read_weights, write_weights
from hwnas.spaces import Scale, darts_space, sample
from hwnas.steplog import StepLog
from tests.fixed import Fixed

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

        monkeypatch.setattr("hwnas.learn.training.evaluate", lambda network, images, device, world: Scored())
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


def after(config: TrainConfig, data: SegmentationData, steps: int, **more: Any) -> Training:
    """Return a training after some steps."""
    t = Training(SPACE, ARCH, config, data, **more)
    for _ in range(steps):
        t.advance()
    return t


def same_weights(a: Training, b: Training) -> bool:
    left, right = a.judged.state_dict(), b.judged.state_dict()
    return all(torch.equal(left[k], right[k]) for k in right)


class TestSchedule:
    def test_golden_values(self) -> None:
        """Cosine: SGDR, equation 5. Poly: 0.5 ** 0.9 = 0.535886731268..."""
        c = replace(CONFIG, steps=100, lr=1.0, warmup=0.0)
        assert [learning_rate(c, s) for s in (0, 25, 50, 75)] == pytest.approx([1, 0.8535533906, 0.5, 0.1464466094])
        poly = replace(c, schedule="poly")
        assert [learning_rate(poly, s) for s in (0, 50, 90)] == pytest.approx([1, 0.5358867313, 0.1258925412])
        assert learning_rate(replace(poly, power=2.0), 50) == pytest.approx(0.25)
        assert {learning_rate(replace(c, schedule="constant"), s) for s in range(100)} == {1.0}

    def test_warm_up_is_linear_up_to_the_schedule(self) -> None:
        c = replace(CONFIG, steps=100, lr=2.0, warmup=0.1, schedule="constant")
        assert [learning_rate(c, s) for s in range(12)] == pytest.approx([0.2 * (s + 1) for s in range(10)] + [2, 2])

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    def test_the_default_is_that_of_earlier_versions(self, optimizer: Any) -> None:
        """Cosine to 0, of AdamW after ``steps // 20`` steps of warm-up: to the bit."""
        for steps in (1, 6, 19, 20, 140, 500, 999, 12345):
            c = replace(CONFIG, steps=steps, optimizer=optimizer)
            for s in {0, 1, steps // 20 - 1, steps // 20, steps // 2, steps - 1} & set(range(steps)):
                rate = (1 + math.cos(math.pi * s / steps)) / 2
                if optimizer == "adamw":
                    rate = min((s + 1) / max(1, steps // 20), rate)
                assert learning_rate(c, s) == c.lr * rate

    @pytest.mark.parametrize("schedule", ["cosine", "poly"])
    def test_falls_all_the_way_and_a_longer_one_is_higher_everywhere(self, schedule: Any) -> None:
        c = replace(CONFIG, steps=50, schedule=schedule, warmup=0.0)
        rates = [learning_rate(c, s) for s in range(50)]
        assert rates == sorted(rates, reverse=True)
        assert 0 < rates[-1] < 0.1 * c.lr
        assert all(learning_rate(c, s, 80) > rates[s] for s in range(1, 50))


class TestOptimizer:
    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    def test_the_encoder_has_a_rate_of_its_own(self, data: SegmentationData, optimizer: Any) -> None:
        t = after(replace(CONFIG, encoder_lr=0.25, optimizer=optimizer, warmup=0.0), data, 1)
        rates = {p: g["lr"] for g in t.optimizer.param_groups for p in g["params"]}
        assert rates.keys() == set(t._parameters())
        for name, p in t.net.named_parameters():
            assert rates[p] == CONFIG.lr * (1.0 if name.startswith("head.") else 0.25), name
        assert {rates[p] for p in t.net.parameters()} == {CONFIG.lr, 0.25 * CONFIG.lr}

    def test_an_encoder_without_a_rate_stays(self, data: SegmentationData) -> None:
        fresh = {k: v.clone() for k, v in Training(SPACE, ARCH, CONFIG, data).net.named_parameters()}
        t = after(replace(CONFIG, encoder_lr=0.0), data, 2)
        moved = {k for k, v in t.net.named_parameters() if not torch.equal(v, fresh[k])}
        assert moved
        assert all(k.startswith("head.") for k in moved)

    def test_frozen_norms_stay_and_others_move(self, data: SegmentationData) -> None:
        config = replace(CONFIG, freeze_norm=True)
        fresh = {k: v.clone() for k, v in Training(SPACE, ARCH, config, data).net.state_dict().items()}
        t = after(config, data, 2)
        same = {k for k, v in t.net.state_dict().items() if torch.equal(v, fresh[k])}
        norms = {
            f"{name}.{k}"
            for name, m in t.net.named_modules()
            if isinstance(m, torch.nn.BatchNorm2d) and not name.startswith("head.")
            for k in m.state_dict()
        }
        assert norms
        assert same == norms

    def test_clipping_bounds_the_step_of_sgd(self, data: SegmentationData) -> None:
        config = replace(CONFIG, optimizer="sgd", lr=1.0, decay=0.0, momentum=0.0)
        for norm, shrinks in ((0.01, True), (0.0, False)):
            before = [p.clone() for p in Training(SPACE, ARCH, config, data).net.parameters()]
            t = after(replace(config, clip=norm), data, 1)
            moved = math.sqrt(
                sum(float((p - q).detach().square().sum()) for p, q in zip(t.net.parameters(), before, strict=True))
            )
            assert (moved <= 0.0101) == shrinks


class TestAverage:
    def test_decay_begins_low(self) -> None:
        """TensorFlow's ``min(decay, (1 + n) / (10 + n))``."""
        assert [decay_of(0.999, n) for n in (1, 10, 90, 10**6)] == pytest.approx([2 / 11, 11 / 20, 0.91, 0.999])
        assert decay_of(0.1, 5) == 0.1

    def test_is_the_recursion(self, data: SegmentationData) -> None:
        t = Training(SPACE, ARCH, replace(CONFIG, average=0.99), data)
        expected: dict[str, torch.Tensor] = {}
        for n in range(4):
            t.advance()
            decay = decay_of(0.99, n) if n else 0.0
            for k, v in t.net.state_dict().items():
                moving = v.is_floating_point() and n > 0
                expected[k] = decay * expected[k] + (1 - decay) * v if moving else v.clone()
        for k, v in t.judged.state_dict().items():
            torch.testing.assert_close(v, expected[k], msg=k)

    @pytest.mark.parametrize("average", [0.0, 0.9])
    def test_recalibration_is_that_of_torch_and_leaves_the_training_alone(
        self, data: SegmentationData, val: SegmentationData, average: float
    ) -> None:
        plain, t = (after(replace(CONFIG, average=average, recalibrate=n), data, 3) for n in (0, 3))
        plain.judge(val)
        t.judge(val)
        assert same_weights(plain, t)
        batches = [tensors(t.batches(k))[0] for k in range(3)]
        swa_utils.update_bn(batches, plain.judged)  # type: ignore[no-untyped-call]  # torch has no types for it
        own = plain.judged.state_dict()
        for k, v in t.best.items():
            if not k.endswith("num_batches_tracked"):
                torch.testing.assert_close(v, own[k], rtol=1e-4, atol=1e-5, msg=k)
        assert any(not torch.equal(v, plain.best[k]) for k, v in t.best.items() if k.endswith("running_mean"))
        for each in (plain, t):
            each.advance()
        assert {m.momentum for m in t.judged.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}


class TestScaling:
    def test_the_step_is_that_without(self, data: SegmentationData) -> None:
        """Powers of two scale exactly."""
        plain, scaled = (Training(SPACE, ARCH, CONFIG, data) for _ in range(2))
        scaled.scaler = LossScaler(torch.device("cpu"))
        assert float(plain.advance()["loss"]) == float(scaled.advance()["loss"])
        assert same_weights(plain, scaled)

    def test_the_scale_falls_with_overflow_and_grows_without(self) -> None:
        p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        scaler = LossScaler(torch.device("cpu"))
        p.grad, q.grad = torch.tensor([1.0, math.inf]), torch.ones(2)
        scaler.unscale([p, q])
        assert [p.grad.tolist(), q.grad.tolist()] == [[0, 0], [0, 0]]
        assert float(scaler.scale) == 2.0**15
        again = LossScaler(torch.device("cpu"))
        again.restore(scaler.state())
        for _ in range(2000):
            p.grad = torch.full((2,), 2.0**15)
            again.unscale([p])
            assert p.grad.tolist() == [1, 1]
        assert (float(again.scale), float(again.good)) == (2.0**16, 0)

    def test_fp16_needs_a_gpu(self, data: SegmentationData) -> None:
        with pytest.raises(HwnasError, match="needs a GPU for a precision of fp16; take bf16"):
            Training(SPACE, ARCH, replace(CONFIG, precision="fp16"), data)


SETTINGS_OF: dict[str, dict[str, Any]] = {
    "poly": {"schedule": "poly", "warmup": 0.2, "optimizer": "sgd", "lr": 0.05},
    "ohem": {"loss": "ohem", "class_weights": "balanced", "dice_weight": 0.3},
    "focal": {"loss": "focal", "smoothing": 0.1, "class_weights": "none"},
    "tuning": {"encoder_lr": 0.1, "freeze_norm": True, "clip": 0.0, "schedule": "constant"},
    "average": {"average": 0.99, "recalibrate": 2},
    "bf16": {"precision": "bf16", "channels_last": False, "accumulate": 2},
    "still": {"scale_range": (1.0, 1.0), "flip": False, "jitter": 0.0},
}


@pytest.mark.parametrize("change", SETTINGS_OF.values(), ids=SETTINGS_OF)
def test_each_setting_changes_the_training_and_resumes_to_the_bit(
    data: SegmentationData, val: SegmentationData, change: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=8, **change)
    whole, plain = after(config, data, 5), after(replace(CONFIG, steps=8), data, 5)
    assert not same_weights(whole, plain)
    first = after(config, data, 2)
    first.judge(val)
    checkpoint.save(tmp_path / "c.pt", first.state(), {})
    resumed = Training(SPACE, ARCH, config, data)
    resumed.restore(checkpoint.load(tmp_path / "c.pt", {}) or {})
    assert (resumed.best_step, resumed.best_score) == (2, first.best_score)
    for _ in range(3):
        resumed.advance()
    assert same_weights(resumed, whole)


@pytest.mark.filterwarnings("ignore")  # of torch about itself
@pytest.mark.slow  # the compiler takes minutes
def test_a_compiled_network_learns_the_same(data: SegmentationData) -> None:
    space = darts_space(Scale(4, 3, SIZE), 11, ops=("none", "skip_connect", "sep_conv_3x3"), nodes=1, head_channels=8)
    arch = sample(space, np.random.default_rng(0))
    plain, fast = (Training(space, arch, replace(CONFIG, compile=c), data) for c in (False, True))
    for t in (plain, fast):
        t.advance()
    for (k, a), b in zip(plain.net.state_dict().items(), fast.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3, msg=k)


def test_without_a_compiler_that_is_said(data: SegmentationData, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(function: object) -> Any:
        def call(*args: object) -> None:
            raise RuntimeError("BackendCompilerFailed\nInvalidCxxCompiler: No working C++ compiler found in ('g++',)")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(
        HwnasError, match=r"needs a C\+\+ compiler.*No working C\+\+ compiler.*leave out train\.compile"
    ):
        Training(SPACE, ARCH, replace(CONFIG, compile=True), data)


class TestWeights:
    def test_are_read_as_written_and_the_file_is_a_function_of_them(
        self, data: SegmentationData, tmp_path: Path
    ) -> None:
        state = Training(SPACE, ARCH, CONFIG, data).net.state_dict()
        write_weights(tmp_path / "a", state)
        write_weights(tmp_path / "b", dict(reversed(list(state.items()))))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        for read in (read_weights, load_file):
            got = read(tmp_path / "a")
            assert got.keys() == state.keys()
            assert all(torch.equal(got[k], v) for k, v in state.items())
        assert digest(state) == digest(read_weights(tmp_path / "b"))

    def test_one_changed_byte_is_found_wherever_it_is(self, tmp_path: Path) -> None:
        state = {"head.a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
        path = tmp_path / "model.safetensors"
        write_weights(path, state)
        whole, spared = path.read_bytes(), 0
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            try:
                got = read_weights(path)
            except HwnasError as e:
                assert "damaged" in str(e)  # noqa: PT017 - or nothing is raised, below
            else:  # a byte of the key that the checksum has in the file, or a blank
                assert {k: v.tolist() for k, v in got.items()} == {k: v.tolist() for k, v in state.items()}
                spared += 1
        assert spared < 20
        for part in (whole[:-1], whole[:20], b""):
            path.write_bytes(part)
            with pytest.raises(HwnasError, match="is not a file of weights, or damaged"):
                read_weights(path)
        path.unlink()
        with pytest.raises(HwnasError, match="cannot read weights at"):
            read_weights(path)

    def test_a_file_of_others_is_read_without_a_checksum(self, tmp_path: Path) -> None:
        state = {"a": torch.ones(2), "half": torch.ones(3, dtype=torch.bfloat16)}
        save_file(state, tmp_path / "a")
        assert digest(read_weights(tmp_path / "a")) == digest(state)

    def test_weights_of_another_network_are_refused(self, data: SegmentationData, tmp_path: Path) -> None:
        net = Training(SPACE, ARCH, CONFIG, data).net
        state = net.state_dict()
        name = next(iter(state))
        check_weights(tmp_path, state, net)
        others = (
            {k: v for k, v in state.items() if k != name},
            state | {"more": torch.ones(2)},
            state | {name: torch.ones(1, 2)},
        )
        for other, why in zip(
            others, (f"{name} has the shape none", "more has the shape", f"{name} has the"), strict=True
        ):
            with pytest.raises(HwnasError, match=f"does not hold weights of this network: its {why}"):
                check_weights(tmp_path, other, net)


class TestExtension:
    def test_goes_on_along_the_longer_schedule(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path
    ) -> None:
        """25 steps, then 35: the weights, the moments of the optimizer, the best score and the log go on."""
        log = StepLog(tmp_path / "train.jsonl")
        first = Training(SPACE, ARCH, CONFIG, data)
        best = train(first, val, tmp_path, SETTINGS, log)
        more = Training(SPACE, ARCH, CONFIG, data, steps=35)
        seen: list[float] = []

        def update(done: int, note: str = "", total: int | None = None, left_s: float | None = None) -> None:
            assert total == 35
            seen.extend(g["lr"] for g in more.optimizer.param_groups[:1])
            assert (tmp_path / "model.safetensors").exists()  # the old one

        assert train(more, val, tmp_path, SETTINGS, log, update) >= best
        assert seen[1:] == [learning_rate(CONFIG, s, 35) for s in range(25, 35)]
        assert [line["step"] for line in log.read()] == list(range(35))
        by_hand = after(CONFIG, data, 25)
        by_hand.steps = 35
        for _ in range(10):
            by_hand.advance()
        assert same_weights(more, by_hand)
        # Asked again, and without a number, it is complete; of fewer steps it is refused.
        for steps in (35, None):
            again = Training(SPACE, ARCH, CONFIG, data, steps=steps)
            train(again, val, tmp_path, SETTINGS, log)
            assert (again.step, again.steps) == (35, 35)
        with pytest.raises(HwnasError, match="got 30 after 35; ask for more"):
            train(Training(SPACE, ARCH, CONFIG, data, steps=30), val, tmp_path, SETTINGS, log)

    def test_interrupted_it_ends_with_the_same_bits(
        self, data: SegmentationData, val: SegmentationData, tmp_path: Path
    ) -> None:
        config = replace(CONFIG, steps=6, evaluate_every=3, checkpoint_every=2)
        trainings = []
        for name, stop_at in (("whole", None), ("cut", 8)):
            folder = tmp_path / name
            log = StepLog(folder / "train.jsonl")
            train(Training(SPACE, ARCH, config, data), val, folder, SETTINGS, log)

            def update(done: int, note: str = "", total: Any = None, left_s: Any = None, at: Any = stop_at) -> None:
                if done == at:
                    raise Interrupted

            if stop_at is not None:
                with pytest.raises(Interrupted):
                    train(Training(SPACE, ARCH, config, data, steps=12), val, folder, SETTINGS, log, update)
            # Once it has a checkpoint it knows how many steps it is to have.
            t = Training(SPACE, ARCH, config, data, steps=12 if stop_at is None else None)
            train(t, val, folder, SETTINGS, log)
            assert t.step == 12
            trainings.append(t)
        assert same_weights(*trainings)
        assert steps_of(tmp_path / "whole") == steps_of(tmp_path / "cut")


class TestBoard:
    def test_without_the_package_that_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        with pytest.raises(HwnasError, match=r"tensorboard is not installed; run: pip install 'hwnas\[tensorboard\]'"):
            BoardLog(tmp_path / "train.jsonl", tmp_path / "tb")

    def test_numbers_of_each_step_are_there(self, tmp_path: Path) -> None:
        events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        log = BoardLog(tmp_path / "train.jsonl", tmp_path / "tb")
        log.start(0)
        for step in range(3):
            log.append({"step": step, "loss": 1.0 / (step + 1), "device": "cpu"})
        log.close()
        found = events.EventAccumulator(str(tmp_path / "tb"))
        found.Reload()
        assert found.Tags()["scalars"] == ["loss"]
        assert [(e.step, e.value) for e in found.Scalars("loss")] == [(s, pytest.approx(1 / (s + 1))) for s in range(3)]


class Copied:
    """A session of an ONNX file that gives the red channel as the score of each class."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        self.inputs, self.classes = {"image": shape}, classes

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        return {"scores": np.repeat(inputs["image"][:, :1], self.classes, axis=1)}


class TestOnnxTeacher:
    def test_computes_so_many_at_once_as_the_file_says(self) -> None:
        images = torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last)
        for n in (1, 2, 4):
            scores = OnnxTeacher(Copied((n, 3, 5, 6), 7), Path("t.onnx"), 4, (5, 6), 7)(images)
            assert torch.equal(scores, images[:, :1].expand(-1, 7, -1, -1))

    @pytest.mark.parametrize(
        ("shape", "classes", "why"),
        [
            ((1, 3, 9, 9), 7, r"one input \(N, 3, 5, 6\), the crop of the training"),
            ((3, 3, 5, 6), 7, "an N that divides its batch of 4"),
            ((1, 3, 5, 6), 8, "one output of scores of 7 classes"),
        ],
    )
    def test_a_file_that_does_not_fit_is_refused(self, shape: Any, classes: int, why: str) -> None:
        with pytest.raises(HwnasError, match=why):
            OnnxTeacher(Copied(shape, classes), Path("t.onnx"), 4, (5, 6), 7)


def test_distillation_brings_a_network_to_its_teacher(data: SegmentationData) -> None:
    """With the labels' loss as it is, the divergence from the teacher falls further than without it."""
    teacher = after(replace(CONFIG, seed=5, steps=30), data, 15).net.eval()
    measured = Distillation(teacher, 1.0, 2.0)
    images = tensors(Training(SPACE, ARCH, CONFIG, data).batches(0))[0]

    def divergence(t: Training) -> float:
        return float(measured(images, t.net(images)).detach())

    plain = after(replace(CONFIG, steps=30), data, 20)
    taught = after(replace(CONFIG, steps=30), data, 20, teacher=Distillation(teacher, 3.0, 2.0))
    assert divergence(taught) < 0.7 * divergence(plain)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schedule": "step"}, "a schedule of cosine, poly, constant"),
        ({"loss": "dice"}, "a loss of ce, ohem, focal"),
        ({"precision": "int8"}, "a precision of fp32, bf16, fp16"),
        ({"class_weights": ()}, "class_weights of enet, balanced, none or numbers"),
        ({"class_weights": (1.0, -1.0)}, "class_weights of enet, balanced, none or numbers"),
        ({"class_weights": "inverse"}, "class_weights of enet, balanced, none or numbers"),
        ({"warmup": 1.0}, "a warmup from 0 to less than 1"),
        ({"momentum": 1.0}, "a momentum from 0 to less than 1"),
        ({"ohem_threshold": 0.0}, "an ohem_threshold of more than 0"),
        ({"ohem_kept": 1.5}, "an ohem_kept from 0 to 1"),
        ({"power": 0.0}, "power of more than 0"),
        ({"temperature": 0.0}, "temperature of more than 0"),
        ({"clip": -1.0}, "clip of 0 or more"),
        ({"encoder_lr": math.nan}, "encoder_lr of 0 or more"),
        ({"recalibrate": -1}, "recalibrate of 0 or more"),
        ({"scale_range": (2.0, 1.0)}, "a scale_range from more than 0"),
        ({"jitter": 1.0}, "a jitter from 0 to less than 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(HwnasError, match=f"needs .*{why}"):
        replace(CONFIG, **change)


def test_settings_of_earlier_runs_are_read() -> None:
    there = records.encode(CONFIG, TrainConfig)
    old = {k: there[k] for k in ("steps", "batch", "crop", "lr", "decay", "evaluate_every", "seed", "optimizer")}
    assert records.decode(old | {"bf16": False}, TrainConfig) == CONFIG
    assert records.decode(old | {"bf16": True}, TrainConfig) == replace(CONFIG, precision="bf16")
    listed = replace(CONFIG, class_weights=(1.0, 2.0), distill="teacher", warmup=0.1)
    assert records.decode(records.encode(listed, TrainConfig), TrainConfig) == listed


def test_every_setting_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [f.name for f in fields(TrainConfig) if f"`{f.name}`" not in text] == []
