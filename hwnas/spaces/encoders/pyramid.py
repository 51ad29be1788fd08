"""Pyramid pooling of dual-resolution networks: DAPPM (DDRNet, section 3.3) and PAPPM (PIDNet, section 3.3).

Averages over windows of 5, 9 and 17 pixels and over the whole map, each normalised, rectified and projected, brought
back to the size of the map and added to the finer one before (DAPPM) or to the finest one (PAPPM).
"""

from __future__ import annotations

from torch import Tensor, nn

from hwnas.ops.general import Conv, MeanConv, NormAct, Pool
from hwnas.ops.layers import Add, Concat, resize

WINDOWS = ((5, 2), (9, 4), (17, 8))  # kernel and stride


class PreConv(nn.Module):
    """BatchNorm and ReLU before a convolution, nothing after it."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, groups: int = 1) -> None:
        """Build with `c_in` to `c_out` channels."""
        super().__init__()
        self.norm = NormAct(c_in)
        self.conv = Conv(c_in, c_out, kernel, groups=groups, norm=False, act="none")

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        out: Tensor = self.conv(self.norm(x))
        return out


class PyramidPooling(nn.Module):
    """DAPPM, or PAPPM if `parallel`."""

    def __init__(self, c_in: int, within: int, c_out: int, parallel: bool) -> None:
        """Build it.

        Args:
            c_in: Channels of the map.
            within: Of each branch.
            c_out: Of the result.
            parallel: Whether the branches are joined by one grouped convolution instead of one after the other.
        """
        super().__init__()
        self.pools = nn.ModuleList(Pool(*window) for window in WINDOWS)
        self.scales = nn.ModuleList(PreConv(c_in, within) for _ in range(1 + len(WINDOWS)))
        self.whole = MeanConv(c_in, within, before="bn_relu", after=False)
        branches = 1 + len(WINDOWS)
        if parallel:
            self.process = nn.ModuleList([PreConv(branches * within, branches * within, 3, groups=branches)])
        else:
            self.process = nn.ModuleList(PreConv(within, within, 3) for _ in range(branches))
        self.parallel = parallel
        self.sums = nn.ModuleList(Add(after_conv=False) for _ in range(branches))
        self.concat = Concat()
        self.compress = PreConv((1 + branches) * within, c_out)
        self.shortcut = PreConv(c_in, c_out)
        self.add = Add(after_conv=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) -> (N, c_out, H, W)."""
        finest = self.scales[0](x)
        coarser = [resize(s(p(x)), x) for s, p in zip(list(self.scales)[1:], self.pools, strict=True)]
        coarser.append(self.whole(x))  # a mean is the same everywhere, and the sum broadcasts it
        if self.parallel:
            joined = self.concat(*(add(finest, y) for add, y in zip(self.sums, coarser, strict=True)))
            parts = [finest, self.process[0](joined)]
        else:
            parts = [finest]
            for add, process, y in zip(self.sums, self.process, coarser, strict=True):
                parts.append(process(add(parts[-1], y)))
        out: Tensor = self.add(self.compress(self.concat(*parts)), self.shortcut(x))
        return out
