"""Drop path (Larsson et al. 2017, as DARTS uses it): in training whole edges are left out at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwnas.ops.registry import active_tracer


class DropPath(nn.Module):
    """Leaves out its input for some samples of a batch, and scales it for the others so that the mean stays.

    In training only, and no op: it is neither traced, priced nor exported, and has no parameters. Its masks come from
    torch's generator, which a training seeds at each step.

    Attributes:
        rate: Probability that a sample's input is left out, below 1; see `set_drop_path`.
        part: Which part of a batch it computes, of how many of equal size: masks are drawn for all of it.
    """

    def __init__(self) -> None:
        """Start with a rate of 0: nothing is left out."""
        super().__init__()
        self.rate = 0.0
        self.part = (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same; `x` is not changed."""
        if not self.training or self.rate == 0:
            return x
        if not torch.compiler.is_compiling() and active_tracer.get() is not None:
            return x
        keep = 1 - self.rate
        n, (part, parts) = len(x), self.part
        drawn = torch.rand(n * parts, 1, 1, 1, device=x.device)[n * part : n * (part + 1)]
        mask = drawn < keep  # (N, 1, 1, 1)
        return x / keep * mask


def set_drop_path(network: nn.Module, rate: float, part: tuple[int, int] = (0, 1)) -> None:
    """Set rate and part of all `DropPath` in a network."""
    assert 0 <= rate < 1
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate, module.part = rate, part
