"""Guards: the auxiliary skip, early ends, and the figures that say how decided a search is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hwnas.data import SegmentationData, Synthetic
from hwnas.errors import HwnasError
from hwnas.problem import Architecture, Decision, Group
from hwnas.search.gradient import BilevelSearch, SearchConfig
from hwnas.search.guards import SKIP, Guards, decidedness, skips_of
from hwnas.search.relax import FOR_WEIGHTS
from hwnas.spaces import Scale, darts_space

SIZE = (32, 48)
SPACE = darts_space(Scale(4, 3, SIZE), 11, ops=("none", "skip_connect", "sep_conv_3x3"), nodes=2, head_channels=8)
CONFIG = SearchConfig(
    SPACE.scale, steps=12, warmup=2, batch=1, crop=(24, 32), w_lr=0.1, alpha_lr=1e-30, alpha_decay=0.0
)
GROUPS = SPACE.groups
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> SegmentationData:
    return Synthetic("train", SIZE, length=9)


class TestAuxiliarySkip:
    def test_is_added_to_the_skips_alone_and_fades_to_nothing(self) -> None:
        weights = {g.name: torch.full(g.shape, 0.25) for g in GROUPS}
        for progress, b in ((0.0, 0.8), (0.25, 0.6), (1.0, 0.0)):
            for g in GROUPS:
                added = Guards(auxiliary_skip=0.8).assist(weights, GROUPS, progress)[g.name] - 0.25
                expected = torch.tensor([b * (o == SKIP) for o in g.options]).expand(g.shape)
                torch.testing.assert_close(added, expected)
        assert all(torch.equal(a, weights[k]) for k, a in Guards().assist(weights, GROUPS, 0.0).items())

    def test_needs_a_skip_to_be_added_to(self) -> None:
        pools = (Group("g", (Decision("d", ("none", "max_pool_3x3")),)),)
        Guards(most_skips=1).check(pools)
        with pytest.raises(HwnasError, match="needs 'skip_connect' among the options, and 'g' has none"):
            Guards(auxiliary_skip=0.1).check((*GROUPS, *pools))

    def test_is_an_identity_beside_the_mixture(self, data: SegmentationData) -> None:
        """At stride 1, against the formula of DARTS-: mixture + b * x."""
        s = BilevelSearch(SPACE, CONFIG, data)
        s.net.eval()  # the statistics of a batch are those of each pass
        mixed = s.net.cells[0].edges["0-2"]
        x = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
        weights = {g.name: torch.softmax(torch.randn(g.shape), dim=1) for g in GROUPS}
        helped = Guards(auxiliary_skip=1.0).assist(weights, GROUPS, 0.4)
        expected = mixed(x, weights["normal"][0]) + 0.6 * x
        torch.testing.assert_close(mixed(x, helped["normal"][0]), expected)

    def test_is_in_the_network_and_in_no_probability(self, data: SegmentationData) -> None:
        plain, helped = (
            BilevelSearch(SPACE, replace(CONFIG, guards=Guards(auxiliary_skip=b)), data) for b in (0.0, 1.0)
        )
        batch = plain._batches(plain.weight_batches)[0]
        losses = [float(s._loss(None, s.logits(), batch, s._moment(FOR_WEIGHTS, 0)).detach()) for s in (plain, helped)]
        assert losses[0] != losses[1]
        assert plain._monitor(trains_alphas=False) == helped._monitor(trains_alphas=False)
        for s in (plain, helped):
            s.step = CONFIG.steps - 1
        losses = [float(s._loss(None, s.logits(), batch, s._moment(FOR_WEIGHTS, 0)).detach()) for s in (plain, helped)]
        assert losses[0] == losses[1]


def arch_with(option: str, group: str) -> Architecture:
    """Return an architecture whose group keeps its first two edges of each node, with `option`."""
    answers = {}
    for g in GROUPS:
        for d in g.decisions:
            kept = d.name.split("/")[1].startswith(("0-", "1-"))
            answers[d.name] = "none" if not kept else option if g.name == group else "sep_conv_3x3"
    return Architecture.of(SPACE.name, answers)


class TestEnds:
    def test_skips_are_counted_by_group(self) -> None:
        assert skips_of(arch_with(SKIP, "reduce"), GROUPS) == {"normal": 0, "reduce": 4}
        assert skips_of(arch_with("sep_conv_3x3", "reduce"), GROUPS) == {"normal": 0, "reduce": 0}

    def test_reasons(self) -> None:
        skipping, other = arch_with(SKIP, "normal"), arch_with("sep_conv_3x3", "normal")
        assert Guards().reason(skipping, 99, GROUPS) is None
        assert Guards(most_skips=4).reason(skipping, 1, GROUPS) == "4 skips in normal"
        assert Guards(most_skips=5).reason(skipping, 1, GROUPS) is None
        assert Guards(most_skips=1).reason(other, 1, GROUPS) is None
        assert Guards(stable_checks=3).reason(other, 2, GROUPS) is None
        assert Guards(stable_checks=3).reason(other, 3, GROUPS) == "the same network for 3 checks"

    def run(self, data: SegmentationData, config: SearchConfig, favour: str | None = None) -> BilevelSearch:
        s = BilevelSearch(SPACE, config, data)
        with torch.no_grad():
            for a in s.alphas.parameters():
                a[:, SPACE.groups[0].options.index(favour or "sep_conv_3x3")] += 3
        while not s.finished:
            s.advance()
        return s

    def test_a_stable_ranking_ends_the_search_after_the_warm_up(self, data: SegmentationData) -> None:
        """Alphas stand still here: checks are after steps 4, 6 and 8, the one after step 2 is still warm-up."""
        s = self.run(data, replace(CONFIG, guards=Guards(stable_checks=3, check_every=2)))
        assert (s.step, s.stopped) == (8, "the same network for 3 checks")

    def test_skips_end_the_search(self, data: SegmentationData) -> None:
        guards = Guards(most_skips=2, check_every=5)
        s = self.run(data, replace(CONFIG, guards=guards), favour=SKIP)
        assert (s.step, s.stopped) == (5, "4 skips in normal")
        assert self.run(data, replace(CONFIG, guards=guards)).step == CONFIG.steps

    def test_without_guards_a_search_goes_to_its_end(self, data: SegmentationData) -> None:
        s = self.run(data, CONFIG, favour=SKIP)
        assert (s.step, s.stopped) == (CONFIG.steps, None)


class TestDecidedness:
    def test_uniform_certain_and_between(self) -> None:
        uniform = {"a": torch.full((3, 8), 1 / 8), "b": torch.full((2, 4), 1 / 4)}
        assert decidedness(uniform) == {"entropy": pytest.approx(1.0), "margin": pytest.approx(0.0)}
        certain = {"a": torch.eye(4)}
        assert decidedness(certain) == {"entropy": pytest.approx(0.0), "margin": pytest.approx(1.0)}
        found = decidedness({"a": torch.tensor([[0.5, 0.25, 0.25]])})
        assert found["entropy"] == pytest.approx(1.5 * math.log(2) / math.log(3))
        assert found["margin"] == pytest.approx(0.25)

    def test_closed_options_are_none(self) -> None:
        found = decidedness({"path": torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 1 / 3, 1 / 3, 1 / 3]])})
        assert found == {"entropy": pytest.approx(1.0), "margin": pytest.approx(0.0)}

    def test_is_the_mean_over_decisions_and_scales_rows(self) -> None:
        rows = {"a": torch.full((3, 4), 0.9), "b": torch.eye(4)[:1]}  # sigmoids need not sum to one
        assert decidedness(rows) == {"entropy": pytest.approx(0.75), "margin": pytest.approx(0.25)}

    def test_a_decision_with_one_option_is_decided(self) -> None:
        only = Group("g", (Decision("d", ("only",)),))
        found = decidedness({only.name: torch.ones(only.shape)})
        assert found == {"entropy": pytest.approx(0.0), "margin": pytest.approx(1.0)}
