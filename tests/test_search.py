"""The bilevel search: whose gradient goes where, which images it sees, and that a kill changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas import checkpoint
from hwnas.arch import Decision, Group
from hwnas.data import IGNORE_LABEL, SegmentationData, Synthetic
from hwnas.errors import HwnasError
from hwnas.latency import LatencyModel, LatencyTable, OpRow
from hwnas.search.derive import strongest
from hwnas.search.gradient import Alphas, BilevelSearch, SearchConfig, alpha_gradients, search
from hwnas.search.objective import LatencyTerm, task_loss
from hwnas.spaces import ChainSpace, Scale, trace_space
from hwnas.steplog import StepLog

SIZE = (32, 48)
SPACE = ChainSpace(
    Scale(4, 3, SIZE), 11, ops=("none", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3"), nodes=2, head_channels=8
)
CONFIG = SearchConfig(SPACE.scale, steps=14, warmup=3, batch=2, crop=(24, 32), w_lr=0.1, alpha_lr=0.02)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


def state_of(s: BilevelSearch) -> dict[str, Tensor]:
    return {
        **{f"net.{k}": v.clone() for k, v in s.net.state_dict().items()},
        **{f"alphas.{k}": v.clone() for k, v in s.alphas.state_dict().items()},
    }


def assert_same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []


class Raw(Alphas):
    """The logits themselves, without a softmax."""

    def forward(self) -> dict[str, Tensor]:
        return dict(self.logits.items())


class TestAlphaGradients:
    def toy(self) -> tuple[Raw, nn.Parameter]:
        alphas = Raw([Group("g", (Decision("d", ("only",)),))], seed=0)
        nn.init.constant_(alphas.logits["g"], 2.0)
        return alphas, nn.Parameter(torch.tensor(-2.0))

    def test_golden_value_of_the_first_order_step(self) -> None:
        """Lval = a w - 2a + 1 and Ltrain = w^2 - 2aw + a^2 at w = -2, a = 2; obtained by running the public DARTS code.

        The second-order step would move w to 1.2 first.
        """
        alphas, w = self.toy()

        def val_loss(probs: Mapping[str, Tensor]) -> Tensor:
            a = probs["g"].sum()
            return a * w - 2 * a + 1

        assert alpha_gradients(val_loss, alphas, None) == -7.0
        assert alphas.logits["g"].grad is not None
        assert alphas.logits["g"].grad.item() == -4.0
        assert w.grad is None

    def test_the_penalty_adds_its_gradient_and_is_not_in_the_loss(self) -> None:
        alphas, w = self.toy()
        loss = alpha_gradients(lambda p: p["g"].sum() * w, alphas, lambda p: 3 * p["g"].sum() ** 2)
        assert loss == -4.0
        assert alphas.logits["g"].grad is not None
        assert alphas.logits["g"].grad.item() == -2.0 + 12.0

    def test_gradients_of_one_step_replace_those_of_the_last(self) -> None:
        alphas, w = self.toy()
        for _ in range(2):
            alpha_gradients(lambda p: p["g"].sum() * w, alphas, None)
        assert alphas.logits["g"].grad is not None
        assert alphas.logits["g"].grad.item() == -2.0

    def test_weights_of_the_network_get_none(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, CONFIG, data, None)
        images, labels = (torch.from_numpy(a) for a in s.alpha_batches(0))
        before = [p.detach().clone() for p in s.net.parameters()]
        alpha_gradients(lambda probs: task_loss(s.net(images, probs), labels), s.alphas, None)
        assert all(p.grad is None for p in s.net.parameters())
        assert all(torch.equal(p, b) for p, b in zip(s.net.parameters(), before, strict=True))
        for a in s.alphas.parameters():
            assert a.grad is not None
            assert (a.grad.abs().sum(1) > 0).all()  # every edge


class TestAlphas:
    def test_start_as_in_darts_and_the_same_every_time(self) -> None:
        big = Group("g", tuple(Decision(str(i), SPACE.ops) for i in range(500)))
        one, other = Alphas([big], 5), Alphas([big], 5)
        assert torch.equal(one.logits["g"], other.logits["g"])
        assert not torch.equal(one.logits["g"], Alphas([big], 6).logits["g"])
        assert float(one.logits["g"].detach().std()) == pytest.approx(1e-3, rel=0.1)
        assert one.logits["g"].dtype == torch.float32

    def test_probabilities_are_a_softmax_over_options(self) -> None:
        alphas = Alphas(SPACE.groups, 0)
        for name, p in alphas().items():
            torch.testing.assert_close(p, torch.softmax(alphas.logits[name], dim=1))
            torch.testing.assert_close(p.sum(1), torch.ones(5))

    def test_numpy_is_a_copy(self) -> None:
        alphas = Alphas(SPACE.groups, 0)
        before = alphas.numpy()
        with torch.no_grad():
            alphas.logits["normal"].add_(1)
        assert not np.array_equal(before["normal"], alphas.numpy()["normal"])
        assert np.array_equal(before["reduce"], alphas.numpy()["reduce"])


class TestSteps:
    def test_alphas_stay_where_they_are_during_warm_up_and_move_after_it(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, CONFIG, data, None)
        start = s.alphas.numpy()
        for step in range(CONFIG.warmup + 2):
            metrics = s.advance()
            assert metrics["step"] == step
            assert ("val_loss" in metrics) == (step >= CONFIG.warmup)
            for name, a in s.alphas.numpy().items():
                assert np.array_equal(a, start[name]) == (step < CONFIG.warmup)
        assert s.step == CONFIG.warmup + 2

    def test_weights_move_at_every_step(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, CONFIG, data, None)
        for _ in range(CONFIG.warmup + 1):
            before = [p.detach().clone() for p in s.net.parameters()]
            s.advance()
            assert not any(torch.equal(p, b) for p, b in zip(s.net.parameters(), before, strict=True))

    def test_alphas_first_on_their_half_then_weights_on_theirs(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, replace(CONFIG, warmup=1), data, None)
        calls: list[tuple[str, int]] = []
        for name in ("weight_batches", "alpha_batches"):
            source = getattr(s, name)

            def spy(step: int, name: str = name, source: Any = source) -> Any:
                calls.append((name, step))
                return source(step)

            setattr(s, name, spy)
        s.advance()
        s.advance()
        assert calls == [("weight_batches", 0), ("alpha_batches", 1), ("weight_batches", 1)]

    @pytest.mark.parametrize("n", [2, 9, 40])
    def test_halves_are_disjoint_and_together_everything(self, n: int) -> None:
        for seed in (0, 7):
            config = replace(CONFIG, seed=seed, batch=4)
            s = BilevelSearch(SPACE, config, Synthetic("train", SIZE, length=n), None)
            for_weights, for_alphas = (
                {i for step in range(60) for i in source.chosen(step)} for source in (s.weight_batches, s.alpha_batches)
            )
            assert for_weights & for_alphas == set()
            assert for_weights | for_alphas == set(range(n))
            assert abs(len(for_weights) - len(for_alphas)) <= 1
            assert s.weight_batches.seed != s.alpha_batches.seed  # else both would draw the same crops

    def test_learning_rate_is_a_cosine_from_start_to_end(self, data: SegmentationData) -> None:
        config = replace(CONFIG, steps=12, warmup=12, batch=1, crop=(24, 32))
        s = BilevelSearch(SPACE, config, data, None)
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

    def test_a_search_that_diverges_says_so(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, replace(CONFIG, w_lr=1e30), data, None)
        s.advance()  # the first loss is that of the weights as they were
        with pytest.raises(HwnasError, match="the search diverged: loss (nan|inf) at step 2; lower its w_lr"):
            s.advance()

    def test_seeds_decide_and_the_global_generator_is_left_alone(self, data: SegmentationData) -> None:
        before = torch.random.get_rng_state()
        one, same, other = (BilevelSearch(SPACE, replace(CONFIG, seed=seed), data, None) for seed in (1, 1, 2))
        for s in (one, same, other):
            s.advance()
        assert torch.equal(torch.random.get_rng_state(), before)
        assert_same_bits(state_of(one), state_of(same))
        key = next(k for k in state_of(one) if k.endswith("conv.weight"))
        assert not torch.equal(state_of(one)[key], state_of(other)[key])


SETTINGS = {"data": "synthetic"}


class Interrupted(Exception):
    pass


class TestResume:
    def run(self, data: SegmentationData, folder: Path, stop_at: int | None = None) -> BilevelSearch:
        s = BilevelSearch(SPACE, CONFIG, data, None)

        def update(done: int, note: str = "", total: int | None = None) -> None:
            if done == stop_at:
                raise Interrupted

        search(s, folder / "checkpoint.pt", SETTINGS, StepLog(folder / "search.jsonl"), update)
        return s

    def test_an_interrupted_search_ends_with_the_same_bits(self, data: SegmentationData, tmp_path: Path) -> None:
        whole = self.run(data, tmp_path / "whole")
        log = StepLog(tmp_path / "whole" / "search.jsonl").read()
        assert [line["step"] for line in log] == list(range(CONFIG.steps))
        # Before the first checkpoint, right on it (before it was written), and after it.
        for stop_at in (2, 10, 13):
            folder = tmp_path / str(stop_at)
            with pytest.raises(Interrupted):
                self.run(data, folder, stop_at)
            again = self.run(data, folder)
            assert_same_bits(state_of(again), state_of(whole))
            assert StepLog(folder / "search.jsonl").read() == log

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
            (replace(CONFIG, scale=Scale(6, 3, SIZE)), SETTINGS),
            (CONFIG, {"data": "camvid"}),
        ):
            with pytest.raises(HwnasError, match=r"checkpoint\.pt was made with other settings; use another run name"):
                search(BilevelSearch(SPACE, config, data, None), path, settings, log)
        assert (tmp_path / "search.jsonl").read_bytes() == before

    def test_a_damaged_checkpoint_is_refused(self, data: SegmentationData, tmp_path: Path) -> None:
        path, log = tmp_path / "checkpoint.pt", StepLog(tmp_path / "search.jsonl")
        with pytest.raises(Interrupted):
            self.run(data, tmp_path, 12)
        content = path.read_bytes()
        s = BilevelSearch(SPACE, CONFIG, data, None)
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

    @pytest.mark.parametrize("class_weights", [None, torch.tensor([3.0, 1.0])])
    def test_a_batch_of_void_pixels_teaches_nothing_and_ends_nothing(self, class_weights: Tensor | None) -> None:
        scores = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = task_loss(scores, torch.full((1, 3, 4), IGNORE_LABEL), class_weights)
        (grad,) = torch.autograd.grad(loss, scores)
        assert loss.item() == 0.0
        assert not grad.any()

    def test_latency_term_is_in_units_of_the_budget(self) -> None:
        model = planted("max_pool")
        probs = Alphas(SPACE.groups, 0)()
        term = LatencyTerm(model, budget_ms=4.0, weight=0.3)
        assert term(probs).item() == pytest.approx(0.3 * model(probs).item() / 4.0)


def planted(cheap: str) -> LatencyModel:
    """Return prices under which one kind of op costs next to nothing and all others a millisecond."""
    terms = trace_space(SPACE).terms()
    rows = {t.spec.key: OpRow(t.spec.key, 1e-3 if t.spec.kind == cheap else 1.0) for t in terms}
    where = {"device": {"name": "paper"}, "engine": {"name": "paper", "precision": "fp32"}, "batch": 1, "merges": True}
    return LatencyModel(terms, LatencyTable(where, rows), SPACE.groups, SPACE.rules())


@pytest.mark.parametrize(("kind", "option"), [("max_pool", "max_pool_3x3"), ("avg_pool", "avg_pool_3x3")])
def test_a_latency_term_drives_alphas_to_the_cheap_op(data: SegmentationData, kind: str, option: str) -> None:
    model = planted(kind)
    config = replace(CONFIG, steps=15, warmup=0, batch=1, crop=(24, 32), alpha_lr=0.3)
    s = BilevelSearch(SPACE, config, data, LatencyTerm(model, budget_ms=1.0, weight=10.0))
    start_ms = float(model(s.alphas()).detach())
    for _ in range(config.steps):
        s.advance()
    end_ms = float(model(s.alphas()).detach())
    fixed_ms = sum(ms for t, ms in zip(model.terms, model.prices, strict=True) if not t.gate.clauses)
    assert end_ms - fixed_ms < 0.2 * (start_ms - fixed_ms)
    probs = {k: p.detach().numpy() for k, p in s.alphas().items()}
    derived = strongest(SPACE.groups, SPACE.rules(), SPACE.name, probs)
    assert {o for _, o in derived.answers} == {"none", option}
