"""The gradient of alphas: golden values, numerical derivatives, and that nothing else is touched or computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwnas.data import SegmentationData, Synthetic
from hwnas.search.bilevel import Loss, Order, Values, WeightStep, alpha_gradient
from hwnas.search.functional import Functional
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.relax import FOR_ALPHAS, FOR_WEIGHTS, SinglePath
from hwnas.spaces import Scale, darts_space
from hwnas.spaces.cell import Evaluation, set_evaluation

ORDERS: tuple[Order, ...] = ("first", "second", "second-exact")
SIZE = (16, 24)
SPACE = darts_space(
    Scale(4, 3, SIZE),
    11,
    ops=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_3x3"),
    nodes=2,
    head_channels=8,
)
CONFIG = SearchConfig(SPACE.scale, steps=10, warmup=0, batch=2, crop=SIZE, w_lr=0.1, alpha_lr=0.02, evaluation="plain")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


def toy_val(w: Values, a: Values) -> Tensor:
    return a["a"] * w["w"] - 2 * a["a"] + 1


def toy_train(w: Values, a: Values) -> Tensor:
    return w["w"] ** 2 - 2 * a["a"] * w["w"] + a["a"] ** 2


def toy(order: Order, w: float, a: float, step: WeightStep) -> float:
    values = [{"w": torch.tensor(w, dtype=torch.float64)}, {"a": torch.tensor(a, dtype=torch.float64)}]
    return float(alpha_gradient(order, [toy_val], [toy_train], *values, step).logits["a"])


class TestToy:
    """Lval = a w - 2a + 1 and Ltrain = w^2 - 2aw + a^2; values obtained by running the public DARTS code."""

    @pytest.mark.parametrize(("order", "expected"), [("first", -4.0), ("second", -2.8), ("second-exact", -2.8)])
    def test_golden_value(self, order: Order, expected: float) -> None:
        assert toy(order, -2.0, 2.0, WeightStep(lr=0.1)) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("order", ["second", "second-exact"])
    def test_golden_value_with_momentum_and_decay(self, order: Order) -> None:
        step = WeightStep(lr=0.05, momentum=0.9, decay=3e-4, buffers={"w": torch.tensor(0.7, dtype=torch.float64)})
        assert toy(order, 0.5, -1.0, step) == pytest.approx(-1.7815075, abs=1e-9)

    def test_the_loss_is_that_of_the_weights_it_was_taken_at(self) -> None:
        values = [{"w": torch.tensor(-2.0)}, {"a": torch.tensor(2.0)}]
        step = WeightStep(lr=0.1)
        assert alpha_gradient("first", [toy_val], [toy_train], *values, step).loss == -7.0
        ahead = -2.0 - 0.1 * (2 * -2.0 - 2 * 2.0)
        found = alpha_gradient("second", [toy_val], [toy_train], *values, step)
        assert float(found.loss) == pytest.approx(2 * ahead - 4 + 1)

    @pytest.mark.parametrize("order", ORDERS)
    def test_a_validation_loss_at_its_minimum_in_the_weights_has_no_second_term(self, order: Order) -> None:
        def val(w: Values, a: Values) -> Tensor:
            return 0 * w["w"].sum() + 3 * a["a"]

        values = [{"w": torch.tensor(-2.0)}, {"a": torch.tensor(2.0)}]
        assert float(alpha_gradient(order, [val], [toy_train], *values, WeightStep(0.1)).logits["a"]) == 3.0

    @pytest.mark.parametrize("order", ORDERS)
    def test_parts_of_a_batch_are_averaged(self, order: Order) -> None:
        """Losses that are means over samples: two halves give what the whole batch gives."""
        rng = torch.Generator().manual_seed(0)
        x, y = torch.randn(8, 5, generator=rng).double(), torch.randn(8, 5, generator=rng).double()

        def loss(rows: slice, shift: float) -> Loss:
            return lambda w, a: ((x[rows] * w["w"]).tanh() * a["a"] - y[rows] - shift).pow(2).mean()

        values = [{"w": torch.randn(5, generator=rng).double()}, {"a": torch.randn(5, generator=rng).double()}]
        whole, halves = slice(0, 8), (slice(0, 4), slice(4, 8))
        step = WeightStep(0.3, 0.9, 0.1, {"w": torch.ones(5).double()})
        one = alpha_gradient(order, [loss(whole, 1)], [loss(whole, 0)], *values, step)
        parts = alpha_gradient(order, [loss(h, 1) for h in halves], [loss(h, 0) for h in halves], *values, step)
        torch.testing.assert_close(parts.logits["a"], one.logits["a"], rtol=1e-9, atol=1e-12)
        assert float(parts.loss) == pytest.approx(float(one.loss), rel=1e-12)


class Problem:
    """A supernet in float64 with momentum, its losses on one batch each, and the step that is unrolled."""

    def __init__(self, data: SegmentationData, config: SearchConfig = CONFIG, steps: int = 2) -> None:
        s = BilevelSearch(SPACE, config, data)
        for _ in range(steps):
            s.advance()
        s.net.double()
        s.alphas.double()
        s._functional = Functional(s.net)
        self.search = s
        self.val = s._losses([(x.double(), y) for x, y in s._batches(s.alpha_batches)], FOR_ALPHAS)
        self.train = s._losses([(x.double(), y) for x, y in s._batches(s.weight_batches)], FOR_WEIGHTS)
        self.weights = {k: p.detach() for k, p in s.net.named_parameters()}
        self.logits = {k: a.detach() for k, a in s.logits().items()}
        state = s.w_optimizer.state
        buffers = {
            k: b.double() for k, p in s.net.named_parameters() if (b := state[p].get("momentum_buffer")) is not None
        }
        self.step = WeightStep(0.05, 0.9, 3e-4, buffers)

    def gradient(self, order: Order) -> dict[str, Tensor]:
        return alpha_gradient(order, self.val, self.train, self.weights, self.logits, self.step).logits

    def ahead(self, logits: Values) -> dict[str, Tensor]:
        """Return the weights after a plain step of SGD, written out."""
        w = {k: p.clone().requires_grad_() for k, p in self.weights.items()}
        grads = torch.autograd.grad(self.train[0](w, logits), list(w.values()))
        out = {}
        for (k, p), g in zip(self.weights.items(), grads, strict=True):
            out[k] = p - self.step.lr * (self.step.momentum * self.step.buffers[k] + g + self.step.decay * p)
        return out

    def unrolled_loss(self, logits: Values) -> float:
        return float(self.val[0](self.ahead(logits), logits).detach())


def along(gradient: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> float:
    return sum(float((gradient[k] * direction[k]).sum()) for k in direction)


class TestFunctional:
    def test_is_that_of_torch_and_leaves_everything_in_its_place(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, CONFIG, data)
        s.net.train()
        rng = torch.Generator().manual_seed(0)
        own = dict(s.net.named_parameters())
        before = {k: v.clone() for k, v in s.net.state_dict().items()}
        other = {k: torch.randn(p.shape, generator=rng) * 0.1 for k, p in own.items()}
        image, probs = torch.randn(2, 3, *SIZE, generator=rng), {g.name: torch.full(g.shape, 0.2) for g in SPACE.groups}
        copies = {k: b.clone() for k, b in s.net.named_buffers()}
        expected = functional_call(s.net, {**other, **copies}, (image, probs))
        assert torch.equal(s._functional(other, image, probs), expected)
        with pytest.raises(RuntimeError):
            s._functional(other, image[:, :1], probs)
        assert {k: id(p) for k, p in s.net.named_parameters()} == {k: id(p) for k, p in own.items()}
        assert all(torch.equal(v, before[k]) for k, v in s.net.state_dict().items())


class TestSupernet:
    def test_exact_form_is_the_derivative_through_the_step(self, data: SegmentationData) -> None:
        """Against central differences of the validation loss after the step.

        With steps this small no kink of a ReLU or a max pooling is crossed, which two sizes of the step that agree
        show; at 1e-5 some are.
        """
        problem = Problem(data)
        found, rng = problem.gradient("second-exact"), torch.Generator().manual_seed(1)
        for _ in range(3):
            direction = {k: torch.randn(a.shape, generator=rng, dtype=a.dtype) for k, a in problem.logits.items()}

            def slope(h: float, d: Mapping[str, Tensor] = direction) -> float:
                ends = [{k: a + way * d[k] for k, a in problem.logits.items()} for way in (h, -h)]
                return (problem.unrolled_loss(ends[0]) - problem.unrolled_loss(ends[1])) / (2 * h)

            assert slope(1e-7) == pytest.approx(slope(3e-8), rel=1e-6)
            assert along(found, direction) == pytest.approx(slope(1e-7), rel=1e-6)

    def test_differences_are_those_of_a_plain_implementation(self, data: SegmentationData) -> None:
        """Never against the exact form: kinks dominate what they differ by."""
        problem = Problem(data)
        found = problem.gradient("second")

        def logit_gradient(loss: Loss, w: Values) -> dict[str, Tensor]:
            a = {k: v.clone().requires_grad_() for k, v in problem.logits.items()}
            return dict(zip(a, torch.autograd.grad(loss(w, a), list(a.values())), strict=True))

        w_ahead = {k: p.detach().requires_grad_() for k, p in problem.ahead(problem.logits).items()}
        direct = logit_gradient(problem.val[0], w_ahead)
        v = torch.autograd.grad(problem.val[0](w_ahead, problem.logits), list(w_ahead.values()))
        eps = 0.01 / float(torch.cat([g.reshape(-1) for g in v]).norm())
        ends = [
            logit_gradient(
                problem.train[0], {k: p + way * g for (k, p), g in zip(problem.weights.items(), v, strict=True)}
            )
            for way in (eps, -eps)
        ]
        for k in problem.logits:
            expected = direct[k] - problem.step.lr * (ends[0][k] - ends[1][k]) / (2 * eps)
            torch.testing.assert_close(found[k], expected, rtol=1e-6, atol=1e-12)
            assert not torch.allclose(found[k], direct[k], rtol=1e-3)  # the second term is no rounding error

    def test_first_order_takes_the_gradient_at_the_present_weights(self, data: SegmentationData) -> None:
        problem = Problem(data)
        a = {k: v.clone().requires_grad_() for k, v in problem.logits.items()}
        expected = torch.autograd.grad(problem.val[0](problem.weights, a), list(a.values()))
        found = problem.gradient("first")
        for k, e in zip(a, expected, strict=True):
            torch.testing.assert_close(found[k], e, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("sampled", [False, True])
    def test_nothing_of_the_network_is_touched(self, data: SegmentationData, order: Order, sampled: bool) -> None:
        config = replace(CONFIG, order=order, relaxation=SinglePath()) if sampled else replace(CONFIG, order=order)
        s = BilevelSearch(SPACE, config, data)
        s.advance()
        before = {k: v.clone() for k, v in s.net.state_dict().items()}
        versions = {k: p._version for k, p in s.net.named_parameters()}
        pushed = [
            b.clone() for p in s.net.parameters() if (b := s.w_optimizer.state[p].get("momentum_buffer")) is not None
        ]
        alpha_grads = [a.grad for a in s.alphas.parameters()]
        s.w_optimizer.zero_grad()
        gradient = s._alpha_gradient(s._batches(s.weight_batches), 0.1)
        assert all(float(g.abs().sum()) > 0 for g in gradient.logits.values())
        after = s.net.state_dict()
        assert [k for k in before if not torch.equal(before[k], after[k])] == []  # running statistics too
        assert {k: p._version for k, p in s.net.named_parameters()} == versions
        assert all(p.grad is None and p.requires_grad for p in s.net.parameters())
        assert all(a.grad is g for a, g in zip(s.alphas.parameters(), alpha_grads, strict=True))
        still = [s.w_optimizer.state[p].get("momentum_buffer") for p in s.net.parameters()]
        assert all(torch.equal(b, c) for b, c in zip(pushed, [b for b in still if b is not None], strict=True))

    @pytest.mark.parametrize(("order", "passes"), [("first", [False]), ("second", [True, True, False, False])])
    def test_weights_want_gradients_only_where_they_are_needed(
        self, data: SegmentationData, order: Order, passes: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A function with a backward pass of its own computes all that its inputs ask for."""
        s = BilevelSearch(SPACE, replace(CONFIG, order=order), data)
        seen: list[bool] = []
        convolve = cast(Callable[..., Tensor], nn.Conv2d.forward)

        def spy(self: nn.Conv2d, x: Tensor) -> Tensor:
            seen.append(self.weight.requires_grad)
            return convolve(self, x)

        monkeypatch.setattr(nn.Conv2d, "forward", spy)
        s._alpha_gradient(s._batches(s.weight_batches), 0.1)
        each = len(seen) // len(passes)
        assert [all(seen[i * each : (i + 1) * each]) for i in range(len(passes))] == passes
        assert [any(seen[i * each : (i + 1) * each]) for i in range(len(passes))] == passes

    @pytest.mark.parametrize("evaluation", ["fast", "lean"])
    def test_how_cells_are_computed_changes_no_gradient(self, data: SegmentationData, evaluation: Evaluation) -> None:
        """A pass that reads the network's own weights in place of those it is lent would be off by far more."""
        found = {}
        for how in ("plain", evaluation):
            s = BilevelSearch(SPACE, replace(CONFIG, warmup=1), data)
            set_evaluation(s.net, how)
            s.advance()
            batches = s._batches(s.weight_batches)
            weights = {k: p.detach() + 0.1 for k, p in s.net.named_parameters()}
            val = s._losses(s._batches(s.alpha_batches), FOR_ALPHAS)
            step = WeightStep(0.5)
            for order in ("first", "second"):
                gradient = alpha_gradient(order, val, s._losses(batches, FOR_WEIGHTS), weights, s.logits(), step)
                found[how, order] = torch.cat([g.reshape(-1) for g in gradient.logits.values()])
            assert all(p.grad is not None for p in s.net.parameters())
        for order in ("first", "second"):
            one, other = found["plain", order], found[evaluation, order]
            assert float((one - other).norm() / one.norm()) < (1e-4 if order == "first" else 0.05)  # kinks are crossed

    def test_the_step_that_is_unrolled_is_the_one_that_is_taken(self, data: SegmentationData) -> None:
        """With clipping out of the way, the weights of the unrolled pass are those after the real step."""
        s = BilevelSearch(SPACE, replace(CONFIG, order="second", w_clip=1e9, alpha_lr=1e-30, alpha_decay=0.0), data)
        for _ in range(3):
            s.advance()
        used: list[Values] = []
        losses = s._losses

        def spy(given: object, stream: int) -> list[Loss]:
            made = losses(given, stream)  # type: ignore[arg-type]
            if stream == FOR_WEIGHTS:
                return made

            def keep(w: Values, a: Values) -> Tensor:
                used.append({k: p.detach().clone() for k, p in w.items()})
                return made[0](w, a)

            return [keep]

        s._losses = spy  # type: ignore[method-assign, assignment]
        lr = s.advance()["w_lr"]
        assert lr < CONFIG.w_lr
        (ahead,) = used
        for k, p in s.net.named_parameters():
            torch.testing.assert_close(ahead[k], p.detach(), rtol=1e-5, atol=1e-7)
