"""Cells of any number of inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.problem import Architecture, NoTwins, Problem, TopK
from hwnas.spaces import Cell, CellSpec
from hwnas.spaces.cell import preprocessing, set_evaluation

OPS = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")
C, SIZE = 4, (9, 11)


def spec_of(inputs: int, stride: int = 1, keep: int = 2) -> CellSpec:
    return CellSpec("cell", OPS, nodes=3, keep=keep, inputs=inputs, stride=stride)


def problem_of(spec: CellSpec) -> Problem:
    return Problem("cells", (spec.group,), tuple(spec.rules()))


def cell_of(spec: CellSpec, arch: Architecture | None = None, search: bool = True) -> Cell:
    torch.manual_seed(0)
    inputs = [preprocessing(2 + n, C, search) for n in range(spec.inputs)]
    return Cell(spec, arch or Architecture.of("cells", {}), inputs, C, search)


def images(spec: CellSpec) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 2 + n, *SIZE, generator=generator) for n in range(spec.inputs)]


@pytest.mark.parametrize("inputs", [1, 2, 3])
class TestInputs:
    """What holds for every number of inputs."""

    def test_edges_lead_from_all_states_before(self, inputs: int) -> None:
        spec = spec_of(inputs)
        assert len(spec.edges) == sum(inputs + n for n in range(3))
        assert spec.edges[:inputs] == tuple((j, inputs) for j in range(inputs))
        assert [d.name for d in spec.group.decisions] == [spec.edge_name(e) for e in spec.edges]

    def test_a_node_keeps_as_many_edges_as_it_has(self, inputs: int) -> None:
        rules = spec_of(inputs).rules()
        assert [r.k for r in rules if isinstance(r, TopK)] == [min(2, inputs + n) for n in range(3)]
        arch = problem_of(spec_of(inputs)).draw(np.random.default_rng(0))
        assert [len(block) for block in spec_of(inputs).blocks(arch)] == [min(2, inputs + n) for n in range(3)]

    @pytest.mark.parametrize("stride", [1, 2])
    def test_a_one_hot_supernet_is_the_built_cell(self, inputs: int, stride: int) -> None:
        spec = spec_of(inputs, stride)
        problem, whole = problem_of(spec), cell_of(spec).eval()
        for seed in range(3):
            arch = problem.draw(np.random.default_rng(seed))
            alone = cell_of(spec, arch).eval()
            weights = whole.state_dict()
            alone.load_state_dict({k: weights[k] for k in alone.state_dict()})
            with torch.no_grad():
                expected = alone(images(spec), None)
                torch.testing.assert_close(whole(images(spec), problem.one_hot(arch)["cell"]), expected)
            assert expected.shape == (2, 3 * C, *(-(-s // stride) for s in SIZE))

    @pytest.mark.parametrize("evaluation", ["fast", "lean"])
    def test_evaluation_changes_nothing(self, inputs: int, evaluation: str) -> None:
        spec, found = spec_of(inputs), []
        for how in ("plain", evaluation):
            cell = cell_of(spec).double().train()
            set_evaluation(cell, how)  # type: ignore[arg-type]
            weights = torch.full(spec.group.shape, 0.25, dtype=torch.float64, requires_grad=True)
            out = cell([x.double() for x in images(spec)], weights)
            found.append([out.detach(), *torch.autograd.grad(out.square().mean(), [weights, *cell.parameters()])])
        for plain, other in zip(*found, strict=True):
            torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-9)

    def test_twins_compute_the_same(self, inputs: int) -> None:
        spec = spec_of(inputs)
        limit, problem = NoTwins(spec.twins()), problem_of(spec)
        same = []
        for seed in range(60):
            arch = problem.draw(np.random.default_rng(seed), 0.3)
            cell = cell_of(spec, arch, search=False).eval()
            with torch.no_grad():
                inputs_of = [cell.get_submodule(f"preprocess{n}")(x) for n, x in enumerate(images(spec))]
                states = [*inputs_of, *cell(images(spec), None).chunk(3, dim=1)]
            equal = any(torch.equal(a, b) for i, a in enumerate(states) for b in states[:i])
            same.append(equal)
            assert limit.holds(arch) or equal
            assert not equal or not limit.holds(arch)
        assert any(same)

    def test_inputs_that_are_not_there_add_nothing(self, inputs: int) -> None:
        spec = spec_of(inputs, keep=1)
        cell = cell_of(spec).eval()
        last = torch.rand(1, C, *SIZE)
        some = [None] * (inputs - 1)
        zeros = [torch.zeros(1, C, *SIZE)] * (inputs - 1)
        for state, node in spec.edges:  # every edge but one dropped
            answers = {spec.edge_name(e): "none" for e in spec.edges} | {spec.edge_name((state, node)): "skip_connect"}
            weights = problem_of(spec).one_hot(Architecture.of("cells", answers))["cell"]
            with torch.no_grad():
                torch.testing.assert_close(cell.join([*some, last], weights), cell.join([*zeros, last], weights))


def test_a_cell_needs_preprocessing_for_each_input() -> None:
    with pytest.raises(AssertionError, match="3 inputs, preprocessing for 1"):
        Cell(spec_of(3), Architecture.of("cells", {}), [nn.Identity()], C, search=True)


def test_a_node_of_which_no_input_is_there_is_zero() -> None:
    """As in the first layers of a trellis, where the kept edge reads what is not there yet."""
    spec = CellSpec("cell", OPS, nodes=1, keep=1, inputs=2, stride=2)
    arch = Architecture.of("cells", {"cell/0-2": "skip_connect", "cell/1-2": "none"})
    out = cell_of(spec, arch).join([None, torch.rand(1, C, *SIZE)], None)
    assert torch.equal(out, torch.zeros(1, C, 5, 6))
