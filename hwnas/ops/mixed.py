"""Candidates of a decision, and the mixture of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.errors import unknown
from hwnas.ops import layers
from hwnas.ops.drop_path import DropPath
from hwnas.ops.registry import Op, active_tracer
from hwnas.problem import Architecture, Decision, choice

NONE = "none"
CandidateBuilder = Callable[[int, int, bool], nn.Module]
On = NDArray[np.bool_]  # which options are computed, (options,) or (decisions, options); on the host, whatever computes
_CANDIDATES: dict[str, CandidateBuilder] = {}


def candidate(name: str) -> Callable[[CandidateBuilder], CandidateBuilder]:
    """Register a builder ``(channels, stride, search) -> module`` under the name genotypes use."""

    def register(build: CandidateBuilder) -> CandidateBuilder:
        assert name not in _CANDIDATES, f"two candidates are called {name}"
        _CANDIDATES[name] = build
        return build

    return register


def candidates() -> tuple[str, ...]:
    """Return the names of all candidates."""
    return tuple(_CANDIDATES)


def build_candidate(name: str, channels: int, stride: int, search: bool) -> nn.Module:
    """Build one candidate.

    Args:
        name: As it was registered.
        channels: In and out.
        stride: 1 or 2.
        search: Whether for a supernet: BatchNorm without affine parameters, and one after each pool.

    Raises:
        HwnasError: If the name is unknown.
    """
    if name not in _CANDIDATES:
        raise unknown("candidate op", name, _CANDIDATES)
    return _CANDIDATES[name](channels, stride, search)


@cache
def has_weights(name: str, stride: int) -> bool:
    """Tell whether the deploy form of a candidate has parameters; those without compute the same at equal inputs."""
    return next(build_candidate(name, 2, stride, search=False).parameters(), None) is not None


@cache
def is_identity(name: str, stride: int) -> bool:
    """Tell whether a candidate hands on its input as it is."""
    return isinstance(build_candidate(name, 2, stride, search=False), nn.Identity)


def _pool(pool: nn.Module, channels: int, search: bool) -> nn.Module:
    # Else the output of a pool would outweigh those of the normalised convolutions (DARTS 3.1.1).
    return nn.Sequential(pool, layers.BatchNorm(channels)) if search else pool


@candidate("max_pool_3x3")
def _max_pool_3x3(channels: int, stride: int, search: bool) -> nn.Module:
    return _pool(layers.MaxPool(stride), channels, search)


@candidate("avg_pool_3x3")
def _avg_pool_3x3(channels: int, stride: int, search: bool) -> nn.Module:
    return _pool(layers.AvgPool(stride), channels, search)


@candidate("skip_connect")
def _skip_connect(channels: int, stride: int, search: bool) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return nn.Sequential(layers.ReLU(), layers.FactorizedReduce(channels, channels, affine=not search))


@candidate("sep_conv_3x3")
def _sep_conv_3x3(channels: int, stride: int, search: bool) -> nn.Module:
    return nn.Sequential(layers.ReLU(), layers.SepConv(channels, 3, stride, affine=not search))


@candidate("sep_conv_5x5")
def _sep_conv_5x5(channels: int, stride: int, search: bool) -> nn.Module:
    return nn.Sequential(layers.ReLU(), layers.SepConv(channels, 5, stride, affine=not search))


@candidate("dil_conv_3x3")
def _dil_conv_3x3(channels: int, stride: int, search: bool) -> nn.Module:
    return nn.Sequential(layers.ReLU(), layers.DilConv(channels, 3, stride, affine=not search))


@candidate("dil_conv_5x5")
def _dil_conv_5x5(channels: int, stride: int, search: bool) -> nn.Module:
    return nn.Sequential(layers.ReLU(), layers.DilConv(channels, 5, stride, affine=not search))


class _Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return layers.Resize(-(-x.shape[2] // 2), -(-x.shape[3] // 2))(x)


def _atrous(channels: int, kernel: int, stride: int, search: bool) -> nn.Module:
    # With a stride it sees as far without a rate, on a map of half the size (tensorflow/models, nas_cell.py).
    before = [layers.ReLU()] if stride == 1 else [layers.ReLU(), _Halve()]
    return nn.Sequential(*before, layers.AtrousConv(channels, channels, kernel, 3 - stride, affine=not search))


@candidate("atrous_conv_3x3")
def _atrous_conv_3x3(channels: int, stride: int, search: bool) -> nn.Module:
    return _atrous(channels, 3, stride, search)


@candidate("atrous_conv_5x5")
def _atrous_conv_5x5(channels: int, stride: int, search: bool) -> nn.Module:
    return _atrous(channels, 5, stride, search)


@candidate("conv_3x3")
def _conv_3x3(channels: int, stride: int, search: bool) -> nn.Module:
    return nn.Sequential(layers.ReLU(), layers.ConvBN(channels, channels, 3, stride, affine=not search))


@candidate("conv_1x1")
def _conv_1x1(channels: int, stride: int, search: bool) -> nn.Module:
    return nn.Sequential(layers.ReLU(), layers.ConvBN(channels, channels, 1, stride, affine=not search))


def _dilated(rate: int) -> CandidateBuilder:
    def build(channels: int, stride: int, search: bool) -> nn.Module:
        return nn.Sequential(layers.ReLU(), layers.DilConv(channels, 3, stride, rate, affine=not search))

    return build


# 2, 4 and 8 as in CAS and GAS; 3 to 36 are those of ASPP (DeepLabv3, section 3.3) at strides 32 to 8.
for _rate in (2, 3, 4, 6, 8, 9, 12, 18, 24, 36):
    candidate(f"dil_sep_conv_3x3_r{_rate}")(_dilated(_rate))


def _pooling(pooling: nn.Module, stride: int) -> nn.Module:
    before = [layers.ReLU()] if stride == 1 else [layers.ReLU(), _Halve()]
    return nn.Sequential(*before, pooling)


@candidate("image_pool")
def _image_pool(channels: int, stride: int, search: bool) -> nn.Module:
    return _pooling(layers.ImagePooling(channels, channels, affine=not search), stride)


@candidate("grid_pool_2x2")
def _grid_pool_2x2(channels: int, stride: int, search: bool) -> nn.Module:
    return _pooling(layers.GridPooling(channels, 2, affine=not search), stride)


@candidate("grid_pool_4x4")
def _grid_pool_4x4(channels: int, stride: int, search: bool) -> nn.Module:
    return _pooling(layers.GridPooling(channels, 4, affine=not search), stride)


class MixedOp(nn.Module):
    """The candidates of one decision: a mixture while it is open, the chosen one once it is answered.

    ``ops.<option>`` holds each candidate under the same name in both cases, so weights carry by name. `none` is no
    module: a dropped edge computes nothing.
    """

    def __init__(
        self,
        decision: Decision,
        arch: Architecture,
        channels: int,
        stride: int,
        search: bool,
        build: Callable[[str], nn.Module] | None = None,
    ) -> None:
        """Build all candidates of `decision`, or the one that `arch` answers.

        Args:
            decision: Its options are the candidates.
            arch: Answers it or not.
            channels: In and out.
            stride: Of each candidate, 1 or 2.
            search: Whether for a supernet.
            build: What makes the candidate of a name; None for that which is registered, see `build_candidate`.
        """
        super().__init__()
        self.decision = decision
        self.stride = stride
        answer = arch.get(decision.name)
        self.answer = answer
        options = decision.options if answer is None else (answer,)
        make = build or (lambda name: build_candidate(name, channels, stride, search))
        built = {o: make(o) for o in options if o != NONE}
        self.ops = nn.ModuleDict(built)
        # An identity is never left out, as in the public DARTS code: model.py.
        dropped = answer is not None and not isinstance(built.get(answer), nn.Identity)
        self.drop: nn.Module = DropPath() if dropped else nn.Identity()

    def forward(self, x: Tensor, weights: Tensor | None, sampled: On | None = None) -> Tensor:
        """Compute the chosen candidate, or the weighted sum of all.

        Args:
            x: (N, C, H, W).
            weights: (n_options,) in the order of the decision's options; not read once it is answered.
            sampled: (n_options,), which options are computed; None for all. The others must have a weight of 0, and get
                no gradient: memory is that of those that are computed.

        Returns:
            (N, C, ceil(H/stride), ceil(W/stride)).
        """
        if self.answer is not None:
            chosen: Tensor = self.drop(self.ops[self.answer](x))
            return chosen
        tracer = active_tracer.get()
        if tracer is not None:
            out = x
            for option, module in self.ops.items():
                with tracer.gated(choice(self.decision.name, option)):
                    out = module(x)
            return tracer.join(out)
        assert weights is not None, f"{self.decision.name} is open and was given no weights"
        # none keeps its probability mass and contributes zero (DARTS 2.1)
        on = [True] * len(weights) if sampled is None else sampled.tolist()
        pairs = [(o, w) for o, w, c in zip(self.decision.options, weights, on, strict=True) if o != NONE and c]
        if not pairs:
            return self._zero(x, weights[self.decision.options.index(NONE)])
        terms = [w * self.ops[o](x) for o, w in pairs]
        total: Tensor = terms[0]
        for t in terms[1:]:
            total = total + t
        return total

    def ends_in_conv(self) -> dict[str, bool]:
        """Return for each option, or the chosen one, whether its last op is a convolution."""
        kinds = (Op, layers.ResizedTo)
        ops_of = {o: [m for m in module.modules() if isinstance(m, kinds)] for o, module in self.ops.items()}
        ends = {o: bool(ops) and ops[-1].ends_in_conv for o, ops in ops_of.items()}
        return ends | {NONE: False} if self.answer is None and NONE in self.decision.options else ends

    def _zero(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return zeros of the shape of the result, where `none` alone was sampled."""
        return weight * 0 * x[:, :, :: self.stride, :: self.stride]
