"""The bilevel search: whose gradient goes where, which images it sees, and that a kill changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas import checkpoint
from hwnas.data import IGNORE_LABEL, SegmentationData, Synthetic
from hwnas.errors import HwnasError
from hwnas.learn.losses import task_loss
from hwnas.problem import Decision, Group
from hwnas.search.bilevel import Order
from hwnas.search.costs import Bound, CostConfig
from hwnas.search.functional import Functional
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.guards import Guards
from hwnas.search.logits import Alphas
from hwnas.search.multiplier import Multiplier
from hwnas.search.relax import FOR_WEIGHTS, GumbelSoftmax, SinglePath
from hwnas.search.strategy import search
from hwnas.spaces import Scale, darts_space
from hwnas.steplog import StepLog

SIZE = (32, 48)
SPACE = darts_space(
    Scale(4, 3, SIZE), 11, ops=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"), nodes=2, head_channels=8
)
CONFIG = SearchConfig(SPACE.scale, steps=14, warmup=3, batch=2, crop=(24, 32), w_lr=0.1, alpha_lr=0.02)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


ORDERS: tuple[Order, ...] = ("first", "second", "second-exact")


def whole(data: SegmentationData, indices: Sequence[int], n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return `n` samples, some of them twice, none with a void pixel, as one batch."""
    chosen = [data[indices[i % len(indices)]] for i in range(n)]
    images = np.stack([s.image.transpose(2, 0, 1) for s in chosen]).astype(np.float32) / 128 - 1
    return images, np.stack([s.label % 11 for s in chosen]).astype(np.int64)


def state_of(s: BilevelSearch) -> dict[str, Tensor]:
    return {
        **{f"net.{k}": v.clone() for k, v in s.net.state_dict().items()},
        **{f"alphas.{k}": v.clone() for k, v in s.alphas.state_dict().items()},
    }


def assert_same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []


class TestAlphas:
    def test_start_as_in_darts_and_the_same_every_time(self) -> None:
        big = Group("g", tuple(Decision(str(i), SPACE.groups[0].options) for i in range(500)))
        one, other = Alphas([big], 5), Alphas([big], 5)
        assert torch.equal(one.logits["g"], other.logits["g"])
        assert not torch.equal(one.logits["g"], Alphas([big], 6).logits["g"])
        assert float(one.logits["g"].detach().std()) == pytest.approx(1e-3, rel=0.1)
        assert one.logits["g"].dtype == torch.float32

    def test_findings_are_a_copy(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, CONFIG, data)
        before = s.findings().logits
        with torch.no_grad():
            s.alphas.logits["normal"].add_(1)
        assert not np.array_equal(before["normal"], s.findings().logits["normal"])
        assert np.array_equal(before["reduce"], s.findings().logits["reduce"])


class TestSteps:
    def test_alphas_stay_where_they_are_during_warm_up_and_move_after_it(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, CONFIG, data)
        start = s.findings().logits
        for step in range(CONFIG.warmup + 2):
            metrics = s.advance()
            assert metrics["step"] == step
            assert ("val_loss" in metrics) == (step >= CONFIG.warmup)
            for name, a in s.findings().logits.items():
                assert np.array_equal(a, start[name]) == (step < CONFIG.warmup)
        assert s.step == CONFIG.warmup + 2

    def test_weights_move_at_every_step(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, CONFIG, data)
        for _ in range(CONFIG.warmup + 1):
            before = [p.detach().clone() for p in s.net.parameters()]
            s.advance()
            assert not any(torch.equal(p, b) for p, b in zip(s.net.parameters(), before, strict=True))

    def test_alphas_first_on_their_half_then_weights_on_theirs(
        self, data: SegmentationData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        s = BilevelSearch(SPACE, replace(CONFIG, warmup=1), data)
        calls: list[tuple[str, int]] = []
        loss = BilevelSearch._loss
        images = {
            (name, step): torch.from_numpy(getattr(s, name)(step)[0])
            for name in ("weight_batches", "alpha_batches")
            for step in range(2)
        }

        def spy(self: BilevelSearch, weights: Any, logits: Any, batch: Any, at: Any) -> Tensor:
            calls.extend(k for k, x in images.items() if torch.equal(x, batch[0]))
            return loss(self, weights, logits, batch, at)

        monkeypatch.setattr(BilevelSearch, "_loss", spy)
        s.advance()
        s.advance()
        assert calls == [("weight_batches", 0), ("alpha_batches", 1), ("weight_batches", 1)]

    def test_the_alphas_of_a_single_level_search_learn_from_the_weights_batch(
        self, data: SegmentationData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One pass a step, and the gradient of alphas is that of the loss before the weights move."""
        s = BilevelSearch(SPACE, replace(CONFIG, warmup=0, level="single"), data)
        batch = s._batches(s.weight_batches)[0]
        logits = {k: a.detach().clone().requires_grad_() for k, a in s.logits().items()}
        s.net.train()
        loss = s._loss(dict(s.net.named_parameters()), logits, batch, s._moment(FOR_WEIGHTS, 0))
        expected = torch.autograd.grad(loss, list(logits.values()))
        monkeypatch.setattr(s, "alpha_batches", lambda step: pytest.fail("there is one batch"))
        before = s.findings().logits
        metrics = s.advance()
        assert metrics["train_loss"] == pytest.approx(float(loss.detach()))
        assert "val_loss" not in metrics
        for a, e in zip(s.alphas.parameters(), expected, strict=True):
            assert a.grad is not None
            torch.testing.assert_close(a.grad, e)
        assert all(not np.array_equal(a, before[k]) for k, a in s.findings().logits.items())
        assert sorted(s.weight_batches.indices) == list(range(len(data)))

    def test_batches_that_are_accumulated_are_one_large_batch(self, data: SegmentationData) -> None:
        """But for BatchNorm, so it is taken out here."""
        states = []
        for k in (1, 3):
            s = BilevelSearch(
                SPACE, replace(CONFIG, warmup=0, batch=6 // k, accumulate=k, order="second", evaluation="plain"), data
            )
            for name, module in list(s.net.named_modules()):
                if isinstance(module, nn.BatchNorm2d):
                    parent, _, child = name.rpartition(".")
                    setattr(s.net.get_submodule(parent), child, nn.Identity())
            s._functional, s._weights = Functional(s.net), dict(s.net.named_parameters())
            large = {n: whole(data, getattr(s, n).indices) for n in ("weight_batches", "alpha_batches")}
            for name, (images, labels) in large.items():
                step = 6 // k
                parts = [(images[i : i + step], labels[i : i + step]) for i in range(0, 6, step)]
                setattr(s, name, lambda n, parts=parts: parts[n % len(parts)])
            parameters = [p for p in s.net.parameters() if p.requires_grad]
            s.w_optimizer = torch.optim.SGD(parameters, CONFIG.w_lr, momentum=0.9)
            states.append(([s.advance() for _ in range(2)], state_of(s)))
        (log, one), (log_parts, parts_) = states
        for left, right in zip(log, log_parts, strict=True):
            for key in ("train_loss", "val_loss"):
                assert float(left[key]) == pytest.approx(float(right[key]), rel=1e-5)
        for key, value in one.items():
            torch.testing.assert_close(parts_[key], value, rtol=1e-4, atol=1e-5)

    def test_accumulated_batches_are_all_different_and_none_is_skipped(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, replace(CONFIG, accumulate=3), data)
        numbers: list[int] = []
        source = s.weight_batches
        s.weight_batches = lambda n: (numbers.append(n), source(n))[1]  # type: ignore[assignment,func-returns-value]
        for _ in range(3):
            s.advance()
        assert numbers == list(range(9))

    def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(
        self, data: SegmentationData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        s, full = (BilevelSearch(SPACE, replace(CONFIG, warmup=0, precision=p), data) for p in ("bf16", "fp32"))
        seen = set()
        convolve = nn.functional.conv2d

        def spy(x: Tensor, *args: Any) -> Tensor:
            out = convolve(x, *args)
            seen.add(out.dtype)
            return out

        monkeypatch.setattr(nn.functional, "conv2d", spy)
        metrics = s.advance()
        assert seen == {torch.bfloat16}
        assert {p.dtype for p in s.net.parameters()} == {torch.float32}
        assert {a.grad.dtype for a in s.alphas.parameters() if a.grad is not None} == {torch.float32}
        monkeypatch.undo()
        expected = full.advance()
        assert metrics["val_loss"] != expected["val_loss"]
        assert float(metrics["val_loss"]) == pytest.approx(float(expected["val_loss"]), rel=0.02)

    def test_running_statistics_follow_the_weight_steps_alone(self, data: SegmentationData) -> None:
        counts = []
        for order in ORDERS:
            s = BilevelSearch(SPACE, replace(CONFIG, warmup=1, order=order, evaluation="plain"), data)
            for _ in range(3):
                s.advance()
            counts.append({int(b) for k, b in s.net.named_buffers() if k.endswith("num_batches_tracked")})
        assert counts == [{3}] * 3

    @pytest.mark.parametrize("n", [2, 9, 40])
    def test_halves_are_disjoint_and_together_everything(self, n: int) -> None:
        for seed in (0, 7):
            config = replace(CONFIG, seed=seed, batch=4)
            s = BilevelSearch(SPACE, config, Synthetic("train", SIZE, length=n))
            for_weights, for_alphas = (
                {i for step in range(60) for i in source.chosen(step)} for source in (s.weight_batches, s.alpha_batches)
            )
            assert for_weights & for_alphas == set()
            assert for_weights | for_alphas == set(range(n))
            assert abs(len(for_weights) - len(for_alphas)) <= 1
            assert s.weight_batches.seed != s.alpha_batches.seed  # else both would draw the same crops

    def test_learning_rate_is_a_cosine_from_start_to_end(self, data: SegmentationData) -> None:
        config = replace(CONFIG, steps=12, warmup=12, batch=1, crop=(24, 32))
        s = BilevelSearch(SPACE, config, data)
        oracle_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], config.w_lr)
        oracle = torch.optim.lr_scheduler.CosineAnnealingLR(oracle_optimizer, config.steps, config.w_lr_end)
        rates = []
        for _ in range(config.steps):
            s.advance()
            rates.append(s.w_optimizer.param_groups[0]["lr"])
            assert rates[-1] == pytest.approx(oracle.get_last_lr()[0], rel=1e-9)
            oracle_optimizer.step()
            oracle.step()
        assert rates[0] == config.w_lr
        assert rates == sorted(rates, reverse=True)
        assert config.w_lr_end < rates[-1] < config.w_lr_end + 0.02 * config.w_lr
        assert oracle.get_last_lr()[0] == pytest.approx(config.w_lr_end)

    def test_a_search_that_diverges_says_so(self, data: SegmentationData, tmp_path: Path) -> None:
        s, log = BilevelSearch(SPACE, replace(CONFIG, w_lr=1e30), data), StepLog(tmp_path / "search.jsonl")
        with pytest.raises(HwnasError, match="the search diverged: loss (nan|inf) at step 2; lower its w_lr"):
            search(s, tmp_path / "search.pt", SETTINGS, log)
        assert [line["step"] for line in log.read()] == [0]  # that loss is of the weights as they were

    def test_seeds_decide_and_the_global_generator_is_left_alone(self, data: SegmentationData) -> None:
        before = torch.random.get_rng_state()
        one, same, other = (BilevelSearch(SPACE, replace(CONFIG, seed=seed), data) for seed in (1, 1, 2))
        for s in (one, same, other):
            s.advance()
        assert torch.equal(torch.random.get_rng_state(), before)
        assert_same_bits(state_of(one), state_of(same))
        key = next(k for k in state_of(one) if k.endswith("conv.weight"))
        assert not torch.equal(state_of(one)[key], state_of(other)[key])


SETTINGS = {"data": "synthetic"}


class Interrupted(Exception):
    pass


SHORT = replace(CONFIG, steps=4, warmup=1)


def linear(probs: Mapping[str, Tensor]) -> Tensor:
    """Stand for a latency model: everything but `none` costs the same."""
    return torch.stack([p[:, 1:].sum() for p in probs.values()]).sum()


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "second": {"order": "second"},
    "second-exact": {"order": "second-exact", "evaluation": "plain"},
    "single": {"level": "single"},
    "gumbel": {"relaxation": GumbelSoftmax()},
    "gumbel-single": {"relaxation": GumbelSoftmax(), "level": "single", "cost": CostConfig("log", 0.01)},
    "single-path": {"relaxation": SinglePath()},
    "single-path-second": {"relaxation": SinglePath(), "order": "second"},
    "product": {"cost": CostConfig("product", 0.5)},
    "two-sided": {"cost": CostConfig("two-sided", 0.5)},
    "fixed": {"cost": CostConfig(weight=0.5)},
    "lightnas": {"cost": CostConfig("log", Multiplier(lr=0.3, damping=0.0, reset=True))},
    "guards": {"guards": Guards(auxiliary_skip=1.0, stable_checks=99, check_every=2)},
    "accumulate": {"accumulate": 2, "batch": 1},
    "bf16": {"precision": "bf16"},
    "one-by-one": {"evaluation": "plain"},
    "lean-second": {"evaluation": "lean", "order": "second"},
}


def steps_of(log: StepLog) -> list[dict[str, Any]]:
    """Return what a log says, but for how long it took."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log.read()]


@pytest.fixture(scope="module")
def plain(data: SegmentationData) -> list[Tensor]:
    s = BilevelSearch(SPACE, SHORT, data, [Bound("ms", linear, 3.0)])
    while not s.finished:
        s.advance()
    return list(s.alphas.parameters())


class TestConfig:
    def test_what_does_not_go_together_is_refused(self) -> None:
        for change, match in (
            ({"level": "single", "order": "second"}, "a single-level search has no order 'second'"),
            ({"order": "second-exact", "evaluation": "fast"}, "differentiates twice, which 'fast' cannot: use 'plain'"),
            ({"accumulate": 0}, "accumulate of 1 or more, got 0"),
            ({"checkpoint_every": 0}, "checkpoint_every of 1 or more, got 0"),
        ):
            with pytest.raises(HwnasError, match=match):
                replace(CONFIG, **change)  # type: ignore[arg-type]


class TestResume:
    def run(
        self, data: SegmentationData, folder: Path, stop_at: int | None = None, config: SearchConfig = CONFIG
    ) -> BilevelSearch:
        s = BilevelSearch(SPACE, config, data, [Bound("ms", linear, 3.0)])

        def update(done: int, note: str = "", total: int | None = None) -> None:
            if done == stop_at:
                raise Interrupted

        search(s, folder / "checkpoint.pt", SETTINGS, StepLog(folder / "search.jsonl"), update)
        return s

    def test_an_interrupted_search_ends_with_the_same_bits(self, data: SegmentationData, tmp_path: Path) -> None:
        whole = self.run(data, tmp_path / "whole")
        log = steps_of(StepLog(tmp_path / "whole" / "search.jsonl"))
        assert [line["step"] for line in log] == list(range(CONFIG.steps))
        # Before the first checkpoint, and after some.
        for stop_at in (1, 11):
            folder = tmp_path / str(stop_at)
            with pytest.raises(Interrupted):
                self.run(data, folder, stop_at)
            again = self.run(data, folder)
            assert_same_bits(state_of(again), state_of(whole))
            assert steps_of(StepLog(folder / "search.jsonl")) == log

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_so_does_every_kind_of_search(
        self, data: SegmentationData, tmp_path: Path, variant: str, plain: list[Tensor]
    ) -> None:
        config = replace(SHORT, **VARIANTS[variant])
        whole = self.run(data, tmp_path / "whole", config=config)
        with pytest.raises(Interrupted):
            self.run(data, tmp_path / "parts", 3, config)
        resumed = self.run(data, tmp_path / "parts", config=config)
        assert_same_bits(state_of(resumed), state_of(whole))
        left, right = resumed.state(), whole.state()
        assert (left["weight"], left["checks"]) == (right["weight"], right["checks"])
        logs = [steps_of(StepLog(tmp_path / f / "search.jsonl")) for f in ("whole", "parts")]
        assert logs[0] == logs[1]
        if variant in ("plain", "lightnas"):
            assert whole.multiplier != 0
        same = all(torch.equal(a, b) for a, b in zip(plain, whole.alphas.parameters(), strict=True))
        assert same == (variant == "plain")  # each is a search of its own

    def test_a_search_that_a_guard_ended_stays_ended(self, data: SegmentationData, tmp_path: Path) -> None:
        guards = Guards(stable_checks=2, check_every=2)
        config = replace(CONFIG, alpha_lr=1e-30, alpha_decay=0.0, guards=guards)
        first = self.run(data, tmp_path, config=config)
        assert first.stopped == "the same network for 2 checks"
        assert first.step < config.steps
        again = self.run(data, tmp_path, config=config)
        assert (again.step, again.stopped) == (first.step, first.stopped)
        assert [line["step"] for line in StepLog(tmp_path / "search.jsonl").read()] == list(range(first.step))

    def test_a_checkpoint_is_as_frequent_as_it_is_cheap(
        self, data: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After each step where it costs little beside it; else every `checkpoint_every`."""
        save = checkpoint.save
        for cost_s, step_s, every, expected in (
            (0.001, 0.05, 10, [1, 2, 3, 4, 5, 6]),  # 2 % of a step
            (0.004, 0.05, 10, [1, 3, 5, 6]),  # 8 %: after every other
            (9.0, 0.05, 10, [1, 6]),
            (9.0, 0.05, 2, [1, 3, 5, 6]),
            (9.0, 0.05, 1, [1, 2, 3, 4, 5, 6]),
        ):
            now, saved = [0.0], []
            s = BilevelSearch(SPACE, replace(CONFIG, steps=6, warmup=6, batch=1, checkpoint_every=every), data)
            advance = s.advance

            def slow_save(*args: Any, s: BilevelSearch = s, now: list[float] = now, cost_s: float = cost_s) -> None:
                save(*args)
                saved.append(s.step)  # noqa: B023 - called within this iteration
                now[0] += cost_s

            def slow_advance(advance: Any = advance, now: list[float] = now, step_s: float = step_s) -> Any:
                now[0] += step_s
                return advance()

            monkeypatch.setattr(checkpoint, "save", slow_save)
            monkeypatch.setattr(s, "advance", slow_advance)
            monkeypatch.setattr("hwnas.learn.loop.time.monotonic", lambda now=now: now[0])
            folder = tmp_path / f"{cost_s}-{every}"
            search(s, folder / "checkpoint.pt", SETTINGS, StepLog(folder / "search.jsonl"))
            assert saved == expected
            assert [line["seconds"] for line in StepLog(folder / "search.jsonl").read()] == [step_s] * 6

    def test_two_interruptions_and_a_torn_line_change_nothing_either(
        self, data: SegmentationData, tmp_path: Path
    ) -> None:
        whole = self.run(data, tmp_path / "whole")
        for stop_at in (12, 13):
            with pytest.raises(Interrupted):
                self.run(data, tmp_path, stop_at)
            with (tmp_path / "search.jsonl").open("a") as f:
                f.write('{"step": 99, "train_l')
        assert_same_bits(state_of(self.run(data, tmp_path)), state_of(whole))
        lines = (tmp_path / "search.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(CONFIG.steps))

    def test_a_finished_search_is_not_run_again(
        self, data: SegmentationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = self.run(data, tmp_path)
        monkeypatch.setattr(BilevelSearch, "advance", lambda self: pytest.fail("went on after the end"))
        assert_same_bits(state_of(self.run(data, tmp_path)), state_of(whole))

    def test_a_checkpoint_of_other_settings_is_refused(self, data: SegmentationData, tmp_path: Path) -> None:
        path, log = tmp_path / "checkpoint.pt", StepLog(tmp_path / "search.jsonl")
        with pytest.raises(Interrupted):
            self.run(data, tmp_path, 12)
        before = (tmp_path / "search.jsonl").read_bytes()
        for config, settings in (
            (replace(CONFIG, alpha_lr=0.03), SETTINGS),
            (replace(CONFIG, relaxation=GumbelSoftmax()), SETTINGS),
            (replace(CONFIG, cost=CostConfig(weight=0.1)), SETTINGS),
            (replace(CONFIG, scale=Scale(6, 3, SIZE)), SETTINGS),
            (CONFIG, {"data": "camvid"}),
        ):
            with pytest.raises(HwnasError, match=r"checkpoint\.pt was made with other settings; use another run name"):
                search(BilevelSearch(SPACE, config, data), path, settings, log)
        assert (tmp_path / "search.jsonl").read_bytes() == before

    def test_a_damaged_checkpoint_is_refused(self, data: SegmentationData, tmp_path: Path) -> None:
        path, log = tmp_path / "checkpoint.pt", StepLog(tmp_path / "search.jsonl")
        with pytest.raises(Interrupted):
            self.run(data, tmp_path, 12)
        content = path.read_bytes()
        s = BilevelSearch(SPACE, CONFIG, data)
        before = state_of(s)
        for bad in (b"", b"\n", b"not a checkpoint", content[:-1], content[: len(content) // 2], content + b"x"):
            path.write_bytes(bad)
            with pytest.raises(HwnasError, match=r"checkpoint\.pt is not a whole checkpoint: .*remove it"):
                search(s, path, SETTINGS, log)
        assert_same_bits(state_of(s), before)
        path.unlink()
        path.mkdir()
        with pytest.raises(HwnasError, match="cannot read the checkpoint at .*: Is a directory"):
            search(s, path, SETTINGS, log)

    def test_a_checkpoint_gives_back_what_it_was_given(self, tmp_path: Path) -> None:
        rng = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, 4, 5, generator=rng)
        state = {
            "net": {"a": images, "last": images.contiguous(memory_format=torch.channels_last), "b": images[:, 1]},
            "count": torch.tensor(7),
            "empty": torch.zeros(0, 3),
            "half": torch.randn(3, generator=rng).bfloat16(),
            "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}, "groups": [{"betas": (0.5, 0.999), "p": [0, 1]}]},
            "why": None,
            "weight": [0.1, 2],
        }
        checkpoint.save(tmp_path / "c.pt", state, {})
        again = checkpoint.load(tmp_path / "c.pt", {})
        assert again is not None

        def compare(left: Any, right: Any) -> None:
            assert type(left) is type(right)
            if isinstance(left, Tensor):
                assert (left.dtype, left.shape) == (right.dtype, right.shape)
                assert torch.equal(left, right)
            elif isinstance(left, dict):
                assert list(left) == list(right)
                for k in left:
                    compare(left[k], right[k])
            elif isinstance(left, list | tuple):
                for a, b in zip(left, right, strict=True):
                    compare(a, b)
            else:
                assert left == right

        compare(again, state)
        assert again["net"]["last"].is_contiguous(memory_format=torch.channels_last)
        assert not again["net"]["a"].is_contiguous(memory_format=torch.channels_last)
        again["net"]["a"].zero_()
        assert again["net"]["last"].any()  # each has memory of its own
        assert again["net"]["b"].any()

    def test_every_changed_byte_of_a_checkpoint_is_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "c.pt"
        checkpoint.save(path, {"step": 3, "weights": torch.arange(6.0)}, {})
        content = path.read_bytes()
        for at in range(0, len(content), 7):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(HwnasError, match=r"c\.pt is not a whole checkpoint"):
                checkpoint.load(path, {})
        path.write_bytes(content)
        state = checkpoint.load(path, {})
        assert state is not None
        assert state["step"] == 3
        assert torch.equal(state["weights"], torch.arange(6.0))
        assert checkpoint.load(tmp_path / "none.pt", {}) is None


class TestStepLog:
    def test_a_file_that_is_not_there_has_no_lines(self, tmp_path: Path) -> None:
        assert StepLog(tmp_path / "log.jsonl").read() == []

    def test_starting_at_a_step_drops_it_and_what_follows(self, tmp_path: Path) -> None:
        log = StepLog(tmp_path / "log.jsonl")
        log.start(0)
        for step in range(5):
            log.append({"step": step, "loss": 0.5})
        log.start(3)
        log.append({"step": 3, "loss": 0.25})
        assert [(r["step"], r["loss"]) for r in log.read()] == [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.25)]


class TestObjective:
    def test_loss_is_the_mean_over_labelled_pixels(self) -> None:
        scores = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0]]).reshape(1, 2, 1, 3)
        labels = torch.tensor([0, 1, IGNORE_LABEL]).reshape(1, 1, 3)
        by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
        assert float(task_loss(scores, labels)) == pytest.approx(by_hand, rel=1e-6)
        weighted = (3 * math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 4
        assert float(task_loss(scores, labels, torch.tensor([3.0, 1.0]))) == pytest.approx(weighted, rel=1e-6)

    def test_images_that_are_classified_have_one_label_and_no_void(self) -> None:
        scores = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([7, IGNORE_LABEL, 299])
        by_hand = -torch.log_softmax(scores, dim=1)[torch.arange(3), labels].mean()
        torch.testing.assert_close(task_loss(scores, labels), by_hand)

    @pytest.mark.parametrize("class_weights", [None, torch.tensor([3.0, 1.0])])
    def test_a_batch_of_void_pixels_teaches_nothing_and_ends_nothing(self, class_weights: Tensor | None) -> None:
        scores = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = task_loss(scores, torch.full((1, 3, 4), IGNORE_LABEL), class_weights)
        (grad,) = torch.autograd.grad(loss, scores)
        assert loss.item() == 0.0
        assert not grad.any()
