"""The pass of a network in training, as it is or compiled by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwnas.errors import HwnasError

Forward = Callable[[Tensor], list[Tensor]]  # from images (N, 3, H, W) to the scores of the network, and of a head


def forward_of(net: nn.Module, auxiliary: nn.Module | None) -> Forward:
    """Return the pass of a network, and of its auxiliary head where there is one."""
    if auxiliary is None:
        return lambda images: [net(images)]

    def both(images: Tensor) -> list[Tensor]:
        scores, tap = net.with_auxiliary(images)  # type: ignore[operator]  # a network with such a head has it
        return [scores, auxiliary(images, tap)]

    return both


def compiled(forward: Forward, device: torch.device) -> Forward:
    """Return a pass that is compiled when it is first called.

    The modules stay as they are: their weights, names and modes are those that the pass reads.

    Raises:
        HwnasError: If nothing can be compiled here.
    """
    check_compiler(device)
    out: Forward = torch.compile(forward)
    return out


def check_compiler(device: torch.device) -> None:
    """Compile the least there is: what torch needs for it differs by device and version.

    Raises:
        HwnasError: If that fails; says why.
    """
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=device))
    except Exception as e:  # of what types depends on the device and on torch's version
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        why = next(
            (line for line in lines if " compiler" in line or "triton" in line.lower()), lines[0] if lines else repr(e)
        )
        raise HwnasError(
            f"a training with compile needs a C++ compiler, on a GPU Triton; torch.compile on {device.type}: {why}; "
            "install it, or leave out train.compile"
        ) from e
