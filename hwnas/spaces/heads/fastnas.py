"""The decoder that Fast NAS searches, as networks that were found: blocks that join two maps each by one shared cell.

Nekrasov, Chen, Shen, Reid, Fast Neural Architecture Search of Compact Semantic Segmentation Models via Auxiliary Cells
(CVPR 2019); the code is DrSleep/nas-segm-pytorch, src/nn/micro_decoders.py and layer_factory.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from hwnas.errors import check_ranges, not_below
from hwnas.ops import layers
from hwnas.ops.general import Conv
from hwnas.problem import Architecture
from hwnas.spaces.heads.auxiliary import AuxiliarySegmentation
from hwnas.spaces.parts import Feature, Form, Head, HeadNet, Probs, Sampled, Task
from hwnas.spaces.picture import draw_graph
from hwnas.spaces.registry import head

# In the order of the public code, rl/genotypes.py; its last one, none, is in none of the published networks.
OPS = (
    "conv1x1",
    "conv3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "global_average_pool",
    "conv3x3_dil3",
    "conv3x3_dil12",
    "sep_conv_3x3_dil3",
    "sep_conv_5x5_dil6",
    "skip_connect",
)
INPUTS = 4  # features that the first pool has
CELL_STATES = 3  # that a layer of the cell adds: two ops and their sum

Step = tuple[int, int, int, int]  # two states that are read, two ops
Pair = tuple[int, int]

PUBLISHED: tuple[tuple[int, tuple[Step, ...], tuple[Pair, ...]], ...] = (  # first op, steps, blocks
    (8, ((0, 0, 5, 2), (0, 2, 8, 8), (0, 5, 1, 4)), ((3, 3), (3, 2), (3, 0))),
    (2, ((1, 0, 3, 6), (0, 1, 2, 8), (2, 0, 6, 1)), ((2, 3), (3, 1), (4, 4))),
    (5, ((0, 0, 4, 1), (3, 2, 0, 1), (5, 6, 5, 0)), ((1, 3), (4, 3), (2, 2))),
)


@dataclass(frozen=True)
class Decoder:
    """A decoder; prints as the list of the public code."""

    first: int
    steps: tuple[Step, ...]
    blocks: tuple[Pair, ...]

    def __str__(self) -> str:
        return str([[self.first, *map(list, self.steps)], [*map(list, self.blocks)]])


@head("fastnas")
@dataclass(frozen=True)
class FastNASHead(Head):
    """Blocks that each take two of the last four features and of the blocks before, and a classifier on what is left.

    The features are brought to one width. A block passes each of its inputs through a cell of its own weights, then
    through a 1x1 convolution, resizes the coarser one and adds them. Blocks that no other reads are concatenated.

    In a cell an op is computed on the input; each step adds what two ops make of two states. States are the input, the
    first op, and of each step both ops and their sum. Sums that no step reads, and the first op if none does, are the
    result.

    Nothing is decided here: which sizes there are would follow from decisions.

    Attributes:
        channels: Of all maps.
        first: Index of the first op in `OPS`.
        steps: Of the cell, each two states and two ops.
        blocks: Each two indices into features, fine to coarse, and earlier blocks.
        repeats: How often a separable convolution is computed in a row.

    Raises:
        HwnasError: If a setting is out of range, or something is read that there is not.
    """

    channels: int = 64
    first: int = PUBLISHED[0][0]
    steps: tuple[Step, ...] = PUBLISHED[0][1]
    blocks: tuple[Pair, ...] = PUBLISHED[0][2]
    repeats: int = 2
    task: ClassVar[Task] = "segmentation"
    least_features: ClassVar[int] = INPUTS

    def __post_init__(self) -> None:
        for name in ("steps", "blocks"):
            object.__setattr__(self, name, tuple(tuple(x) for x in getattr(self, name)))
        ops = (self.first, *(o for _, _, *two in self.steps for o in two))
        states = all(0 <= s < 2 + CELL_STATES * i for i, step in enumerate(self.steps) for s in step[:2])
        inputs = all(0 <= s < INPUTS + i for i, block in enumerate(self.blocks) for s in block)
        check_ranges(
            "a head",
            *not_below(self, ("channels", "repeats"), 1),
            (f"ops from 0 to {len(OPS) - 1}", ops, all(0 <= o < len(OPS) for o in ops)),
            ("steps that read earlier states", self.steps, len(self.steps) > 0 and states),
            ("blocks that read features or earlier blocks", self.blocks, len(self.blocks) > 0 and inputs),
        )

    @property
    def loose_states(self) -> tuple[int, ...]:
        """The states of a cell that are its result."""
        read = {s for step in self.steps for s in step[:2]}
        sums = [1 + CELL_STATES * (i + 1) for i in range(len(self.steps))]
        return tuple(s for s in (1, *sums) if s not in read)

    @property
    def loose_blocks(self) -> tuple[int, ...]:
        """The blocks that no other reads."""
        read = {s - INPUTS for block in self.blocks for s in block}
        return tuple(i for i in range(len(self.blocks)) if i not in read)

    def build(self, features: Sequence[Feature], classes: int, labels: bool, arch: Architecture, form: Form) -> HeadNet:
        """Build it; see `Head.build`."""
        return _FastNASNet(self, features, classes, labels)

    def build_auxiliary(self, feature: Feature, size: tuple[int, int], classes: int) -> nn.Module:
        """Build a small FCN head."""
        return AuxiliarySegmentation(feature, self.channels, classes)

    def genotype(self, arch: Architecture) -> Decoder:
        """Return the list of the public code."""
        return Decoder(self.first, self.steps, self.blocks)

    def dot(self, arch: Architecture) -> list[str]:
        """Return a drawing for Graphviz: the cell, and the blocks."""
        lines = []
        for name, (labels, reads) in {"cell": self._cell(), "blocks": self._blocks()}.items():
            lines += [f'  subgraph "cluster_{name}" {{', f'    label="{name}";']
            lines += [f'    "{name} {labels[j]}" -> "{name} {labels[i]}";' for i, of in reads.items() for j in of]
            lines.append("  }")
        return lines

    @property
    def drawings(self) -> int:
        """Cell and blocks."""
        return 2

    def draw(self, figure: Any, arch: Architecture) -> None:
        """Draw both."""
        above, below = figure.subplots(2)
        draw_graph(above, "cell", *self._cell())
        draw_graph(below, "blocks", *self._blocks())

    def _cell(self) -> tuple[list[str], dict[int, Sequence[int]]]:
        """Return labels of the states, and of each which it reads."""
        labels, reads = ["input", f"1: {OPS[self.first]}"], dict[int, Sequence[int]]({1: (0,)})
        for *states, one, other in self.steps:
            n = len(labels)
            labels += [f"{n}: {OPS[one]}", f"{n + 1}: {OPS[other]}", f"{n + 2}: sum"]
            reads |= {n: (states[0],), n + 1: (states[1],), n + 2: (n, n + 1)}
        return [*labels, "result"], reads | {len(labels): self.loose_states}

    def _blocks(self) -> tuple[list[str], dict[int, Sequence[int]]]:
        labels = [f"feature {i}" for i in range(INPUTS)] + [f"block {i}" for i in range(len(self.blocks))]
        reads = {INPUTS + i: block for i, block in enumerate(self.blocks)}
        loose = tuple(INPUTS + i for i in self.loose_blocks)
        return [*labels, "result"], {**reads, len(labels): loose}


def _op(index: int, c: int, repeats: int) -> nn.Module:
    name = OPS[index]
    if name == "skip_connect":
        return nn.Identity()
    if name == "global_average_pool":
        return layers.ImagePooling(c, c)
    head, _, rate = name.partition("_dil")
    dilation, kernel = int(rate or 1), int(head[-1])
    if name.startswith("sep_conv"):
        one = [(layers.DilConv(c, kernel, 1, dilation), layers.ReLU()) for _ in range(repeats)]
        return nn.Sequential(*(part for pair in one for part in pair))
    if dilation > 1:
        return layers.AtrousConv(c, c, kernel, dilation, relu=True)
    return layers.ConvBN(c, c, kernel, relu=True)


class _Cell(nn.Module):
    def __init__(self, own: FastNASHead) -> None:
        super().__init__()
        ops = [own.first, *(o for _, _, *two in own.steps for o in two)]
        self.ops = nn.ModuleList(_op(o, own.channels, own.repeats) for o in ops)
        self.add = layers.Add(after_conv=False)  # every op ends in a ReLU
        self.steps, self.loose = own.steps, own.loose_states

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same."""
        states = [x, self.ops[0](x)]
        for i, (one, other, _, _) in enumerate(self.steps):
            pair = [self.ops[1 + 2 * i](states[one]), self.ops[2 + 2 * i](states[other])]
            states += [*pair, self.add(*pair)]
        out: Tensor = states[self.loose[0]]
        for i in self.loose[1:]:
            out = self.add(out, states[i])
        return out


class _Block(nn.Module):
    def __init__(self, own: FastNASHead) -> None:
        super().__init__()
        self.cells = nn.ModuleList(_Cell(own) for _ in range(2))
        self.points = nn.ModuleList(layers.ConvBN(own.channels, own.channels, relu=True) for _ in range(2))
        self.add = layers.Add(after_conv=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two of (N, channels, H, W) -> one of the size of the larger."""
        out: Tensor = self.add(*_larger(*(p(c(z)) for c, p, z in zip(self.cells, self.points, (x, y), strict=True))))
        return out


def _larger(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both at the size of the larger one."""
    size = max((x.shape[2], x.shape[3]), (y.shape[2], y.shape[3]))
    return layers.resized(x, size), layers.resized(y, size)


class _FastNASNet(HeadNet):
    def __init__(self, own: FastNASHead, features: Sequence[Feature], classes: int, labels: bool) -> None:
        super().__init__(features, reads=range(-INPUTS, 0))
        c = own.channels
        self.adapters = nn.ModuleList(layers.ConvBN(features[i].channels, c, relu=True) for i in self.reads)
        self.connections, self.loose = own.blocks, own.loose_blocks
        self.blocks = nn.ModuleList(_Block(own) for _ in own.blocks)
        self.concat = layers.Concat()
        self.project = layers.ConvBN(len(self.loose) * c, c, relu=True)
        self.classifier = Conv(c, classes, 3, norm=False, bias=True, act="none")
        self.argmax = layers.ArgMax() if labels else nn.Identity()

    def neck(self, index: int, x: Tensor, image: Tensor, probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Bring a feature to the channels of the decoder."""
        out: Tensor = self.adapters[self.reads.index(index)](x)
        return out

    def body(self, image: Tensor, necks: Sequence[Tensor], probs: Probs | None, sampled: Sampled | None) -> Tensor:
        """Compute the blocks, and scores or labels at full size."""
        pool = list(necks)
        for block, (one, other) in zip(self.blocks, self.connections, strict=True):
            pool.append(block(pool[one], pool[other]))
        joined = pool[INPUTS + self.loose[0]]
        for i in self.loose[1:]:
            joined = self.concat(*_larger(joined, pool[INPUTS + i]))
        # The public code has a ReLU here; all that is resized and joined has none below 0, so it changes nothing.
        out: Tensor = self.argmax(layers.resize(self.classifier(self.project(joined)), image))
        return out
