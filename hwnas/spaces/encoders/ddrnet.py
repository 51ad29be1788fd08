"""DDRNet-23-slim (Hong et al. 2021): two branches of residual blocks that exchange maps, and DAPPM on the coarse one.

Table 2 of the paper; ydhongHIT/DDRNet, segmentation/DDRNet_23_slim.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hwnas.ops.general import Conv
from hwnas.ops.layers import Add, ReLU, resize
from hwnas.spaces.encoders.fixed import FixedEncoder, scaled
from hwnas.spaces.encoders.pyramid import PyramidPooling
from hwnas.spaces.encoders.residual import basic_stage, bottleneck, stem
from hwnas.spaces.parts import EncoderNet, Feature, Map, Maps, Probs, Sampled, Scale
from hwnas.spaces.registry import encoder

PUBLISHED = (32, 2)  # channels of the first convolution of 23-slim, blocks of each stage
HIGH_BLOCKS = 2  # of each stage of the fine branch
BRANCH = 128  # channels of each branch of DAPPM


@encoder("ddrnet")
@dataclass(frozen=True)
class DDRNet(FixedEncoder):
    """Features are the last map of the fine branch, at stride 8, and that of DAPPM, at stride 64.

    Attributes:
        scale: `channels` is 32 in 23-slim and 64 in 23; `cells` the blocks of each stage, 2 in both.
    """

    scale: Scale

    def given(self) -> tuple[Feature, ...]:
        """Return the features: no ReLU follows either."""
        return Feature(4 * self.scale.channels, 8), Feature(4 * self.scale.channels, 64)

    def auxiliary(self, arch: object, form: object) -> Feature:
        """Return the fine branch after the first exchange, as the paper does."""
        return Feature(2 * self.scale.channels, 8)

    def network(self) -> EncoderNet:
        """Build the network."""
        return _DDRNetNet(self)


class _DDRNetNet(EncoderNet):
    def __init__(self, own: DDRNet) -> None:
        super().__init__()
        c, n = own.scale.channels, own.scale.cells
        self.stem = stem(c)
        self.relu = ReLU()
        self.stage1 = basic_stage(c, c, n)
        self.stage2 = basic_stage(c, 2 * c, n, 2)
        self.low3 = basic_stage(2 * c, 4 * c, n, 2)
        self.low4 = basic_stage(4 * c, 8 * c, n, 2)
        self.low5 = bottleneck(8 * c, 8 * c, 2)
        self.high3 = basic_stage(2 * c, 2 * c, HIGH_BLOCKS)
        self.high4 = basic_stage(2 * c, 2 * c, HIGH_BLOCKS)
        self.high5 = bottleneck(2 * c, 2 * c)
        self.up3 = Conv(4 * c, 2 * c, act="none")
        self.up4 = Conv(8 * c, 2 * c, act="none")
        self.down3 = Conv(2 * c, 4 * c, 3, 2, act="none")
        self.down4 = nn.Sequential(Conv(2 * c, 4 * c, 3, 2), Conv(4 * c, 8 * c, 3, 2, act="none"))
        self.add_low = Add(after_conv=True)
        self.add_high = Add(after_conv=False)
        branch = scaled(BRANCH, c, PUBLISHED[0]) if c < PUBLISHED[0] else BRANCH  # 23 has as many as 23-slim
        self.pyramid = PyramidPooling(16 * c, branch, 4 * c, parallel=False)

    def forward(self, image: Tensor, probs: Probs | None = None, sampled: Sampled | None = None) -> Maps:
        """Compute the features; see `EncoderNet.forward`."""
        shared = self.relu(self.stage2(self.relu(self.stage1(self.stem(image)))))
        low, high = self.low3(shared), self.high3(shared)
        low, high = self._exchange(low, high, self.up3, self.down3)
        middle = high
        low, high = self.low4(self.relu(low)), self.high4(self.relu(high))
        low, high = self._exchange(low, high, self.up4, self.down4)
        fine, coarse = self.high5(self.relu(high)), self.pyramid(self.low5(self.relu(low)))
        return Maps(((Map(fine),), (Map(coarse),)), middle)

    def _exchange(self, low: Tensor, high: Tensor, up: nn.Module, down: nn.Module) -> tuple[Tensor, Tensor]:
        """Return both branches, each with what the other one gave before it read anything."""
        risen = resize(up(self.relu(low)), high)
        return self.add_low(down(self.relu(high)), low), self.add_high(high, risen)
