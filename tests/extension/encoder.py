"""An encoder: plain stages, each with one decision of its own that no node of a cell is about, and a rule on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from hwnas.ops import layers
from hwnas.ops.mixed import MixedOp
from hwnas.problem import Architecture, Decision, Group, Rule
from hwnas.spaces import Encoder, EncoderNet, Feature, Form, Map, Maps, Scale, encoder
from hwnas.spaces.parts import Features, Probs, Sampled
from tests.extension.rule import AtLeast

OPTIONS = ("skip_connect", "sep_conv_3x3", "max_pool_3x3")


@encoder("ladder")
@dataclass(frozen=True)
class Ladder(Encoder):
    """A convolution of stride 2 and a searched op for each stage; `scale.cells` stages, twice the channels at each.

    Attributes:
        scale: Channels of the first stage, number of stages, size of the image.
        least: Stages that must have a separable convolution.
    """

    scale: Scale
    least: int = 1

    @property
    def groups(self) -> tuple[Group, ...]:
        """One decision for each stage."""
        return (Group("stage", tuple(Decision(f"stage/{i}", OPTIONS) for i in range(self.scale.cells))),)

    def rules(self) -> list[Rule]:
        """Return the least number of convolutions."""
        return [AtLeast(tuple(d.name for d in self.groups[0].decisions), "sep_conv_3x3", self.least)]

    def widths(self) -> list[int]:
        """Return the channels of each stage."""
        return [self.scale.channels * 2**i for i in range(self.scale.cells)]

    def features(self, arch: Architecture, form: Form) -> Features:
        """Return the map of each stage."""
        return tuple((Feature(c, 2 << i),) for i, c in enumerate(self.widths()))

    def build(self, arch: Architecture, form: Form) -> LadderNet:
        """Build the stages."""
        return LadderNet(self, arch, form == "search")

    def genotype(self, arch: Architecture) -> tuple[str, ...]:
        """Return the op of each stage."""
        return tuple(str(arch.get(d.name)) for d in self.groups[0].decisions)

    def dot(self, arch: Architecture) -> list[str]:
        """Return one arrow for each stage."""
        return [f'  "{i}" -> "{i + 1}" [label="{op}"];' for i, op in enumerate(self.genotype(arch))]

    def draw(self, figure: Any, arch: Architecture, probs: Mapping[str, np.ndarray], ms: Mapping[str, float]) -> None:
        """Draw the probabilities."""
        figure.subplots().imshow(probs["stage"])


class LadderNet(EncoderNet):
    """The network of a `Ladder`."""

    def __init__(self, ladder: Ladder, arch: Architecture, search: bool) -> None:
        """Build it; use `Ladder.build`."""
        super().__init__()
        widths, (group,) = ladder.widths(), ladder.groups
        self.down = nn.ModuleList(layers.ConvBN(a, b, 3, 2) for a, b in zip((3, *widths), widths, strict=False))
        self.ops = nn.ModuleList(MixedOp(d, arch, c, 1, search) for d, c in zip(group.decisions, widths, strict=True))

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute all stages."""
        x, maps = image, []
        for i, (down, searched) in enumerate(zip(self.down, self.ops, strict=True)):
            weights, on = (None if of is None else of["stage"][i] for of in (probs, sampled))
            x = searched(down(x), weights, on)
            maps.append(x)
        return Maps(tuple((Map(m),) for m in maps), maps[-2])
