"""Cost terms and the learned multiplier: values by hand, gradients by differences, and where a search ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.data import SegmentationData, Synthetic
from hwnas.errors import HwnasError
from hwnas.latency import LatencyModel, LatencyTable, OpRow
from hwnas.search.costs import Bound, Cost, CostConfig, Form, Mixture
from hwnas.search.derive import strongest
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.multiplier import Multiplier
from hwnas.spaces import Scale, darts_space, sample, trace_space

FORMS: tuple[Form, ...] = get_args(Form)
SIZE = (32, 48)
SPACE = darts_space(
    Scale(4, 3, SIZE), 11, ops=("none", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3"), nodes=2, head_channels=8
)
CONFIG = SearchConfig(SPACE.scale, steps=15, warmup=0, batch=1, crop=(24, 32), w_lr=0.1, alpha_lr=0.3)
WHERE = {"device": {"name": "paper"}, "engine": {"name": "paper", "precision": "fp32"}, "batch": 1, "merges": True}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


def priced(ms_of: Mapping[str, float], otherwise: float) -> LatencyModel:
    """Return prices by kind of op."""
    terms = trace_space(SPACE).terms()
    rows = {t.spec.key: OpRow(t.spec.key, ms_of.get(t.spec.kind, otherwise)) for t in terms}
    return LatencyModel(terms, LatencyTable(WHERE, rows), SPACE.problem)


def probabilities(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {g.name: torch.softmax(2 * torch.randn(g.shape, generator=rng).double(), dim=1) for g in SPACE.groups}


@dataclass(frozen=True)
class Weighted:
    """A resource that is linear in the probabilities."""

    factor: float

    def __call__(self, probs: Mapping[str, Tensor], /) -> Tensor:
        return self.factor * torch.stack([p[:, 1:].sum() for p in probs.values()]).sum()


def noise(rng: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).float()


class TestForms:
    def test_values_by_hand(self) -> None:
        task, bounds = torch.tensor(2.0), [Bound("ms", lambda p: p["g"].sum(), 4.0)]
        for form, expected in (
            ("linear", 2 + 0.3 * 1.5),
            ("log", 2 + 0.3 * math.log(1.5)),
            ("two-sided", 2 + 0.3 * 0.5),
            ("product", 2 * 1.5**0.3),
        ):
            cost = Cost(CostConfig(form, 0.3), bounds)  # type: ignore[arg-type]
            assert float(cost.total(task, {"g": torch.tensor([6.0])}, 0.3)) == pytest.approx(expected)
        below = Cost(CostConfig("two-sided", 0.3), bounds).total(task, {"g": torch.tensor([2.0])}, 0.3)
        assert float(below) == pytest.approx(2 + 0.3 * 0.5)

    @pytest.mark.parametrize("form", ["two-sided", "product"])
    def test_a_multiplier_is_for_a_sum_that_grows(self, form: Form) -> None:
        with pytest.raises(HwnasError, match=f"learned for the forms linear and log; give '{form}' a number"):
            Cost(CostConfig(form), [Bound("ms", Weighted(1.0), 1.0)])

    def test_an_unknown_form_is_refused(self) -> None:
        with pytest.raises(HwnasError, match="unknown form of cost 'square'; use one of linear, log"):
            Cost(CostConfig("square", 1.0), [Bound("ms", Weighted(1.0), 1.0)])  # type: ignore[arg-type]

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("expectation", ["derived", "mixture"])
    def test_gradients_are_those_of_differences(self, form: Form, expectation: str) -> None:
        model = priced({"max_pool": 0.2, "sep_conv": 0.7}, 0.1)
        cost = Cost(CostConfig(form, 0.3, expectation), [Bound("ms", model, 3.0)])  # type: ignore[arg-type]
        probs = {k: p.clone().requires_grad_() for k, p in probabilities(1).items()}
        task = torch.tensor(1.7, dtype=torch.float64)
        found = torch.autograd.grad(cost.total(task, probs, 0.3), list(probs.values()))
        rng, h = torch.Generator().manual_seed(2), 1e-6
        direction = {k: torch.randn(p.shape, generator=rng).double() for k, p in probs.items()}
        ends = [
            float(cost.total(task, {k: p.detach() + way * direction[k] for k, p in probs.items()}, 0.3))
            for way in (h, -h)
        ]
        slope = sum(float((g * direction[k]).sum()) for k, g in zip(probs, found, strict=True))
        assert slope != 0
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5)

    @pytest.mark.parametrize("form", ["linear", "log"])
    def test_the_search_adds_the_gradient_of_the_form(self, data: SegmentationData, form: Form) -> None:
        """And a product scales that of the task loss as well: every form against its own formula, through softmax."""
        bounds = [Bound("ms", priced({}, 0.1), 3.0)]
        s = BilevelSearch(SPACE, replace(CONFIG, cost=CostConfig(form, 0.4)), data, bounds)
        task = s._alpha_gradient(s._batches(s.weight_batches), 0.1)
        fresh = {k: a.detach().clone().requires_grad_() for k, a in s.logits().items()}
        s._move_alphas(task)
        probs = {k: torch.softmax(a, dim=1) for k, a in fresh.items()}
        share = bounds[0].resource(probs) / 3.0
        added = torch.autograd.grad(0.4 * (share if form == "linear" else share.log()), list(fresh.values()))
        for k, g in zip(fresh, added, strict=True):
            torch.testing.assert_close(s.alphas.logits[k].grad, task.logits[k] + g)

    def test_a_product_scales_the_gradient_of_the_task_loss(self, data: SegmentationData) -> None:
        bounds = [Bound("ms", priced({}, 0.1), 3.0)]
        s = BilevelSearch(SPACE, replace(CONFIG, cost=CostConfig("product", 0.4)), data, bounds)
        task = s._alpha_gradient(s._batches(s.weight_batches), 0.1)
        fresh = {k: a.detach().clone().requires_grad_() for k, a in s.logits().items()}
        s._move_alphas(task)
        probs = {k: torch.softmax(a, dim=1) for k, a in fresh.items()}
        factor = (bounds[0].resource(probs) / 3.0) ** 0.4
        added = torch.autograd.grad(factor, list(fresh.values()))
        for k, g in zip(fresh, added, strict=True):
            expected = float(factor.detach()) * task.logits[k] + task.loss * g
            torch.testing.assert_close(s.alphas.logits[k].grad, expected)


class TestExpectations:
    def test_the_mixture_ignores_rules_and_the_derived_network_obeys_them(self) -> None:
        """Only separable convolutions cost something, each on an edge of its own: the mixture is a plain sum."""
        model = priced({"sep_conv": 1.0}, 0.0)
        probs = probabilities(3)
        kinds = [spec.name for spec in SPACE.encoder.stack.cells]
        column = SPACE.groups[0].options.index("sep_conv_3x3")
        plain = sum(float(probs[kind][:, column].sum()) for kind in kinds)
        assert float(Mixture(model)(probs)) == pytest.approx(plain, rel=1e-9)
        assert float(model(probs)) != pytest.approx(plain, rel=1e-3)

    def test_both_are_the_latency_of_a_network_under_one_hots(self) -> None:
        model, rng = priced({"max_pool": 0.3, "sep_conv": 0.7}, 0.05), np.random.default_rng(0)
        for _ in range(5):
            arch = sample(SPACE, rng)
            one_hot = SPACE.problem.one_hot(arch).double()
            assert float(Mixture(model)(one_hot)) == pytest.approx(model.predict_ms(arch))
            cost = Cost(CostConfig(), [Bound("ms", model, 2.0)])
            assert cost.usage(arch, SPACE.problem) == {"ms": pytest.approx(model.predict_ms(arch))}

    def test_a_mixture_of_anything_else_is_refused(self) -> None:
        with pytest.raises(HwnasError, match="plain mixture is made of a latency model, and 'mw' is none"):
            Cost(CostConfig(expectation="mixture"), [Bound("mw", Weighted(1.0), 1.0)])


class TestSeveralBudgets:
    def test_the_one_that_binds_counts_and_the_others_do_not(self) -> None:
        probs = {k: p.requires_grad_() for k, p in probabilities(4).items()}
        near, far = Bound("a", Weighted(1.0), 2.0), Bound("b", Weighted(5.0), 100.0)
        both = Cost(CostConfig(), [near, far])
        for bound, slack in ((near, far), (far, replace(near, budget=1e6))):
            cost = Cost(CostConfig(), [slack, bound])
            alone = Cost(CostConfig(), [bound])
            task = torch.tensor(1.0)
            found, expected = (
                torch.autograd.grad(c.total(task, probs, 0.5), list(probs.values())) for c in (cost, alone)
            )
            assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
        assert both.violation({"a": 3.0, "b": 120.0}) == pytest.approx(0.5)
        assert both.violation({"a": 1.0, "b": 120.0}) == pytest.approx(0.2)
        assert both.violation({"a": 1.0, "b": 75.0}) == pytest.approx(-0.25)


class TestMultiplier:
    def test_it_rises_above_the_budget_falls_below_it_and_is_never_negative(self) -> None:
        m = Multiplier(lr=0.1, damping=2.0)
        assert m.ascend(0.0, 0.5) == pytest.approx(0.05)
        assert m.ascend(0.3, 0.0) == 0.3
        assert m.ascend(0.3, -0.1) == pytest.approx(0.29)
        assert m.ascend(0.005, -0.1) == 0.0
        assert m.weight(0.3, 0.1) == pytest.approx(0.5)
        assert m.weight(0.3, -0.1) == pytest.approx(0.1)
        assert m.weight(0.3, -0.2) == 0.0

    def test_the_rule_of_lightnas(self) -> None:
        """Its loss has no damping; where the sign contradicts the violation, the multiplier starts anew."""
        m = Multiplier(lr=0.1, damping=0.0, reset=True)
        assert m.ascend(0.3, 0.5) == pytest.approx(0.35)
        assert m.ascend(0.3, -0.1) == 0.0
        assert m.ascend(-0.3, 0.1) == 0.0
        assert m.ascend(0.0, -0.1) == pytest.approx(-0.01)
        assert m.weight(-0.3, -0.1) == -0.3

    @pytest.mark.parametrize("preference", [0.3, 3.0])
    def test_it_lands_on_a_budget_whatever_the_scale_of_the_loss(self, preference: float) -> None:
        """A planted task likes expensive ops; the network that the rule derives ends at the budget, by itself.

        A fixed weight that does so for one scale of the loss does not for the other.
        """
        model = priced({"sep_conv": 1.0, "max_pool": 0.5, "avg_pool": 0.25}, 0.01)
        rng = np.random.default_rng(0)
        liking = {"none": 0.0, "avg_pool_3x3": 0.5, "max_pool_3x3": 0.7, "sep_conv_3x3": 1.0}
        value = {
            g.name: torch.tensor([[liking[o] for o in g.options]] * len(g.decisions)) * (1 + 0.3 * noise(rng, g.shape))
            for g in SPACE.groups
        }

        def ends(m: Multiplier | None, budget_ms: float) -> list[float]:
            logits = {k: (1e-3 * v).requires_grad_() for k, v in value.items()}
            optimizer = torch.optim.Adam(logits.values(), 0.05, betas=(0.5, 0.999))
            cost, multiplier, weight, out = Cost(CostConfig(), [Bound("ms", model, budget_ms)]), 0.0, 0.1, []
            for _ in range(100):
                probs = {k: torch.softmax(a, dim=1) for k, a in logits.items()}
                task = -preference * torch.stack([(value[k] * p).sum() for k, p in probs.items()]).sum() / 10
                optimizer.zero_grad()
                cost.total(task, probs, weight).backward()
                optimizer.step()
                now = {k: torch.softmax(a, dim=1).detach().numpy() for k, a in logits.items()}
                taken = cost.usage(strongest(SPACE.problem, now), SPACE.problem)
                out.append(taken["ms"] / budget_ms)
                if m is not None:
                    multiplier = m.ascend(multiplier, cost.violation(taken))
                    weight = m.weight(multiplier, cost.violation(taken))
            return out

        unbounded_ms = ends(None, 1e9)[-1] * 1e9
        budget_ms = 0.8 * unbounded_ms
        tail = ends(Multiplier(), budget_ms)[-25:]
        assert np.mean(tail) == pytest.approx(1.0, abs=0.06)
        if preference > 1:
            assert abs(ends(None, budget_ms)[-1] - 1) > 0.1


class TestSearches:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(("kind", "option"), [("max_pool", "max_pool_3x3"), ("avg_pool", "avg_pool_3x3")])
    def test_every_form_drives_alphas_to_the_cheap_op(
        self, data: SegmentationData, form: Form, kind: str, option: str
    ) -> None:
        model = priced({kind: 1e-3}, 1.0)
        config = replace(CONFIG, cost=CostConfig(form, 10.0))
        s = BilevelSearch(SPACE, config, data, [Bound("ms", model, 10.0)])

        def expected_ms() -> float:
            return float(model(s.config.relaxation.probs(s.logits())).detach())

        start_ms = expected_ms()
        for _ in range(config.steps):
            s.advance()
        # Each sum is there, after a convolution or not.
        fixed_ms = sum(
            ms
            for t, ms in zip(model.terms, model.prices, strict=True)
            if not t.gate.clauses or (t.spec.kind == "add" and not dict(t.spec.attrs)["after_conv"])
        )
        assert expected_ms() - fixed_ms < 0.3 * (start_ms - fixed_ms)
        probs = {k: p.detach().numpy() for k, p in s.config.relaxation.probs(s.logits()).items()}
        derived = strongest(SPACE.problem, probs)
        assert {o for _, o in derived.answers} == {"none", option}
