"""The benchmark against random networks: its statistics, and which networks it takes as equally fast."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hwnas.errors import HwnasError
from hwnas.search.widths import count
from hwnas.spaces import DARTS_V2, Scale, check, darts_space

BENCH: dict[str, Any] = runpy.run_path(
    str(Path(__file__).resolve().parents[1] / "scripts" / "bench" / "against_random.py")
)
SPACE = darts_space(Scale(16, 3, (48, 64)), 11)
SCALES = (Scale(8, 3, (48, 64)), Scale(16, 3, (48, 64)))


@pytest.fixture(scope="module")
def models() -> list[Any]:
    """Multiply-adds in place of milliseconds: a price of ops that needs no table."""
    return count(SPACE, SCALES, "macs")


def searched(models: list[Any], seed: int) -> Any:
    """Return a network of the space as if a search had found it."""
    arch = DARTS_V2.architecture(SPACE) if seed < 0 else BENCH["sample"](SPACE, np.random.default_rng(seed))
    return BENCH["Network"]("searched", arch, SCALES[1], models[1].predict_ms(arch))


class TestStanding:
    """Where one stands among others."""

    def test_it_is_that_of_scipy(self) -> None:
        others = [0.31, 0.35, 0.30, 0.36]
        found = BENCH["standing"](0.34, others)
        assert found["mean"] == pytest.approx(0.33)
        assert found["std"] == pytest.approx(stats.tstd(others))
        assert found["z"] == pytest.approx((0.34 - 0.33) / stats.tstd(others))
        assert found["rank"] == 3

    def test_ranks_go_from_best_to_last(self) -> None:
        ranks = [BENCH["standing"](ours, [1.0, 2.0, 3.0])["rank"] for ours in (4.0, 2.5, 0.0)]
        assert ranks == [1, 2, 4]

    def test_what_is_no_better_than_random_has_a_z_of_variance_one_over_seeds(self) -> None:
        rng = np.random.default_rng(0)

        def study() -> float:
            pairs = []
            for scale in (1.0, 3.0):  # seeds need not spread alike
                drawn = [float(x) for x in scale * rng.standard_normal(50)]
                pairs.append((float(scale * rng.standard_normal()), drawn))
            return float(BENCH["together"](pairs)["z"])

        z = [study() for _ in range(2000)]
        assert np.mean(z) == pytest.approx(0, abs=0.1)
        assert np.std(z) == pytest.approx(1, abs=0.06)

    def test_over_seeds(self) -> None:
        said = BENCH["together"]([(3.0, [1.0, 2.0]), (1.0, [0.0, 4.0])])
        assert said["ahead"] == pytest.approx((1.5 - 1.0) / 2)
        assert said["beaten"] == 0.75
        assert said["z"] == pytest.approx(0.5 / np.sqrt(1.5 * (0.5 + 8)))  # variances of the two are 0.5 and 8


class TestWorth:
    """What channels and score are worth."""

    @staticmethod
    def found(noise: float, seed: int = 0) -> list[dict[str, Any]]:
        """Return two seeds of 40 networks each, where doubling is worth 0.02 and a score of 1 is worth 0.05."""
        rng = np.random.default_rng(seed)
        drawn = [
            (i, int(c), float(s)) for i in (0, 1) for c, s in zip(rng.choice([8, 16], 40), rng.random(40), strict=True)
        ]
        miou = [0.3 + 0.1 * i + 0.02 * np.log2(c) + 0.05 * s + noise * rng.standard_normal() for i, c, s in drawn]
        every = [(i, {"channels": c, "score": s, "test_miou": m}) for (i, c, s), m in zip(drawn, miou, strict=True)]
        return [{"networks": [n for i, n in every if i == seed]} for seed in (0, 1)]

    def test_what_the_networks_were_made_of_is_found(self) -> None:
        said = BENCH["worth"](self.found(0.0))
        assert said["networks"] == 80
        assert (said["doubling"], said["score"]) == pytest.approx((0.02, 0.05))
        assert max(said["doubling_se"], said["score_se"]) < 1e-9

    def test_its_standard_errors_are_those_of_repetitions(self) -> None:
        said = [BENCH["worth"](self.found(0.01, seed)) for seed in range(200)]
        for name in ("doubling", "score"):
            assert np.std([s[name] for s in said]) == pytest.approx(np.mean([s[name + "_se"] for s in said]), rel=0.2)

    def test_networks_of_one_width_do_not_tell(self) -> None:
        alike = [{"networks": [{"channels": 8, "score": s, "test_miou": s} for s in (0.1, 0.5, 0.9)]}]
        assert BENCH["worth"](alike) is None


class TestEquallyFast:
    """Which networks are compared."""

    @pytest.mark.parametrize("seed", [0, 1])
    def test_random_networks_are_valid_different_and_within_tolerance(self, models: list[Any], seed: int) -> None:
        target = searched(models, seed)
        found = BENCH["draw"](SPACE, SCALES, models, target, 6, np.random.default_rng(seed))
        assert len({n.key for n in found} | {target.key}) == 7
        assert [n.name for n in found] == [f"random{i}" for i in range(6)]
        for n in found:
            check(SPACE, n.arch)
            assert n.predicted_ms == models[SCALES.index(n.scale)].predict_ms(n.arch)
            assert abs(n.predicted_ms / target.predicted_ms - 1) <= BENCH["WITHIN"]

    def test_more_of_one_width_are_others(self, models: list[Any]) -> None:
        target = searched(models, 0)
        first = BENCH["draw"](SPACE, SCALES, models, target, 6, np.random.default_rng(0))
        # The same stream of chance would draw the same ones again.
        again = (SPACE, SCALES[1:], models[1:], target, 4, np.random.default_rng(0), "as_wide")
        assert {n.key for n in BENCH["draw"](*again)} & {n.key for n in first}
        more = BENCH["draw"](*again[:5], np.random.default_rng(0), "as_wide", first)
        assert [n.name for n in more] == [f"as_wide{i}" for i in range(4)]
        assert {n.scale for n in more} == {SCALES[1]}
        assert not {n.key for n in more} & {n.key for n in first}

    def test_a_latency_that_no_network_has_is_refused(self, models: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(BENCH["draw"].__globals__, "DRAWS", 20)
        target = BENCH["Network"]("searched", DARTS_V2.architecture(SPACE), SCALES[1], 1.0)
        with pytest.raises(HwnasError, match="only 0 of 20 random networks are within 2% of 1 ms.*--fps"):
            BENCH["draw"](SPACE, SCALES, models, target, 2, np.random.default_rng(0))

    def test_darts_is_as_wide_as_may_be(self, models: list[Any]) -> None:
        narrow, wide = (m.predict_ms(DARTS_V2.architecture(SPACE)) for m in models)
        for target, channels in ((wide, 16), (wide / 1.049, 16), (wide / 1.06, 8), (narrow, 8), (narrow / 2, 8)):
            assert BENCH["darts"](DARTS_V2.architecture(SPACE), SCALES, models, target).scale.channels == channels


class TestSpaces:
    """What is compared in each space."""

    @pytest.mark.parametrize("space", BENCH["SPACES"])
    def test_networks_are_as_deep_as_the_supernet(self, space: str) -> None:
        made = BENCH["small"](space, 60, 40, 8)
        assert {s.cells for s in made.scales()} == {made.search.scale.cells}
        assert tuple(s.channels for s in made.scales()) == BENCH["WIDTHS"]
        assert (made.search.warmup, made.train.steps) == (10, 40)

    def test_the_budget_without_a_known_network_is_typical(self, models: list[Any]) -> None:
        trellis = BENCH["small"]("autodeeplab", 60, 40, 8).space
        assert BENCH["published"](trellis) is None
        typical = BENCH["typical_ms"](SPACE, models[1])
        drawn = [models[1].predict_ms(BENCH["sample"](SPACE, np.random.default_rng(i))) for i in range(200)]
        assert 0.4 < np.mean([ms < typical for ms in drawn]) < 0.6

    @pytest.mark.parametrize("known", [True, False])
    def test_figures_tell_a_known_network_from_random_ones(self, models: list[Any], known: bool) -> None:
        names = ["searched", *["darts_v2"] * known, "random0", "random1", "as_wide0"]
        networks = [replace(searched(models, i), name=name) for i, name in enumerate(names)]
        miou = {"searched": 0.5, "darts_v2": 0.6, "random0": 0.3, "random1": 0.4, "as_wide0": 0.2}
        found = BENCH["figures"]([BENCH["Outcome"](n, 1.0, 0.0, 0.0, miou[n.name], i) for i, n in enumerate(networks)])
        assert found["random"] == [0.3, 0.4]
        assert [d["miou"] for d in found["darts_v2"]] == [0.6] * known
        assert found["rank"] == 1
        assert found["as_wide"]["random"] == [0.3, 0.4, 0.2]
        assert [n["name"] for n in found["networks"]] == names
