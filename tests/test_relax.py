"""Relaxations: what multiplies the candidates, where the gradient goes, and that a new one is one class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.data import SegmentationData, Synthetic
from hwnas.records import decode, stored
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.relax import (
    FOR_ALPHAS,
    FOR_WEIGHTS,
    GumbelSoftmax,
    Matrices,
    Moment,
    Relaxation,
    SinglePath,
    Softmax,
    Temperature,
    gumbel,
)
from hwnas.spaces import Scale, darts_space

RELAXATIONS: tuple[Relaxation, ...] = (Softmax(), GumbelSoftmax(), SinglePath())
SIZE = (32, 48)
SPACE = darts_space(Scale(4, 3, SIZE), 11, head_channels=8)
CONFIG = SearchConfig(
    SPACE.scale, steps=10, warmup=0, batch=2, crop=(24, 32), w_lr=0.1, alpha_lr=0.02, evaluation="plain"
)
NOW = Moment(seed=3, step=4, steps=10)
pytestmark = pytest.mark.usefixtures("one_thread")


def logits(spread: float = 1.0) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    return {
        name: nn.Parameter(torch.from_numpy(spread * rng.standard_normal((n, 5))).float())
        for name, n in (("normal", 6), ("reduce", 4))
    }


@stored("test-fair-darts")
@dataclass(frozen=True)
class FairDarts:
    """Sigmoids that do not compete, drawn to 0 or 1 by a loss of their own (Chu et al. 2020, equations 2 and 5)."""

    strength: float = 10.0
    sampled: ClassVar[bool] = False

    def weights(self, logits: Matrices, at: Moment) -> dict[str, Tensor]:
        return self.probs(logits)

    def probs(self, logits: Matrices) -> dict[str, Tensor]:
        return {name: a.sigmoid() for name, a in logits.items()}

    def own_loss(self, logits: Matrices) -> Tensor:
        p = torch.cat([a.sigmoid().reshape(-1) for a in logits.values()])
        return -self.strength * ((p - 0.5) ** 2).mean()


@pytest.mark.parametrize("relaxation", RELAXATIONS, ids=lambda r: type(r).__name__)
class TestAll:
    def test_weights_and_probabilities_sum_to_one(self, relaxation: Relaxation) -> None:
        a = logits()
        for matrices in (relaxation.weights(a, NOW), relaxation.probs(a)):
            assert {k: m.shape for k, m in matrices.items()} == {k: m.shape for k, m in a.items()}
            for m in matrices.values():
                assert bool((m >= 0).all())
                torch.testing.assert_close(m.sum(dim=1), torch.ones(len(m)))

    def test_probabilities_are_the_softmax_whatever_the_step(self, relaxation: Relaxation) -> None:
        a = logits()
        for name, p in relaxation.probs(a).items():
            torch.testing.assert_close(p, torch.softmax(a[name], dim=1))

    def test_a_pass_is_a_function_of_seed_step_stream_and_part(self, relaxation: Relaxation) -> None:
        a = logits()
        before = torch.random.get_rng_state()
        one = relaxation.weights(a, NOW)
        np.random.default_rng(0).normal()
        again = relaxation.weights(a, replace(NOW))
        assert all(torch.equal(one[k], again[k]) for k in a)
        assert torch.equal(torch.random.get_rng_state(), before)
        others = (replace(NOW, seed=4), replace(NOW, step=5), replace(NOW, stream=FOR_ALPHAS), replace(NOW, part=1))
        for other in others:
            same = all(torch.equal(one[k], m) for k, m in relaxation.weights(a, other).items())
            assert same == isinstance(relaxation, Softmax)

    def test_every_logit_of_what_is_computed_gets_a_gradient(self, relaxation: Relaxation) -> None:
        a = logits()
        weights = relaxation.weights(a, replace(NOW, step=0))
        loss = torch.stack([(w * torch.arange(5.0)).sum() for w in weights.values()]).sum()
        for g in torch.autograd.grad(loss, list(a.values())):
            assert torch.isfinite(g).all()
            # Where the drawn option is the first, it contributes nothing here, so its row gets nothing.
            assert bool((g.abs().sum(dim=1) > 0).float().mean() > 0.5)

    def test_its_settings_are_in_those_of_the_checkpoint(self, relaxation: Relaxation) -> None:
        said = [replace(CONFIG, relaxation=r).to_json()["relaxation"] for r in RELAXATIONS]
        settings = replace(CONFIG, relaxation=relaxation).to_json()["relaxation"]
        assert said.count(settings) == 1
        assert decode(settings, Relaxation) == relaxation


class TestTemperature:
    def test_geometric_and_linear(self) -> None:
        moments = [Moment(0, step, 11) for step in range(11)]
        geometric = [Temperature(1.0, 0.03)(m) for m in moments]
        assert geometric[0] == 1.0
        assert geometric[-1] == pytest.approx(0.03)
        ratios = np.divide(geometric[1:], geometric[:-1])
        assert ratios == pytest.approx(ratios[0])
        linear = [Temperature(10.0, 0.1, "linear")(m) for m in moments]
        assert linear == pytest.approx(np.linspace(10.0, 0.1, 11))

    def test_one_step_and_steps_past_the_end(self) -> None:
        assert Temperature(2.0, 1.0)(Moment(0, 0, 1)) == 2.0
        assert Temperature(2.0, 1.0)(Moment(0, 99, 10)) == pytest.approx(1.0)

    def test_a_cold_sample_is_nearly_one_hot_and_a_hot_one_nearly_uniform(self) -> None:
        a = logits()
        cold = GumbelSoftmax(Temperature(1e-3, 1e-3)).weights(a, NOW)
        hot = GumbelSoftmax(Temperature(1e3, 1e3)).weights(a, NOW)
        hard = SinglePath().weights(a, NOW)
        for k in a:
            assert torch.equal(cold[k].round(), hard[k])  # the same noise draws the same option
            torch.testing.assert_close(hot[k], torch.full_like(hot[k], 0.2), atol=0.01, rtol=0)


class TestSampling:
    def test_options_are_drawn_by_their_probabilities(self) -> None:
        """The Gumbel-max trick (Maddison et al. 2014); four standard errors of the frequencies."""
        a = {"g": torch.tensor([[0.0, 1.0, 2.0]])}
        n = 4000
        drawn = sum(SinglePath().weights(a, replace(NOW, step=step, steps=n))["g"] for step in range(n)) / n
        p = torch.softmax(a["g"], dim=1)
        assert bool(((drawn - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all())

    def test_noise_is_gumbel(self) -> None:
        noise = gumbel({"g": torch.zeros(200, 100)}, NOW)["g"]
        assert float(noise.mean()) == pytest.approx(np.euler_gamma, abs=0.04)
        assert float(noise.std()) == pytest.approx(math.pi / math.sqrt(6), abs=0.04)

    def test_a_single_path_is_exactly_one_hot_with_the_gradient_of_its_soft_probability(self) -> None:
        a, relaxation = logits(3.0), SinglePath()
        hard, noise, tau = relaxation.weights(a, NOW), gumbel(a, NOW), relaxation.temperature(NOW)
        for name, w in hard.items():
            assert set(w.detach().reshape(-1).tolist()) == {0.0, 1.0}  # exactly: what is 0 is not computed
            assert bool((w.sum(dim=1) == 1).all())
            chosen = w.argmax(dim=1)
            upstream = torch.arange(1.0, 1 + len(w))
            (found,) = torch.autograd.grad(
                (w.gather(1, chosen[:, None])[:, 0] * upstream).sum(), a[name], retain_graph=True
            )
            soft = torch.softmax((a[name] + noise[name]) / tau, dim=1)
            (expected,) = torch.autograd.grad((soft.gather(1, chosen[:, None])[:, 0] * upstream).sum(), a[name])
            torch.testing.assert_close(found, expected)
            assert bool((found != 0).any())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_one_hot_to_the_bit_for_many_draws(self, dtype: torch.dtype) -> None:
        a = {"g": torch.randn(500, 8, generator=torch.Generator().manual_seed(0)).to(dtype)}
        for step in range(20):
            w = SinglePath(Temperature(5.0, 0.01)).weights(a, Moment(0, step, 20))["g"]
            assert set(w.reshape(-1).tolist()) == {0.0, 1.0}


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


class TestInTheSearch:
    def saved_bytes(self, data: SegmentationData, relaxation: Relaxation) -> int:
        """Return how much memory the passes of a weight step keep for their way back."""
        s = BilevelSearch(SPACE, replace(CONFIG, relaxation=relaxation), data)
        kept: dict[int, int] = {}
        own = {p.data_ptr() for p in s.net.parameters()}

        def keep(t: Tensor) -> Tensor:
            if t.data_ptr() not in own:
                kept[t.data_ptr()] = max(kept.get(t.data_ptr(), 0), t.numel() * t.element_size())
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = s._loss(None, s.logits(), s._batches(s.weight_batches)[0], s._moment(FOR_WEIGHTS, 0))
        assert math.isfinite(float(loss.detach()))
        return sum(kept.values())

    def test_a_sampled_path_takes_the_memory_of_a_path(self, data: SegmentationData) -> None:
        path, mixture = (self.saved_bytes(data, r) for r in (SinglePath(), Softmax()))
        assert path < 0.35 * mixture

    def test_only_what_was_drawn_learns_and_the_rest_stays(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, replace(CONFIG, relaxation=SinglePath()), data)
        before = {k: p.detach().clone() for k, p in s.net.named_parameters()}
        drawn = s.config.relaxation.weights(s.logits(), s._moment(FOR_WEIGHTS, 0))
        s._move_weights(s._batches(s.weight_batches))
        kinds = {f"cells.{k}": spec.name for k, spec in enumerate(SPACE.encoder.stack.cells)}
        seen = set()
        for k, p in s.net.named_parameters():
            parts = k.split(".")
            if "ops" not in parts:
                continue
            cell, edge, option = ".".join(parts[:2]), parts[3], parts[parts.index("ops") + 1]
            row = next(
                i for i, d in enumerate(SPACE.groups[kinds[cell] == "reduce"].decisions) if d.name.endswith("/" + edge)
            )
            chosen = SPACE.groups[0].options[int(drawn[kinds[cell]][row].argmax())]
            moved = not torch.equal(p, before[k])
            seen.add(moved)
            assert moved <= (option == chosen), k
        assert seen == {True, False}

    def test_another_relaxation_is_one_class(self, data: SegmentationData) -> None:
        """FairDARTS: sigmoids in the network, in the guards and in the derivation; its loss moves them apart."""
        spread, small = (
            [],
            darts_space(SPACE.scale, 11, ops=("none", "skip_connect", "sep_conv_3x3"), nodes=2, head_channels=8),
        )
        for strength in (0.0, 100.0):
            config = replace(CONFIG, steps=5, batch=1, alpha_lr=0.3, relaxation=FairDarts(strength))
            s = BilevelSearch(small, config, data)
            for _ in range(config.steps):
                metrics = s.advance()
            p = torch.cat([m.reshape(-1) for m in s.config.relaxation.probs(s.logits()).values()]).detach()
            spread.append(float(((p - 0.5) ** 2).mean()))
            assert 0 < metrics["entropy"] <= 1
        assert spread[1] > 2 * spread[0] > 0

    def test_its_gradient_is_that_of_task_and_own_loss(self, data: SegmentationData) -> None:
        s = BilevelSearch(SPACE, replace(CONFIG, relaxation=FairDarts(7.0)), data)
        batches = s._batches(s.weight_batches)
        task = s._alpha_gradient(batches, 0.1)
        s._move_alphas(task)
        alone: Mapping[str, Tensor] = {k: a.detach().clone().requires_grad_() for k, a in s.logits().items()}
        fresh = BilevelSearch(SPACE, s.config, data)
        own = torch.autograd.grad(FairDarts(7.0).own_loss(fresh.alphas()), list(fresh.alphas.parameters()))
        for name, a, g in zip(alone, s.alphas.parameters(), own, strict=True):
            assert a.grad is not None
            torch.testing.assert_close(a.grad, task.logits[name] + g)
