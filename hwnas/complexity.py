"""Multiply-adds and parameters of a network, counted by fvcore on the module that is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hwnas.optional import require
from hwnas.problem import Architecture
from hwnas.spaces import Space


@dataclass(frozen=True)
class Complexity:
    """What a network counts.

    Attributes:
        macs: Multiply-adds of convolutions and linear layers for one image; papers call them FLOPs.
        params: Trained numbers.
    """

    macs: int
    params: int

    def __str__(self) -> str:
        return f"{self.macs / 1e6:.1f} M multiply-adds, {self.params / 1e6:.3f} M parameters"


def complexity(space: Space, arch: Architecture) -> Complexity:
    """Count the deploy form of a network at the space's scale."""
    with torch.device("meta"):
        network = space.build(arch, form="deploy").eval()
    return count(network, space.scale.size)


def count(network: nn.Module, size: tuple[int, int]) -> Complexity:
    """Count a network whose parameters are on the meta device, so that nothing is computed.

    `fvcore.nn.FlopCountAnalysis` computes the network for the sake of its shapes, which at 1024x2048 can take half a
    minute, and on the meta device torch's tracer, which it uses, cannot pass a convolution. So its rules are applied
    here to the shapes of one pass; a test holds both to the same number.
    """
    params = require("fvcore.nn", "search").parameter_count(network)[""]
    with torch.no_grad(), _Counter() as counter:
        network(torch.empty(1, 3, *size, device="meta"))
    return Complexity(counter.macs, int(params))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what fvcore counts for each convolution and matrix product of a pass."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._conv_flops = require("fvcore.nn.jit_handles", "search").conv_flop_count
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if name is torch.ops.aten.convolution:
            image, weight, transposed = args[0], args[1], args[6]
            self.macs += int(self._conv_flops(image.shape, weight.shape, out.shape, transposed))
        elif name in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left: Tensor = args[-2]
            self.macs += left.numel() * out.shape[-1]
        return out
