"""Fused cells: the same mathematics as candidates computed one by one, in both implementations of the primitives."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hwnas.ops import mixed
from hwnas.ops.fused import frozen_statistics, native
from hwnas.ops.fused.cell import primitives
from hwnas.ops.fused.primitives import Primitives
from hwnas.ops.fused.primitives_native import Native
from hwnas.ops.fused.primitives_torch import Torch
from hwnas.ops.layers import ConvBN
from hwnas.search.functional import Functional
from hwnas.search.logits import Alphas
from hwnas.spaces import Scale, Space, darts_space
from hwnas.spaces.cell import Evaluation, set_evaluation

pytestmark = pytest.mark.usefixtures("one_thread")
needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")

# Sizes that are not multiples of anything, strides, few and many edges, channels that fill no vector.
maps = st.tuples(
    st.integers(1, 3), st.integers(1, 40), st.integers(1, 11), st.sampled_from([1, 3, 4, 8, 12, 16, 20, 24, 32, 40])
)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agree(compute: Callable[[Primitives, Callable[[Tensor], Tensor]], list[Tensor]], tolerance: float = 2e-5) -> None:
    """Hold C++ in float32 against torch in float64."""
    got = compute(Native(), lambda t: t.clone())
    exact = compute(Torch(), lambda t: t.double())
    for a, b in zip(got, exact, strict=True):
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * scale)


@needs_compiler
class TestPrimitives:
    @settings(deadline=None, max_examples=60)
    @given(maps, st.integers(1, 3), st.integers(1, 6), st.sampled_from([3, 5]), st.integers(1, 2), st.integers(1, 2))
    def test_depthwise(
        self, size: tuple[int, int, int, int], groups: int, edges: int, kernel: int, dilation: int, stride: int
    ) -> None:
        n, h, w, c = size
        x, weight = random(0, groups, n, h, w, c), random(1, groups, edges, c, 1, kernel, kernel)
        g = random(2, groups, edges, n, -(-h // stride), -(-w // stride), c)

        def compute(ops: Primitives, to: Callable[[Tensor], Tensor]) -> list[Tensor]:
            args = (to(x), to(weight), dilation, stride)
            into = to(x)  # it is added to
            ops.depthwise_data(*args, to(g), into)
            return [ops.depthwise(*args), into, ops.depthwise_weight(*args, to(g))]

        agree(compute, 1e-4)

    @settings(deadline=None, max_examples=40)
    @given(maps, st.integers(1, 2))
    def test_pools(self, size: tuple[int, int, int, int], stride: int) -> None:
        n, h, w, c = size
        x, g = random(0, *size), random(1, n, -(-h // stride), -(-w // stride), c)

        def compute(ops: Primitives, to: Callable[[Tensor], Tensor]) -> list[Tensor]:
            most, mean, d_most, d_mean = to(g), to(g), to(x), to(x)
            which = ops.max_pool(to(x), stride, most)
            ops.avg_pool(to(x), stride, mean)
            ops.max_pool_data(to(g), which, stride, d_most)
            ops.avg_pool_data(to(g), stride, d_mean)
            return [most, mean, d_most, d_mean]

        agree(compute)

    def test_the_first_of_equal_maxima_gets_the_gradient(self) -> None:
        for ops in (Native(), Torch()):
            x, out, dx = torch.zeros(1, 4, 4, 16), torch.empty(1, 2, 2, 16), torch.zeros(1, 4, 4, 16)
            which = ops.max_pool(x, 2, out)
            ops.max_pool_data(torch.ones_like(out), which, 2, dx)
            want = torch.zeros(4, 4)
            want[0, 0] = want[0, 1] = want[1, 0] = want[1, 1] = 1
            assert torch.equal(dx[0, :, :, 3], want)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 3), st.integers(32, 3000), st.sampled_from([1, 4, 8, 20, 32]), st.floats(-10, 10))
    def test_batch_norm(self, groups: int, rows: int, c: int, offset: float) -> None:
        x, g = random(0, groups, rows, c) + offset, random(1, groups, rows, c)

        def compute(ops: Primitives, to: Callable[[Tensor], Tensor]) -> list[Tensor]:
            y, dx = to(x), to(g)
            mean, var = ops.batch_norm(y)
            ops.batch_norm_data(y, var, dx)
            return [mean, var, y, dx]

        agree(compute, 1e-4)

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 5), st.booleans(), st.integers(8, 2500), st.sampled_from([4, 8, 12, 16, 32]))
    def test_normed_linear(self, edges: int, shared: bool, rows: int, c: int) -> None:
        z = random(0, 1 if shared else edges, rows, c).abs()
        w, p, g = random(1, edges, c // 2, c), torch.rand(edges), random(2, edges, rows, c)

        def compute(ops: Primitives, to: Callable[[Tensor], Tensor]) -> list[Tensor]:
            out, bias, columns = to(g), to(random(3, edges, c)), slice(c // 2, c)
            args = (to(z), to(w), to(p))
            kept = ops.normed_linear(*args, out[..., columns], bias[:, columns])
            dp, dw, dz = ops.normed_linear_data(*args, kept, to(g)[..., columns], to(g).sum(1)[:, columns], True)
            assert dw is not None
            return [out, bias, dp / rows**0.5, dw / rows**0.5, dz, *kept]

        agree(compute, 1e-3)

    def test_normed_linear_is_a_linear_map_and_a_batch_norm(self) -> None:
        z, w, p = random(0, 2, 50, 6).double(), random(1, 2, 6, 6).double(), torch.tensor([0.3, 0.7]).double()
        leaves = [t.requires_grad_() for t in (z, w, p)]
        y = torch.stack(
            [nn.functional.batch_norm(a @ b.T, None, None, training=True) for a, b in zip(z, w, strict=True)]
        )
        want = p[:, None, None] * y
        g = random(2, *want.shape).double()
        dz, dw, dp = torch.autograd.grad(want, leaves, g)
        with torch.no_grad():
            out, bias = torch.zeros_like(want), torch.zeros(2, 6).double()
            kept = Torch().normed_linear(z, w, p, out, bias)
            torch.testing.assert_close(out + bias[:, None], want)
            got = Torch().normed_linear_data(z, w, p, kept, g, g.sum(1), True)
        for a, b in zip(got, (dp, dw, dz), strict=True):
            torch.testing.assert_close(a, b)

    @settings(deadline=None, max_examples=30)
    @given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 2500), st.sampled_from([4, 8, 12, 16, 20]))
    def test_combine_multiply_and_cross(self, edges: int, terms: int, rows: int, c: int) -> None:
        x, weights, bias = random(0, terms, rows, c), random(1, edges, terms), random(2, edges, c)
        g, square = random(3, edges, rows, c), random(4, edges, c, 8)

        def compute(ops: Primitives, to: Callable[[Tensor], Tensor]) -> list[Tensor]:
            into = to(g)
            ops.combine(to(weights), to(x), to(bias), into)
            dx, dweights, dbias = ops.combine_data(to(weights), to(x), to(g))
            product = ops.multiply(to(g), to(square))
            return [into, dx, dweights / rows, dbias / rows, product, ops.cross(to(g), to(g)) / rows]

        agree(compute, 1e-4)

    def test_not_a_number_is_not_hidden(self) -> None:
        x = torch.zeros(1, 1, 6, 6, 16)
        x[0, 0, 3, 3, 5] = torch.nan
        ops, weight = Native(), torch.ones(1, 1, 16, 1, 3, 3)
        assert ops.depthwise(x, weight, 1, 1)[0, 0, 0, 2, 2, 5].isnan()
        out = torch.empty(1, 6, 6, 16)
        ops.max_pool(x[0], 1, out)
        assert out[0, 2, 2, 5].isnan()
        assert not out[..., 4].isnan().any()

    def test_threads_change_no_bit(self) -> None:
        x, weight = random(0, 2, 3, 40, 24, 16), random(1, 2, 3, 16, 1, 5, 5)
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = Native().depthwise(x, weight, 2, 1)
            rows = y.reshape(6, -1, 16)
            normed = rows.clone()
            stats = Native().batch_norm(normed)
            results.append(
                [y, Native().depthwise_weight(x, weight, 2, 1, y), Native().cross(rows, rows), normed, *stats]
            )
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


SPACES = {
    "cifar": darts_space(Scale(4, 3, (16, 16)), 10, stem="cifar", head="classification"),
    "odd": darts_space(Scale(4, 3, (45, 61)), 5, head_channels=8),
    "three-nodes": darts_space(
        Scale(6, 4, (40, 56)), 5, nodes=3, ops=("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")
    ),
    "one-node": darts_space(Scale(4, 3, (32, 32)), 5, nodes=1, keep=1, ops=("none", "avg_pool_3x3", "dil_conv_3x3")),
    "convolutions": darts_space(
        Scale(4, 3, (48, 80)),
        5,
        nodes=2,
        ops=("none", "max_pool_3x3", "conv_1x1", "conv_3x3", "dil_sep_conv_3x3_r8", "image_pool", "grid_pool_2x2"),
    ),
    "no-pools": darts_space(Scale(4, 3, (32, 32)), 5, nodes=2, ops=("none", "sep_conv_5x5")),
}


@pytest.fixture
def unfused() -> Iterator[str]:
    """A candidate that has no fused form."""
    name = "full_conv_3x3"
    mixed.candidate(name)(lambda c, stride, search: ConvBN(c, c, 3, stride, affine=not search))
    yield name
    del mixed._CANDIDATES[name]


def supernet(space: Space, evaluation: Evaluation, double: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = space.build(form="search").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_evaluation(net, evaluation)
    return net.double() if double else net


def gradients(space: Space, net: nn.Module, double: bool = True) -> list[Tensor]:
    """Return scores, gradients of alphas and of weights, and buffers after a pass."""
    alphas = Alphas(space.groups, 0)
    probs = {k: torch.softmax(500 * v, 1) for k, v in alphas().items()}
    x = random(1, 2, 3, *space.scale.size)
    if double:
        x, probs = x.double(), {k: p.double() for k, p in probs.items()}
    scores = net(x, probs)
    loss = (scores * random(2, *scores.shape).to(scores)).sum()
    return [scores.detach(), *torch.autograd.grad(loss, [*alphas.parameters(), *net.parameters()]), *net.buffers()]


def close(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("evaluation", ["fast", "lean"])
@pytest.mark.parametrize("name", SPACES)
def test_fused_cells_are_the_same_function(name: str, evaluation: Evaluation) -> None:
    space = SPACES[name]
    close(gradients(space, supernet(space, evaluation)), gradients(space, supernet(space, "plain")))


@pytest.mark.parametrize("evaluation", ["fast", "lean"])
def test_a_candidate_without_a_fused_form_is_computed_as_it_is(unfused: str, evaluation: Evaluation) -> None:
    space = darts_space(Scale(4, 3, (32, 32)), 5, nodes=2, ops=("none", "max_pool_3x3", unfused, "sep_conv_3x3"))
    close(gradients(space, supernet(space, evaluation)), gradients(space, supernet(space, "plain")))


@needs_compiler
def test_in_float32_it_is_no_further_from_the_truth_than_the_plain_form() -> None:
    """Kinks of ReLU and max pooling make gradients in float32 differ by far more than rounding, in any form."""
    space = SPACES["cifar"]
    truth, plain, fast = (
        gradients(space, supernet(space, how, double), double)  # type: ignore[arg-type]
        for how, double in (("plain", True), ("plain", False), ("fast", False))
    )
    assert isinstance(primitives(fast[0]), Native)
    torch.testing.assert_close(fast[0], truth[0].float(), rtol=0, atol=1e-4)
    far = [
        sum(float((a.double() - b).norm() / b.norm()) for a, b in zip(g[1:3], truth[1:3], strict=True))
        for g in (fast, plain)
    ]
    assert far[0] < 3 * far[1] + 1e-5


class TestWeights:
    @pytest.mark.parametrize("evaluation", ["fast", "lean"])
    def test_those_that_were_lent_are_used_on_the_way_back_too(self, unfused: str, evaluation: Evaluation) -> None:
        space = darts_space(Scale(4, 3, (32, 32)), 5, nodes=2, ops=("none", "skip_connect", unfused, "sep_conv_3x3"))
        results = []
        for how in ("plain", evaluation):
            net = supernet(space, how)  # type: ignore[arg-type]
            other = {k: (1.5 * p.detach()).requires_grad_() for k, p in net.named_parameters()}
            probs = {g.name: torch.full(g.shape, 0.2).double() for g in space.groups}
            loss = Functional(net)(other, random(1, 2, 3, *space.scale.size).double(), probs).square().sum()
            results.append(list(torch.autograd.grad(loss, list(other.values()))))
        close(results[1], results[0])

    def test_those_that_are_lent_are_used_and_get_the_gradient(self) -> None:
        space = SPACES["three-nodes"]
        results = []
        for how in ("plain", "fast"):
            net = supernet(space, how)  # type: ignore[arg-type]
            other = {k: (1.5 * p.detach()).requires_grad_() for k, p in net.named_parameters()}
            probs = {g.name: torch.full(g.shape, 0.2).double() for g in space.groups}
            loss = Functional(net)(other, random(1, 2, 3, *space.scale.size).double(), probs).square().sum()
            results.append([loss.detach(), *torch.autograd.grad(loss, list(other.values()))])
            assert all(p.grad is None for p in net.parameters())
        close(results[1], results[0])

    def test_none_are_computed_where_none_are_wanted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        space = SPACES["odd"]
        net = supernet(space, "fast").requires_grad_(False)
        for ops in (Torch, Native):
            monkeypatch.setattr(ops, "depthwise_weight", lambda *a: pytest.fail("a gradient nobody asked for"))
        alphas = Alphas(space.groups, 0)
        probs = {k: torch.softmax(v, 1).double() for k, v in alphas().items()}
        loss = net(random(1, 2, 3, *space.scale.size).double(), probs).sum()
        assert all(bool(g.abs().sum() > 0) for g in torch.autograd.grad(loss, list(alphas.parameters())))


class TestRunningStatistics:
    def test_follow_after_a_copy_and_after_loading(self) -> None:
        space = SPACES["three-nodes"]
        fast, plain = supernet(space, "fast"), supernet(space, "plain")
        nets = [fast, plain]
        for _ in range(2):
            for net in nets:
                gradients(space, net)
        copied = copy.deepcopy(fast)
        loaded = supernet(space, "fast")
        loaded.load_state_dict(fast.state_dict())
        moved = copy.deepcopy(fast).float().double()
        want = gradients(space, plain)
        before = {k: v.clone() for k, v in fast.state_dict().items()}
        for net in (copied, loaded):
            close(gradients(space, net), want)
        gradients(space, moved)
        for (name, a), b in zip(moved.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)
        assert all(torch.equal(v, before[k]) for k, v in fast.state_dict().items())  # a copy shares nothing

    def test_stay_where_they_are_told_to(self) -> None:
        space = SPACES["one-node"]
        net = supernet(space, "fast")
        before = [b.clone() for cell in net.cells for b in cell.edges.buffers()]  # type: ignore[union-attr, operator]
        with frozen_statistics():
            gradients(space, net)
        assert all(
            torch.equal(a, b)
            for a, b in zip(before, (b for cell in net.cells for b in cell.edges.buffers()), strict=True)
        )  # type: ignore[union-attr, operator]


def saved_bytes(space: Space, evaluation: Evaluation) -> int:
    """Return what a forward pass keeps for its backward pass, storages counted once."""
    net = supernet(space, evaluation, double=False)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    probs = {g.name: torch.full(g.shape, 0.125, requires_grad=True) for g in space.groups}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        scores = net(random(1, 2, 3, *space.scale.size), probs)
    assert scores.requires_grad
    return sum(kept.values())


def test_memory_falls_from_form_to_form() -> None:
    space = darts_space(Scale(8, 4, (32, 32)), 10, stem="cifar", head="classification")
    plain, fast, lean = (saved_bytes(space, how) for how in ("plain", "fast", "lean"))  # type: ignore[arg-type]
    assert fast < 0.6 * plain
    assert lean < 0.3 * fast


def test_there_is_no_second_derivative_and_it_says_so() -> None:
    space = SPACES["one-node"]
    net = supernet(space, "fast")
    probs = {g.name: torch.full(g.shape, 0.3, requires_grad=True) for g in space.groups}
    loss = net(random(1, 2, 3, *space.scale.size).double(), {k: p.double() for k, p in probs.items()}).sum()
    grads = torch.autograd.grad(loss, list(probs.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grads[0].sum().backward()


class TestCompiler:
    def run(self, code: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    WHICH = "import torch; from hwnas.ops.fused.cell import primitives; print(type(primitives(torch.ones(1))).__name__)"

    @needs_compiler
    def test_is_run_once_and_its_work_kept(self, tmp_path: Path) -> None:
        for _ in range(2):
            assert self.run(self.WHICH, XDG_CACHE_HOME=str(tmp_path)) == "Native"
            (made,) = (tmp_path / "hwnas").iterdir()
            stamp = made.stat().st_mtime_ns
        assert made.stat().st_mtime_ns == stamp

    def test_without_one_torch_computes(self, tmp_path: Path) -> None:
        assert self.run(self.WHICH, XDG_CACHE_HOME=str(tmp_path), CXX="none") == "Torch"
        assert not (tmp_path / "hwnas").exists()

    def test_one_that_fails_is_said_and_torch_computes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = tmp_path / "cc"
        fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit 0\necho no such flag >&2; exit 1\n')
        fake.chmod(0o755)
        monkeypatch.setenv("CXX", str(fake))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        native._kept.cache_clear()
        try:
            assert native.library() is None
            said = native._kept().note
        finally:
            native._kept.cache_clear()
        assert re.search(r"could not compile .*supernet\.cpp: no such flag; repair it.*; torch alone", said)
        assert not (tmp_path / "cache").exists()
