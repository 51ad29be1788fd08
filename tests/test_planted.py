"""Searches for a network that is known: the task of scripts/bench/planted.py, and that it asks for what it says."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hwnas import recipes
from hwnas.search.relax import Softmax
from hwnas.spaces import sample, trace_space

pytestmark = pytest.mark.usefixtures("one_thread")


def _load() -> ModuleType:
    script = Path(__file__).resolve().parents[1] / "scripts/bench/planted.py"
    sys.path.insert(0, str(script.parent))  # it imports its neighbour
    spec = importlib.util.spec_from_file_location("planted", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


planted: Any = _load()
trellis: Any = planted.planted_trellis

# Columns, relative to its own, that an op reads: with two convolutions those of both.
READS = {
    "skip_connect": (0,),
    "sep_conv_3x3": range(-2, 3),
    "sep_conv_5x5": range(-4, 5),
    "dil_conv_3x3": (-2, 0, 2),
    "dil_conv_5x5": (-4, -2, 0, 2, 4),
}


def patterns(lag: int, bit: int, reads: tuple[int, ...]) -> Counter[tuple[int, ...]]:
    """Count what an op sees in the middle of all rows of one bit, which are all equally probable."""
    out: Counter[tuple[int, ...]] = Counter()
    for start in itertools.product((0, 1), repeat=lag):
        row = [start[i % lag] ^ (bit * (i // lag) % 2) for i in range(planted.WIDTH)]
        for place in range(4, planted.WIDTH - 4):
            out[(place, *(row[place + r] for r in reads))] += 1
    return out


class TestTask:
    @pytest.mark.parametrize("cue", planted.LAGS)
    @pytest.mark.parametrize("option", planted.OPS[1:])
    def test_an_op_is_of_use_exactly_if_what_it_sees_differs_between_the_bits(self, cue: str, option: str) -> None:
        """A linear classifier of means learns from expectations alone, and those of a useless op are equal."""
        lag, reads = planted.LAGS[cue], tuple(READS[option])
        same = patterns(lag, 0, reads) == patterns(lag, 1, reads)
        assert same == (option not in planted.USEFUL[cue])

    @pytest.mark.parametrize("option", planted.OPS[1:])
    def test_ops_read_the_columns_that_are_said(self, option: str) -> None:
        plant = planted.Plant(("colour",), (0,))
        space = planted.space_of(1)
        net = space.build(planted.Architecture.of(space.name, plant.answers([option]))).double().eval()
        op = net.cells[0].edges["0-2"]
        x = torch.rand(1, 4, 9, 17, dtype=torch.float64, requires_grad=True)
        for parameter in op.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 1.0)  # no ReLU in between stops anything
        op(x, None)[0, :, 4, 8].sum().backward()
        assert x.grad is not None
        seen = (x.grad[0].sum(dim=(0, 1)) != 0).nonzero().flatten() - 8
        assert seen.tolist() == list(READS[option])

    @pytest.mark.parametrize("bit", [0, 1])
    @pytest.mark.parametrize("cue", planted.CUES)
    def test_textures_are_what_is_counted(self, cue: str, bit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(planted, "NOISE", 0.0)
        drawn = planted.texture(cue, bit, np.random.default_rng(0))
        assert drawn.shape == (planted.STRIP, planted.WIDTH)
        if cue == "colour":
            assert drawn.mean() == pytest.approx(0.65 if bit else 0.35, abs=0.1)
            return
        lag = planted.LAGS[cue]
        assert (drawn[:, lag:] ^ drawn[:, :-lag] == bit).all()
        assert len({tuple(row) for row in drawn[:, :lag].tolist()}) > 1

    def test_the_label_is_the_bits_and_only_the_side_that_has_one_tells_it(self) -> None:
        plant = planted.Plant.of(3)
        data, again = planted.Textures(plant, 3, 400), planted.Textures(plant, 3, 400)
        assert all(np.array_equal(data[i].image, again[i].image) for i in range(5))
        i = plant.cues.index("colour")
        bits = np.array([int(data[k].label) >> i & 1 for k in range(400)])
        for side in (0, 1):
            plane, strip = planted.window_of(2 * i + side)
            top = strip * planted.STRIP
            white = np.array([data[k].image[top : top + planted.STRIP, :, plane].mean() / 255 for k in range(400)])
            told = abs(float(np.corrcoef(white, bits)[0, 1]))
            assert told > 0.9 if side == plant.sides[i] else told < 0.2

    def test_only_the_planted_network_is_right_and_within_the_budget(self) -> None:
        """Every other answer of any cell is wrong, or too dear whatever the other cells are."""
        plant, space = planted.Plant.of(1), planted.space_of(len(planted.CUES))
        model, target = planted.priced(space), planted.planted(plant)
        least = model.predict_ms(target)
        assert all(plant.right(target, cheapest=True))
        for i, cue in enumerate(plant.cues):
            for option in planted.USEFUL[cue][1:]:
                ops = [planted.USEFUL[c][0] for c in plant.cues]
                ops[i] = option
                other = planted.Architecture.of(space.name, plant.answers(ops))
                assert model.predict_ms(other) > least + planted.ROOM_MS
                assert all(plant.right(other, cheapest=False))
                assert plant.right(other, cheapest=True) == [j != i for j in range(len(ops))]
        rng = np.random.default_rng(0)
        assert not any(all(plant.right(sample(space, rng), cheapest=True)) for _ in range(100))

    def test_the_table_prices_the_ops_of_the_list(self) -> None:
        space = planted.space_of(2)
        prices = {c.spec.key: planted.cost_ms(c.spec) for c in trace_space(space).calls}
        for (kind, kernel), ms in planted.PRICES_MS.items():
            found = {v for k, v in prices.items() if k.startswith(kind + "(") and f"kernel={kernel}," in k}
            assert found == {ms}


OF_THE_PAPERS = ("darts-cifar10", "autodeeplab")
OURS = ("darts-", "autodeeplab-")  # by name; recipes of other systems search as their papers do


@pytest.mark.parametrize("name", [n for n in recipes.names() if n.startswith(OURS) and n not in OF_THE_PAPERS])
def test_recipes_with_a_budget_search_as_it_is_done_here(name: str) -> None:
    recipe = recipes.get(name)
    tested = {"chain": planted.RECIPE, "trellis": trellis.RECIPE.search}[recipe.space.encoder.name]
    of_it = replace(
        tested,
        # What follows from the size of the task.
        **{f: getattr(recipe.search, f) for f in ("scale", "steps", "warmup", "batch", "crop", "cutout")},
        **({"alpha_lr": 0.5} if name.endswith("-tiny") else {}),  # a handful of steps
    )
    assert recipe.search == of_it
    assert getattr(recipe.space.encoder, "weighting", "path") == "path"


@pytest.mark.parametrize("name", OF_THE_PAPERS)
def test_recipes_of_the_papers_have_their_relaxation(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.search.relaxation == Softmax()
    assert getattr(recipe.space.encoder, "weighting", "step") == "step"


@pytest.mark.parametrize("way", ["budget", pytest.param("free", marks=pytest.mark.slow)])
def test_the_planted_network_is_found(way: str) -> None:
    result = planted.find(way, seed=0)
    assert result["found"], result


@pytest.mark.slow
@pytest.mark.parametrize("way", ["budget", "free"])
def test_the_planted_network_is_found_in_nine_of_ten_seeds(way: str) -> None:
    results = [planted.find(way, seed) for seed in range(10)]
    assert sum(r["found"] for r in results) >= 9, [r for r in results if not r["found"]]


@pytest.mark.slow
@pytest.mark.parametrize("cue", planted.CUES)
def test_ops_alone_solve_what_they_are_said_to(cue: str) -> None:
    for option in planted.OPS[1:]:
        share = planted.solves(cue, option)
        assert share > 0.9 if option in planted.USEFUL[cue] else share < 0.6, (option, share)


class TestTrellis:
    """The same for the space of Auto-DeepLab."""

    @pytest.mark.parametrize("name", trellis.KINDS)
    def test_a_label_is_the_parity_of_the_fields_beside_it(self, name: str) -> None:
        kind = trellis.KINDS[name]
        data, again = (trellis.Boards(kind, 5, 20) for _ in range(2))
        side = 4 << kind.level
        for i in range(5):
            assert np.array_equal(data[i].image, again[i].image)
            fields = data[i].image[::side, ::side, 0] // 255
            labels = data[i].label[::side, ::side]
            assert np.array_equal(data[i].label, labels.repeat(side, axis=0).repeat(side, axis=1))
            beside = [np.roll(fields, -lag if data.side else lag, axis=1) for lag in kind.lags]
            told = labels != trellis.IGNORE_LABEL
            assert told.sum() == fields.size - max(kind.lags) * len(fields)
            assert np.array_equal(labels[told], (sum(beside) % 2)[told])

    def test_the_table_prices_networks_as_it_is_said(self) -> None:
        space, rng = trellis.space_of(), np.random.default_rng(0)
        model = trellis.priced(space)
        prices = {"avg_pool_3x3": 0.8, "atrous_conv_3x3": 0.4, "sep_conv_3x3": 1.5, "skip_connect": 0.0}
        for arch in (sample(space, rng) for _ in range(30)):
            ops = [o for d in space.groups[0].decisions if (o := arch.get(d.name)) is not None]
            cells = sum(trellis.CELL_MS[level] for level in space.encoder.path(arch))
            assert model.predict_ms(arch) == pytest.approx(cells + 3 * sum(prices[o] for o in ops))

    @pytest.mark.parametrize("name", trellis.KINDS)
    def test_the_next_that_solves_is_beyond_the_budget(self, name: str) -> None:
        space = trellis.space_of()
        model = trellis.priced(space)
        target, *others = [model.predict_ms(trellis.network(space, *other)) for other in trellis.rivals(name)]
        assert others[-1] >= target + 2 * trellis.ROOM_MS
        assert all(ms <= target + trellis.ROOM_MS for ms in others[:-1])

    @pytest.mark.slow
    @pytest.mark.parametrize("name", trellis.KINDS)
    def test_of_what_fits_the_budget_only_the_planted_network_solves(self, name: str) -> None:
        space, kind = trellis.space_of(), trellis.KINDS[name]
        target, *others = [trellis.solves(kind, trellis.network(space, *other)) for other in trellis.rivals(name)]
        assert min(target, others[-1]) > trellis.SOLVED > max(others[:-1])

    @pytest.mark.slow
    def test_the_planted_network_is_found(self) -> None:
        result = trellis.find("budget", seed=0)
        assert result["found"], result

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["budget", "free"])
    def test_the_planted_network_is_found_in_nine_of_ten_seeds(self, way: str) -> None:
        results = [trellis.find(way, seed) for seed in range(10)]
        assert sum(r["found"] for r in results) >= 9, [r for r in results if not r["found"]]
