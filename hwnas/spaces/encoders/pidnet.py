"""PIDNet-S (Xu et al. 2023): branches for detail, context and boundaries, and PAPPM on the second one.

Section 3 of the paper; XuJiacong/PIDNet, models/pidnet.py with m=2, n=3, planes=32, ppm_planes=96.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hwnas.ops.general import Conv, PixelAttention
from hwnas.ops.layers import Add, ReLU, resize
from hwnas.spaces.encoders.fixed import FixedEncoder, scaled
from hwnas.spaces.encoders.pyramid import PyramidPooling
from hwnas.spaces.encoders.residual import basic_block, basic_stage, bottleneck, stem
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled, Scale
from hwnas.spaces.registry import encoder

PUBLISHED = (32, 2)  # channels of the first convolution of PIDNet-S; m, the blocks of the finer stages
BRANCH = 96  # channels of each branch of PAPPM


@encoder("pidnet")
@dataclass(frozen=True)
class PIDNet(FixedEncoder):
    """Features are the last maps of the detail and the boundary branch, at stride 8, and PAPPM's, at stride 64.

    Attributes:
        scale: `channels` is 32 in S and 64 in M; `cells` is m, 2 in both; coarse stages have a block more.
    """

    scale: Scale

    def given(self) -> tuple[Feature, ...]:
        """Return the features: detail, boundary, context; no ReLU follows any."""
        c = 4 * self.scale.channels
        return Feature(c, 8), Feature(c, 8), Feature(c, 64)

    def auxiliary(self, arch: object, form: object) -> Feature:
        """Return the detail branch after the first attention, as the paper does; boundaries have no labels here."""
        return Feature(2 * self.scale.channels, 8)

    def network(self) -> EncoderNet:
        """Build the network."""
        return _PIDNetNet(self)


class Guided(nn.Module):
    """A fine map, moved towards a coarse one where both are alike (Pag, section 3.2)."""

    def __init__(self, c: int, within: int) -> None:
        """Build for maps of `c` channels, compared in `within`."""
        super().__init__()
        self.of_fine = Conv(c, within, act="none")
        self.of_coarse = Conv(c, within, act="none")
        self.attention = PixelAttention()

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(N, c, H, W) and (N, c, h, w) -> (N, c, H, W)."""
        key = resize(self.of_coarse(coarse), fine)
        out: Tensor = self.attention(fine, resize(coarse, fine), self.of_fine(fine), key)
        return out


class _PIDNetNet(EncoderNet):
    def __init__(self, own: PIDNet) -> None:
        super().__init__()
        c, m = own.scale.channels, own.scale.cells
        self.stem = stem(c)
        self.relu = ReLU()
        self.stage1 = basic_stage(c, c, m)
        self.stage2 = basic_stage(c, 2 * c, m, 2)
        self.context3 = basic_stage(2 * c, 4 * c, m + 1, 2)
        self.context4 = basic_stage(4 * c, 8 * c, m + 1, 2)
        self.context5 = nn.Sequential(bottleneck(8 * c, 8 * c, 2), bottleneck(16 * c, 8 * c))
        self.compress3 = Conv(4 * c, 2 * c, act="none")
        self.compress4 = Conv(8 * c, 2 * c, act="none")
        self.detail3 = basic_stage(2 * c, 2 * c, m)
        self.detail4 = basic_stage(2 * c, 2 * c, m)
        self.detail5 = bottleneck(2 * c, 2 * c)
        self.guided3 = Guided(2 * c, c)
        self.guided4 = Guided(2 * c, c)
        self.boundary3 = basic_block(2 * c, c, relu=False)
        self.boundary4 = bottleneck(c, c)
        self.boundary5 = bottleneck(2 * c, 2 * c)
        self.diff3 = Conv(4 * c, c, 3, act="none")
        self.diff4 = Conv(8 * c, 2 * c, 3, act="none")
        self.add = Add(after_conv=False)
        branch = scaled(BRANCH, c, PUBLISHED[0]) if c < PUBLISHED[0] else BRANCH  # M has as many as S
        self.pyramid = PyramidPooling(16 * c, branch, 4 * c, parallel=True)

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        shared = self.relu(self.stage2(self.relu(self.stage1(self.stem(image)))))
        context = self.relu(self.context3(shared))
        boundary = self.boundary3(shared)
        boundary = self.add(boundary, resize(self.diff3(context), boundary))
        detail = middle = self.guided3(self.detail3(shared), self.compress3(context))
        context = self.relu(self.context4(context))
        boundary = self.boundary4(self.relu(boundary))
        boundary = self.add(boundary, resize(self.diff4(context), boundary))
        detail = self.guided4(self.detail4(self.relu(detail)), self.compress4(context))
        detail, boundary = self.detail5(self.relu(detail)), self.boundary5(self.relu(boundary))
        context = self.pyramid(self.context5(context))
        return Maps(((Map(detail),), (Map(boundary),), (Map(context),)), middle)
