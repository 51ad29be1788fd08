"""The DARTS space: laws, and the golden values of the public code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.errors import HwnasError
from hwnas.ops import trace
from hwnas.search.derive import strongest
from hwnas.spaces import (
    DARTS_OPS,
    DARTS_V1,
    DARTS_V2,
    Genotype,
    Scale,
    Space,
    darts_space,
    derived_genotype,
    trace_space,
)
from tests.contracts import SpaceContract

CIFAR = darts_space(Scale(36, 20, (32, 32)), 10, "cifar", "classification")
IMAGENET = darts_space(Scale(48, 14, (224, 224)), 1000, "imagenet", "classification")
SUPERNET = darts_space(Scale(16, 8, (32, 32)), 10, "cifar", "classification")


class TestSegmentation(SpaceContract):
    @pytest.fixture
    def space(self) -> Space:
        return darts_space(Scale(4, 4, (37, 51)), 5, nodes=3, head_channels=8)


class TestClassification(SpaceContract):
    @pytest.fixture
    def space(self) -> Space:
        return darts_space(Scale(4, 3, (31, 29)), 5, "cifar", "classification", nodes=2)


class TestStrided(SpaceContract):
    @pytest.fixture
    def space(self) -> Space:
        return darts_space(Scale(4, 3, (63, 57)), 5, "imagenet", "classification")


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# Obtained by running the public DARTS code, quark0/darts at f276dd3; MACs of convolutions and linear layers.
@pytest.mark.parametrize(
    ("space", "n_parameters", "macs"),
    [(CIFAR, 3_349_342, 528_359_040), (IMAGENET, 4_718_752, 529_911_552)],
)
def test_golden_evaluation_networks(space: Space, n_parameters: int, macs: int) -> None:
    arch = DARTS_V2.architecture(space)
    with torch.device("meta"):
        assert parameters(space.build(arch, form="deploy")) == n_parameters
    assert trace_space(space, arch).cost().macs == macs


def test_golden_supernets() -> None:
    with torch.device("meta"):
        net = SUPERNET.build()
        assert parameters(net) == 1_930_618
        assert trace(net.eval(), (1, 3, 32, 32)).cost().macs == 300_255_744
        assert parameters(SUPERNET.at(Scale(4, 5, (32, 32))).build()) == 136_182
    assert sum(np.prod(g.shape) for g in SUPERNET.groups) == 224


def seeded_probs(scale: float = 1.0) -> dict[str, np.ndarray]:
    """The recipe of the golden genotype: normal first, then reduce, one stream."""
    rs = np.random.RandomState(0)
    normal, reduce = rs.randn(14, 8), rs.randn(14, 8)
    pairs = {"normal": normal, "reduce": reduce}
    return {k: torch.softmax(torch.tensor(scale * v, dtype=torch.float32), -1).numpy() for k, v in pairs.items()}


def short(edges: tuple[tuple[str, int], ...]) -> str:
    names = {"skip_connect": "skip", "max_pool_3x3": "max", "avg_pool_3x3": "avg"}
    names |= {f"{kind}_conv_{k}x{k}": f"{kind}{k}" for kind in ("sep", "dil") for k in (3, 5)}
    return ", ".join(f"{names[o]} {j}" for o, j in edges)


def test_golden_genotype_of_seeded_alphas() -> None:
    got = derived_genotype(SUPERNET.cells, seeded_probs())
    # Obtained by running the public DARTS code on the same alphas.
    assert short(got.normal) == "skip 0, skip 1, sep3 2, dil3 0, skip 0, dil3 3, sep3 3, sep5 1"
    assert short(got.reduce) == "dil5 1, max 0, dil5 2, dil5 1, max 1, sep3 0, avg 4, sep5 0"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1000.0])
def test_genotype_and_rule_agree_at_every_scale(scale: float) -> None:
    probs = seeded_probs(scale)
    arch = strongest(SUPERNET.problem, probs)
    assert derived_genotype(SUPERNET.cells, probs).architecture(SUPERNET) == arch


def test_saturation_changes_the_ranking_of_edges() -> None:
    """In float32 the softmax of large alphas is 1 on several edges: they tie, and the first ones win."""
    assert derived_genotype(SUPERNET.cells, seeded_probs(1000.0)) != derived_genotype(SUPERNET.cells, seeded_probs(1.0))


def test_ties_keep_the_first_edge_and_the_first_op_and_never_none() -> None:
    uniform = {g.name: np.full(g.shape, 1 / 8, np.float32) for g in SUPERNET.groups}
    got = derived_genotype(SUPERNET.cells, uniform)
    assert short(got.normal) == short(got.reduce) == ", ".join(["max 0, max 1"] * 4)


def test_none_lowers_the_other_ops_of_its_edge() -> None:
    logits = np.zeros((14, 8), np.float32)
    logits[:, DARTS_OPS.index("sep_conv_3x3")] = 1.0
    logits[2, 0] = 3.0  # edge 0-3: none takes most of the mass, so the edges 1-3 and 2-3 stay
    probs = torch.softmax(torch.from_numpy(logits), -1).numpy()
    got = derived_genotype(SUPERNET.cells, {"normal": probs, "reduce": probs})
    assert short(got.normal).startswith("sep3 0, sep3 1, sep3 1, sep3 2, ")


@pytest.mark.parametrize("genotype", [DARTS_V1, DARTS_V2])
def test_notation_round_trip(genotype: Genotype) -> None:
    assert Genotype.parse(str(genotype)) == genotype
    assert Genotype.parse(f"DARTS = {genotype}") == genotype
    arch = genotype.architecture(CIFAR)
    assert CIFAR.genotype(arch).architecture(CIFAR) == arch


def test_the_public_notation_with_range_is_read() -> None:
    text = str(DARTS_V2).replace("[2, 3, 4, 5]", "range(2, 6)")
    assert Genotype.parse(text) == DARTS_V2


@pytest.mark.parametrize(
    "text",
    ["", "Genotype(", "Genotype(normal=[])", "__import__('os').getcwd()", "Genotype(normal=open('x'))", "x = 3"],
)
def test_what_is_no_genotype_is_refused(text: str) -> None:
    with pytest.raises(HwnasError, match="a genotype looks like"):
        Genotype.parse(text)


def test_a_genotype_that_does_not_fit_is_refused() -> None:
    other = darts_space(CIFAR.scale, 10, "cifar", "classification", nodes=3)
    with pytest.raises(HwnasError, match="needs 6 edges"):
        DARTS_V2.architecture(other)
    twice = Genotype.parse(str(DARTS_V2).replace("('sep_conv_3x3', 1)", "('sep_conv_3x3', 0)", 1))
    with pytest.raises(HwnasError, match="occurs twice"):
        twice.architecture(CIFAR)
    unknown = Genotype.parse(str(DARTS_V2).replace("dil_conv_3x3", "dil_conv_7x7"))
    with pytest.raises(HwnasError, match="did you mean 'dil_conv_"):
        unknown.architecture(CIFAR)


def test_pools_have_batch_norm_in_supernets_only() -> None:
    with torch.device("meta"):
        search = {n.rsplit(".", 1)[0] for n, _ in SUPERNET.build().named_buffers() if "max_pool" in n}
        deploy = [n for n, _ in CIFAR.build(DARTS_V2.architecture(CIFAR), "deploy").named_buffers() if "max_pool" in n]
    assert search
    assert not deploy


def test_affine_batch_norm_in_deploy_and_in_stems_only() -> None:
    with torch.device("meta"):
        for form in ("search", "deploy"):
            net = SUPERNET.build(DARTS_V2.architecture(SUPERNET), form)  # type: ignore[arg-type]
            in_cells = [m.affine for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and "cells" in n]
            assert set(in_cells) == {form == "deploy"}
            assert all(m.affine for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and "stem" in n)


@pytest.mark.parametrize(("cells", "at"), [(8, (2, 5)), (20, (6, 13)), (14, (4, 9)), (5, (1, 3))])
def test_reductions_are_where_darts_has_them(cells: int, at: tuple[int, int]) -> None:
    stack = CIFAR.at(Scale(4, cells, (32, 32))).encoder.stack
    assert tuple(k for k, spec in enumerate(stack.cells) if spec.stride == 2) == at


def test_the_papers_scale_traces_in_seconds() -> None:
    """20 cells at 1024x2048: everything a table must price, without computing anything."""
    space = darts_space(Scale(48, 20, (1024, 2048)), 19)
    traced = trace_space(space)
    assert traced.mixed
    assert len(traced.calls) > 1000
    assert {c.spec.kind for c in traced.calls} >= {"add", "concat", "resize", "context", "classifier", "argmax", "relu"}
    last = traced.calls[-2:]
    assert [c.spec.kind for c in last] == ["resize", "argmax"]
    assert last[-1].out_shape == (1, 1024, 2048)


def test_drawing_names_every_kept_edge() -> None:
    dot = CIFAR.dot(DARTS_V2.architecture(CIFAR))
    assert dot.count("->") == 16
    assert '"normal 2" -> "normal 5" [label="dil_conv_3x3"];' in dot
