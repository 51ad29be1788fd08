"""The dense prediction cell: branches that each pick what they read and one atrous or pooling op (Chen et al. 2018).

Searching for Efficient Multi-Scale Architectures for Dense Image Prediction, section 3; the code is tensorflow/models,
research/deeplab/core/dense_prediction_cell.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.errors import HwnasError, check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.mixed import MixedOp, On
from hwnas.ops.rectangular import AtrousSeparable, WindowPooling
from hwnas.ops.registry import active_tracer
from hwnas.problem import Answers, Architecture, Decision, Group, choice
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task, size_at
from hwnas.spaces.picture import draw_graph
from hwnas.spaces.registry import head

RATES = (1, 3, 6, 9, 12, 15, 18, 21)  # of rows and of columns, at stride 16
GRIDS = (1, 2, 4, 8)
RATES_STRIDE = 16
FEATURE = "feature"  # the option of reading the encoder
POINT = "conv_1x1"
Pair = tuple[int, int]  # of rows and of columns


@dataclass(frozen=True)
class Branch:
    """One branch of a cell.

    Attributes:
        op: What it computes, an option of the decision about it.
        input: Index of the branch that it reads; -1 for the feature of the encoder, as in the public code.
    """

    op: str
    input: int


@dataclass(frozen=True)
class DPCGenotype:
    """A dense prediction cell; prints as the JSON that DeepLab reads (``--dense_prediction_cell_json``)."""

    branches: tuple[Branch, ...]

    def __str__(self) -> str:
        return json.dumps([_written(b) for b in self.branches])

    @classmethod
    def parse(cls, text: str) -> DPCGenotype:
        """Read the JSON of DeepLab.

        Raises:
            HwnasError: If it is no cell.
        """
        try:
            branches = tuple(Branch(_op(b), int(b["input"])) for b in json.loads(text))
            assert branches and all(-1 <= b.input < i for i, b in enumerate(branches))
        except (AssertionError, KeyError, TypeError, ValueError) as e:
            raise HwnasError(
                'a dense prediction cell looks like [{"op": "conv", "kernel": 3, "rate": [1, 6], "input": -1}, ...], '
                f"where a branch reads an earlier one or -1; got {text.strip()[:80]!r}"
            ) from e
        return cls(branches)


def atrous(rate: Pair) -> str:
    """Return the option of a 3x3 atrous separable convolution of these rates."""
    return f"atrous_{rate[0]}x{rate[1]}"


def pool(grid: Pair) -> str:
    """Return the option of pooling with windows of the map's height and width over these."""
    return f"pool_{grid[0]}x{grid[1]}"


def _pair(op: str) -> tuple[str, Pair]:
    kind, _, numbers = op.partition("_")
    rows, _, columns = numbers.partition("x")
    return kind, (int(rows), int(columns))


def _written(branch: Branch) -> dict[str, Any]:
    """Return a branch as the public code has it."""
    if branch.op == POINT:
        return {"kernel": 1, "op": "conv", "input": branch.input}
    kind, pair = _pair(branch.op)
    if kind == "pool":
        return {"grid_size": [*pair], "op": "pyramid_pooling", "input": branch.input}
    return {"kernel": 3, "rate": [*pair], "op": "conv", "input": branch.input}


def _op(written: Mapping[str, Any]) -> str:
    """Return the option that a branch of the public code is."""
    if written["op"] == "pyramid_pooling":
        rows, columns = written["grid_size"]
        return pool((int(rows), int(columns)))
    assert written["op"] == "conv" and written["kernel"] in (1, [1, 1], 3, [3, 3])
    if written["kernel"] in (1, [1, 1]):
        return POINT
    rows, columns = written["rate"]
    return atrous((int(rows), int(columns)))


@head("dpc")
@dataclass(frozen=True)
class DPCHead(Head):
    """A dense prediction cell on the last feature, a 1x1 projection of all of its branches, a classifier, upsampled.

    The feature is read as it is. An op that reads it has its channels, one that reads a branch has those of the cell,
    so what an op costs depends on the input too. Where channels or stride of the feature follow from decisions, an
    adapter brings them to one form.

    Attributes:
        channels: Of each branch and of the projection.
        branches: Number of branches.
        rates: Of the atrous convolutions, in pixels of a map of stride 16; at other strides they see as far, rounded
            up. There is an op for each pair.
        grids: Shares of the map that pooling windows are. There is an op for each pair; on maps of fewer pixels than a
            grid some are the same.
        dropout: Share of the values of all branches that a training leaves out.
        adapter: Channels that a 1x1 convolution brings the feature to; 0 for none.
        stride: That the adapter resizes to, in pixels of the image.

    Raises:
        HwnasError: If a setting is out of range.
    """

    channels: int = 256
    branches: int = 5
    rates: tuple[int, ...] = RATES
    grids: tuple[int, ...] = GRIDS
    dropout: float = 0.1
    adapter: int = 0
    stride: int = 16
    task: ClassVar[Task] = "segmentation"

    def __post_init__(self) -> None:
        for name in ("rates", "grids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_ranges(
            "a head",
            *not_below(self, ("channels", "branches", "stride"), 1),
            *not_below(self, ("adapter",), 0),
            ("a dropout from 0 to below 1", self.dropout, 0 <= self.dropout < 1),
            *(
                (f"{n} of 1 or more, ascending", getattr(self, n), _ascends(getattr(self, n)))
                for n in ("rates", "grids")
            ),
        )

    @property
    def needs_one_form(self) -> bool:
        """Whether the feature is read without an adapter."""
        return not self.adapter

    @cached_property
    def ops(self) -> tuple[str, ...]:
        """The options of a branch, in the order of the paper's list."""
        convs = (atrous(rate) for rate in product(self.rates, self.rates))
        return (POINT, *convs, *(pool(grid) for grid in product(self.grids, self.grids)))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What each branch but the first reads, one group each because they have different options; and all ops."""
        inputs = (Decision(input_name(i), inputs_of(i)) for i in range(1, self.branches))
        ops = tuple(Decision(op_name(i), self.ops) for i in range(self.branches))
        return (*(Group(f"dpc-input-{i}", (d,)) for i, d in enumerate(inputs, 1)), Group("dpc-ops", ops))

    def twins(self) -> tuple[Answers, ...]:
        """Return where two branches pool one map with the same windows: an engine computes the means once."""
        return tuple(self._twins())

    def _twins(self) -> Iterator[Answers]:
        for i, j in combinations(range(self.branches), 2):
            for source, grid in product(inputs_of(i), product(self.grids, self.grids)):
                inputs = [(input_name(b), source) for b in (i, j) if b]
                yield (*inputs, *((op_name(b), pool(grid)) for b in (i, j)))

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _DPCNet(self, features, classes, labels, arch, form == "search")

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)

    def genotype(self, arch: Architecture) -> DPCGenotype:
        """Return the branches."""
        inputs = (FEATURE, *(arch.get(input_name(i)) for i in range(1, self.branches)))
        return DPCGenotype(
            tuple(
                Branch(str(arch.get(op_name(i))), -1 if source == FEATURE else int(str(source)))
                for i, source in enumerate(inputs)
            )
        )

    def answers(self, genotype: DPCGenotype) -> dict[str, str]:
        """Return a cell as answers to these decisions.

        Raises:
            HwnasError: If it has another number of branches or other ops.
        """
        found, own = genotype.branches, set(self.ops)
        if len(found) != self.branches or not {b.op for b in found} <= own:
            raise HwnasError(
                f"cells of this space have {self.branches} branches of {len(own)} ops; got "
                f"{len(found)} branches with {', '.join(sorted({b.op for b in found} - own)) or 'these ops'}"
            )
        out = {op_name(i): b.op for i, b in enumerate(found)}
        return out | {input_name(i): FEATURE if b.input < 0 else str(b.input) for i, b in enumerate(found) if i}

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing for Graphviz: an arrow into each branch, with its op, and from each to the result."""
        lines = ['  subgraph "cluster_dpc" {', '    label="dpc";']
        for i, b in enumerate(self.genotype(arch).branches):
            lines.append(f'    "dpc {FEATURE if b.input < 0 else b.input}" -> "dpc {i}" [label="{b.op}"];')
            lines.append(f'    "dpc {i}" -> "dpc result";')
        return [*lines, "  }"]

    @property
    def drawings(self) -> int:
        """One."""
        return 1

    def draw(self, figure: Any, arch: Architecture) -> None:
        """Draw the branches in columns by how many ops lie before them, with arrows from what each reads."""
        branches = self.genotype(arch).branches
        labels = [FEATURE, *(f"{i}: {b.op}" for i, b in enumerate(branches))]
        draw_graph(
            figure.subplots(), "dense prediction cell", labels, {i: [b.input + 1] for i, b in enumerate(branches, 1)}
        )


def _ascends(numbers: tuple[int, ...]) -> bool:
    return bool(numbers) and all(a < b for a, b in zip((0, *numbers), numbers, strict=False))


def input_name(branch: int) -> str:
    """Return the decision about what a branch reads."""
    return f"dpc/{branch}/input"


def op_name(branch: int) -> str:
    """Return the decision about the op of a branch."""
    return f"dpc/{branch}/op"


def inputs_of(branch: int) -> tuple[str, ...]:
    """Return what a branch may read: the feature, and each earlier branch by its index."""
    return (FEATURE, *map(str, range(branch)))


def _built(op: str, c_in: int, c_out: int, stride: int, affine: bool) -> nn.Module:
    """Return an op on a map of a stride."""
    if op == POINT:
        return layers.ConvBN(c_in, c_out, relu=True, affine=affine)
    kind, (rows, columns) = _pair(op)
    if kind == "pool":
        return WindowPooling(layers.ConvBN(c_in, c_out, relu=True, affine=affine), rows, columns)
    height, width = ((rate * RATES_STRIDE + stride - 1) // stride for rate in (rows, columns))
    return AtrousSeparable(c_in, c_out, height, width, affine)


class _Branch(nn.Module):
    """One branch: ops that read the feature and, because that has other channels, ops that read branches.

    In a supernet it is the mixture over all pairs of what it reads and what it computes, each weighted by the product
    of both.
    """

    def __init__(self, own: DPCHead, index: int, arch: Architecture, c_in: int, stride: int, search: bool) -> None:
        super().__init__()
        self.inputs = inputs_of(index)
        self.name = input_name(index)
        self.answer = arch.get(self.name) if index else FEATURE
        decision = own.groups[-1].decisions[index]
        c = own.channels

        def mixed(channels: int) -> MixedOp:
            return MixedOp(decision, arch, c, 1, search, lambda op: _built(op, channels, c, stride, affine=not search))

        self.same = c_in == c  # then the ops are the same, whatever is read
        self.of_feature = mixed(c_in) if self.answer in (None, FEATURE) and not self.same else None
        self.of_branch = mixed(c) if self.answer != FEATURE or self.same else None

    def forward(
        self,
        states: Sequence[Tensor],
        inputs: Tensor | None,
        ops: Tensor | None,
        on_inputs: On | None,
        on_ops: On | None,
    ) -> Tensor:
        """Compute it.

        Args:
            states: The feature and all earlier branches, (N, C, H, W).
            inputs: (n_inputs,), the weights of what it may read; None if that is answered.
            ops: (n_ops,), the weights of its ops; None if they are answered.
            on_inputs: (n_inputs,), which are read; None for all.
            on_ops: (n_ops,), which are computed; None for all.
        """
        if self.answer is not None:
            i = self.inputs.index(self.answer)
            return self._read(i, states[i], ops, on_ops)
        tracer = active_tracer.get()
        if tracer is not None:
            if self.same:
                return self._read(0, tracer.join(states[0]), ops, on_ops)
            with tracer.gated(choice(self.name, FEATURE)):
                self._read(0, tracer.join(states[0]), ops, on_ops)
            with tracer.gated(choice(self.name, *self.inputs[1:])):
                return tracer.join(self._read(1, tracer.join(states[1]), ops, on_ops))
        assert inputs is not None, f"{self.name} is open and was given no weights"
        on = [True] * len(self.inputs) if on_inputs is None else on_inputs.tolist()
        terms = [inputs[i] * self._read(i, states[i], ops, on_ops) for i in range(len(self.inputs)) if on[i]]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    def _read(self, i: int, x: Tensor, ops: Tensor | None, on: On | None) -> Tensor:
        mixed = self.of_branch if i or self.same else self.of_feature
        assert mixed is not None, "an input that is read has ops"
        out: Tensor = mixed(x, ops, on)
        return out


class _Dropout(nn.Module):
    """Dropout that is no op: in training only, neither traced, priced nor exported."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        if not torch.compiler.is_compiling() and active_tracer.get() is not None:
            return x
        return F.dropout(x, self.rate)


class _DPCNet(HeadNet):
    def __init__(
        self,
        own: DPCHead,
        features: Sequence[Feature],
        classes: int,
        labels: bool,
        arch: Architecture,
        search: bool,
    ) -> None:
        super().__init__(features, reads=(-1,))
        last, c = features[-1], own.channels
        self.stride = own.stride if own.adapter else last.stride
        self.adapter = layers.ConvBN(last.channels, own.adapter, relu=True) if own.adapter else None
        c_in = own.adapter or last.channels
        self.branches = nn.ModuleList(_Branch(own, i, arch, c_in, self.stride, search) for i in range(own.branches))
        self.input_groups = [g.name for g in own.groups[:-1]]
        self.op_group = own.groups[-1].name
        self.concat = layers.Concat()
        self.drop = _Dropout(0.0 if search else own.dropout)
        self.project = layers.ConvBN(own.branches * c, c, relu=True)
        self.classifier = layers.Classifier(c, classes)
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Return the feature as it is, or as the adapter brings it to the form of the cell."""
        if self.adapter is None:
            return x
        return layers.resized(self.adapter(x), size_at(image.shape, self.stride))

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute the cell, and scores or labels at full size."""
        states = [necks[0]]
        for i, branch in enumerate(self.branches):
            of_input = [None if m is None or not i else m[self.input_groups[i - 1]][0] for m in (probs, sampled)]
            of_op = [None if m is None else m[self.op_group][i] for m in (probs, sampled)]
            states.append(branch(states, of_input[0], of_op[0], of_input[1], of_op[1]))
        joined = self.project(self.drop(self.concat(*states[1:])))
        out: Tensor = self.argmax(layers.resize(self.classifier(joined), image))
        return out
